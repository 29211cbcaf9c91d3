# SPDX-License-Identifier: Apache-2.0
"""A smooth path for the arm, and the stream of overlapping, late chunks of it that a policy would send."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.runtime.trajectory import Chunk, TrajectorySegment, to_segment
from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig
from smolvla_mem_ros.so100.follower import Trajectory, TrajectoryPoint
from smolvla_mem_ros.units import NANOSECONDS

SINUSOIDS = 2  # of each joint
FREQUENCIES = (0.1, 0.5)  # Hz
ROOM = 0.8  # share of a joint's half range that its path may take


@dataclass(frozen=True)
class IdealPath:
    """For each joint a sum of sinusoids about the middle of its range.

    Args:
        middle: (6,) rad.
        amplitude, frequency, phase: (6, K) rad, Hz, rad.
        origin: s, time zero of the phases.
    """

    middle: np.ndarray
    amplitude: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray
    origin: float = 0.0

    @classmethod
    def draw(cls, random: np.random.Generator, config: ArmConfig, speed: float, origin: float) -> IdealPath:
        """Within the positions of ``config``, no faster than the share ``speed`` of its velocities."""
        shape = (len(JOINTS), SINUSOIDS)
        frequency = random.uniform(*FREQUENCIES, shape)
        weight = random.uniform(0.5, 1.0, shape)
        half = (config.upper - config.lower) / 2
        by_room = ROOM * half / weight.sum(axis=1)
        by_speed = speed * config.max_velocity / (weight * 2 * np.pi * frequency).sum(axis=1)
        amplitude = weight * np.minimum(by_room, by_speed)[:, None]
        return cls(config.lower + half, amplitude, frequency, random.uniform(0, 2 * np.pi, shape), origin)

    def at(self, time: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(..., 6) rad and (..., 6) rad/s at the times (...) s."""
        turns = 2 * np.pi * self.frequency
        angle = turns * (np.asarray(time, float)[..., None, None] - self.origin) + self.phase
        position = self.middle + (self.amplitude * np.sin(angle)).sum(axis=-1)
        return position, (self.amplitude * turns * np.cos(angle)).sum(axis=-1)


@dataclass(frozen=True)
class Stream:
    """How chunks of a path follow one another.

    Args:
        steps: actions of a chunk.
        every: steps from the stamp of one chunk to that of the next.
        hertz: actions a second.
        lateness: s, the most that a chunk comes after its stamp; each is as late as it happens.
        disagreement: rad, rms of what two chunks differ by at the same moment, each joint by itself.
    """

    steps: int = 25
    every: int = 12
    hertz: float = 30.0
    lateness: float = 0.3
    disagreement: float = 0.0

    def chunk(
        self, path: IdealPath, stamp: int, contract: Contract, random: np.random.Generator
    ) -> TrajectorySegment:
        """What the policy node makes of actions that begin at ``stamp``, ns on the path's clock."""
        dt = 1 / self.hertz
        positions, _ = path.at(stamp / NANOSECONDS + np.arange(self.steps) * dt)
        positions = positions + random.normal(0, self.disagreement / np.sqrt(2), len(JOINTS))
        return to_segment(Chunk(stamp, contract.units.from_radians(positions), dt, epoch=0), contract)


def to_trajectory(segment: TrajectorySegment) -> Trajectory:
    """For the follower, whose clock the segment's stamp must be of."""
    rows = zip(segment.times, segment.positions, segment.velocities, strict=True)
    points = tuple(TrajectoryPoint(t, position, velocity) for t, position, velocity in rows)
    return Trajectory(segment.joints, points, segment.stamp / NANOSECONDS)


@dataclass
class Streamer:
    """A thread that sends chunk after chunk until the block that it is used in ends.

    Args:
        send: called in the thread with each chunk.
        clock: ns, the path's.
    """

    path: IdealPath
    stream: Stream
    contract: Contract
    random: np.random.Generator
    send: Callable[[TrajectorySegment], None]
    clock: Callable[[], int] = time.monotonic_ns
    chunks: int = field(default=0, init=False)
    failure: Exception | None = field(default=None, init=False)

    def __enter__(self) -> Streamer:
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streamer", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            period = round(self.stream.every / self.stream.hertz * NANOSECONDS)
            stamp = self.clock()
            while True:
                chunk = self.stream.chunk(self.path, stamp, self.contract, self.random)
                late = self.random.uniform(0, self.stream.lateness)
                if self._ending.wait(max(0.0, (stamp - self.clock()) / NANOSECONDS + late)):
                    return
                self.send(chunk)
                self.chunks += 1
                stamp += period
        except Exception as error:  # told in the thread that waits for this one
            self.failure = error
