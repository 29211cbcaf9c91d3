# SPDX-License-Identifier: Apache-2.0
"""A bag as frames for training: what was seen and what was commanded, once in each control period."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.measures import between
from smolvla_mem_ros.bags.replay import Played, Reference, Replay, Span
from smolvla_mem_ros.bags.streams import Durations, find_topics
from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.runtime.episode import Request, Result
from smolvla_mem_ros.units import NANOSECONDS


@dataclass(frozen=True)
class Frame:
    """One control period.

    Args:
        episode: number of the stretch without a gap that it belongs to.
        images: {feature key: (H, W, 3) uint8 RGB}.
        state, action: (D,) float32 in the checkpoint's units.
    """

    episode: int
    task: str
    images: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray


@dataclass
class Quality:
    """How well the streams of a bag go together.

    Attributes:
        frames, episodes: that were made.
        dropped: reason -> control periods without a frame.
        ages: stream -> from its stamp to the tick, of each frame.
        streams: stream -> rates, gaps and clocks.
        unused: problem -> messages.
    """

    frames: int = 0
    episodes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    ages: dict[str, Durations] = field(default_factory=dict)
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        return {
            "frames": self.frames,
            "episodes": self.episodes,
            "dropped": dict(sorted(self.dropped.items())),
            "age_ms": {
                stream: {"median": _ms(ages.median), "max": _ms(ages.largest)}
                for stream, ages in self.ages.items()
            },
            "streams": self.streams,
            "unused": self.unused,
        }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


class Framer:
    """Makes frames of a bag.

    It is a replay that asks for an inference in every control period and has no policy: episodes, freshness
    and what is dropped are those of the live node.

    Args:
        max_gap: seconds without a frame after which the next one begins another episode.
        spans, gap, task: as for Replay.

    Raises:
        BagError: as Replay.
    """

    def __init__(
        self,
        bag: Bag,
        contract: Contract,
        *,
        spans: Sequence[Span] | None = None,
        gap: float = 1.0,
        task: str = "",
        max_gap: float = 0.5,
        progress: Callable[[int], None] = lambda now: None,
    ) -> None:
        # The memory clock of a policy is none of the data's business.
        self._contract = replace(contract, n_action_steps=1)
        self._max_gap = max_gap
        topics = find_topics(bag, contract)
        has_commands = topics.commands is not None and bag.topics[topics.commands].count > 0
        self.actions_from = "commands" if has_commands else "joint states"
        self._replay = Replay(
            bag, self._contract, topics, self, spans=spans, gap=gap, task=task, progress=progress
        )
        self._waiting: deque[tuple[Request, Played]] = deque()
        self._last: tuple[Played, int] | None = None
        self.quality = Quality()

    def infer(self, request: Request, played: Played) -> Result:
        """What Replay calls instead of a policy."""
        self._waiting.append((request, played))
        return Result(request, np.zeros((self._contract.chunk_size, len(self._contract.joints))))

    def frames(self) -> Iterator[Frame]:
        """One after another; ``quality`` is complete at the end."""
        for _ in self._replay.steps():
            yield from self._ready(final=False)
        yield from self._ready(final=True)
        for played in self._replay.played:
            self.quality.dropped.update(played.skips)
        self.quality.streams = {name: clock.summary() for name, clock in self._replay.clocks.items()}
        self.quality.unused = dict(sorted(self._replay.unused.items()))

    def _ready(self, final: bool) -> Iterator[Frame]:
        """Frames whose action is known by now."""
        while self._waiting:
            request, played = self._waiting[0]
            radians = self._action(request.now)
            if radians is None and not final and self.actions_from == "joint states":
                return
            self._waiting.popleft()
            if radians is None:
                self.quality.dropped[f"no action: nothing in the {self.actions_from} yet, or any more"] += 1
                continue
            yield self._frame(request, played, radians)

    def _frame(self, request: Request, played: Played, radians: np.ndarray) -> Frame:
        quality, now = self.quality, request.now
        before, self._last = self._last, (played, now)
        goes_on = before and before[0] is played and now - before[1] <= self._max_gap * NANOSECONDS
        quality.episodes += not goes_on
        quality.frames += 1
        for stream, stamp in request.observation.stamps.items():
            quality.ages.setdefault(stream, Durations()).add((now - stamp) / NANOSECONDS)
        observation = request.observation
        action = self._contract.units.from_radians(radians).astype(np.float32)
        return Frame(quality.episodes, played.task, observation.images, observation.state, action)

    def _action(self, now: int) -> np.ndarray | None:
        reference = self._replay.reference
        if self.actions_from == "commands":
            return commanded(reference, now)
        at = now + self._contract.control_period
        stamps = reference.states.stamps
        if not stamps or stamps[-1] < at:
            return None
        after = bisect_left(stamps, at)
        known = reference.states[max(0, after - 1) : after + 1]
        positions = between(np.array([at]), *known)[0]
        return None if np.isnan(positions).any() else positions


def commanded(reference: Reference, now: int) -> np.ndarray | None:
    """Where the joints were told to be at ``now`` (ns), (D,) radians: after its end a trajectory is held."""
    for number in reversed(range(len(reference.begins))):
        if reference.begins[number] <= now:
            times, positions = reference.command(number)
            at = np.clip(now, times[0], times[-1])
            return between(np.array([at]), times, positions)[0]
    return None
