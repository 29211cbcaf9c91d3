# SPDX-License-Identifier: Apache-2.0
"""What the robot sees and feels now, or why that is not known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.runtime.images import ImageError, decode_image
from smolvla_mem_ros.units import NANOSECONDS

STATE = "joint_states"

# A stamp this far ahead of our clock means that two clocks differ.
FUTURE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Observation:
    """One complete, fresh observation.

    Args:
        stamp: nanoseconds, of the joint state: the time from which the chunk's actions count.
        stamps: {stream: nanoseconds} of all that it was made of.
        images: {feature key: (H, W, 3) uint8 RGB}.
        state: (D,) float32 in the checkpoint's units.
        task: language instruction.
    """

    stamp: int
    stamps: dict[str, int]
    images: dict[str, np.ndarray]
    state: np.ndarray
    task: str

    @property
    def oldest(self) -> int:
        """Nanoseconds, stamp of the oldest stream in it."""
        return min(self.stamps.values())


class SkipKind(StrEnum):
    MISSING = "missing"
    STALE = "stale"


@dataclass(frozen=True)
class Skip:
    """Why there is no observation; ``reason`` names every stream at fault."""

    kind: SkipKind
    reason: str


@dataclass(frozen=True)
class _Sample:
    stamp: int
    value: Any


class ObservationBuffer:
    """The latest sample of each stream. Not thread-safe: one thread feeds and reads it.

    Args:
        contract: says which streams there are and how old each may be.
        decode: image message to (H, W, 3) uint8 RGB, called only for images that are used.
    """

    def __init__(self, contract: Contract, decode: Callable[[Any], np.ndarray] = decode_image):
        self._contract = contract
        self._decode = decode
        self._samples: dict[str, _Sample] = {}
        self._problems: dict[str, str] = {}
        self.images_received = 0

    def put_image(self, camera: str, stamp: int, message: Any) -> None:
        """Keep an image of the camera called ``camera`` (the feature's last part)."""
        self.images_received += 1
        self._samples[camera] = _Sample(stamp, message)
        self._problems.pop(camera, None)

    def put_joint_state(self, stamp: int, names: Sequence[str], positions: Sequence[float]) -> str | None:
        """Keep a joint state: any order, extra joints ignored.

        Returns:
            What is wrong with it, in which case it is not kept.
        """
        problem, state = self._joint_state(names, positions)
        if problem:
            self._problems[STATE] = problem
            return problem
        self._samples[STATE] = _Sample(stamp, state)
        self._problems.pop(STATE, None)
        return None

    def _joint_state(self, names, positions) -> tuple[str | None, np.ndarray | None]:
        if len(names) != len(positions):
            return f"{len(names)} joint names but {len(positions)} positions", None
        known = dict(zip(names, positions, strict=True))
        missing = [joint for joint in self._contract.joints if joint not in known]
        if missing:
            return (
                f"joint {', '.join(missing)} is not in the joint states (they have {', '.join(names)})",
                None,
            )
        ordered = np.array([known[joint] for joint in self._contract.joints])
        radians = ordered * self._contract.radians_per_unit
        # Checked as the policy gets it: 1e300 is finite here and not there.
        with np.errstate(over="ignore"):
            state = self._contract.units.from_radians(radians).astype(np.float32)
        broken = [j for j, x in zip(self._contract.joints, state, strict=True) if not math.isfinite(x)]
        if broken:
            return f"the position of {', '.join(broken)} is not a finite number", None
        return None, state

    def clear(self) -> None:
        self._samples.clear()
        self._problems.clear()

    def ages(self, now: int) -> dict[str, float]:
        """{stream: seconds since its latest sample, inf when there is none}."""
        return {
            stream: (now - self._samples[stream].stamp) / NANOSECONDS if stream in self._samples else math.inf
            for stream in self._contract.streams
        }

    def snapshot(self, now: int, task: str, not_before: int = 0) -> Observation | Skip:
        """The observation at ``now`` (ns), or why there is none.

        Args:
            not_before: samples stamped earlier (ns) belong to the time before a reset and are not used.
        """
        limits = {STATE: self._contract.state_max_age, **{c.name: c.max_age for c in self._contract.cameras}}
        missing, stale = [], []
        for stream, limit in limits.items():
            sample, problem = self._samples.get(stream), self._problems.get(stream)
            if problem:
                missing.append(f"{stream}: {problem}")
            elif sample is None:
                missing.append(f"{stream}: nothing received yet")
            elif sample.stamp < not_before:
                missing.append(
                    f"{stream}: nothing received since the episode started or the memory was reset"
                )
            elif (age := (now - sample.stamp) / NANOSECONDS) > limit:
                stale.append(f"{stream}: {age:.2f} s old, limit {limit:g} s")
            elif age < -FUTURE_TOLERANCE:
                stale.append(f"{stream}: stamped {-age:.2f} s in the future, the clocks differ")
        if missing or stale:
            return Skip(SkipKind.MISSING if missing else SkipKind.STALE, "; ".join(missing + stale))
        images = {}
        for camera in self._contract.cameras:
            try:
                images[camera.key] = self._decode(self._samples[camera.name].value)
            except ImageError as error:
                self._problems[camera.name] = str(error)
                missing.append(f"{camera.name}: {error}")
        if missing:
            return Skip(SkipKind.MISSING, "; ".join(missing))
        stamps = {stream: self._samples[stream].stamp for stream in limits}
        return Observation(stamps[STATE], stamps, images, self._samples[STATE].value, task)
