# SPDX-License-Identifier: Apache-2.0
"""The streams of a contract in a bag: which topics they are, and what is known of their clocks."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.runtime.observation import STATE
from smolvla_mem_ros.units import NANOSECONDS

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
EVENT = "smolvla_mem_ros/msg/EpisodeEvent"
COMMIT = "smolvla_mem_ros/msg/MemoryState"
JOINT_STATE, JOINT_TRAJECTORY = "sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory"
# A leader arm, or a node that streams goals, commands in joint states.
KINDS = {STATE: (JOINT_STATE,), "commands": (JOINT_TRAJECTORY, JOINT_STATE)}

# A stamp that is further than this from when the message came was made by another clock.
CLOCK_TOLERANCE = 5.0


@dataclass(frozen=True)
class Topics:
    """Names of the topics in a bag.

    Args:
        streams: topic -> stream of the contract ("joint_states", or a camera's name).
        commands: JointTrajectory or JointState; None when not recorded, as are the others.
        events, commits: EpisodeEvent and MemoryState.
    """

    streams: dict[str, str]
    commands: str | None
    events: str | None
    commits: str | None

    @property
    def all(self) -> list[str]:
        return [*self.streams, *filter(None, (self.commands, self.events, self.commits))]


def find_topics(bag: Bag, contract: Contract) -> Topics:
    """The contract's topics in ``bag``: of that name, or the only one that ends so (in some namespace).

    Raises:
        BagError: cameras or joint states are not there or of another type; names all that are.
    """
    wanted = {STATE: contract.state_topic, **{c.name: c.topic for c in contract.cameras}}
    streams: dict[str, str] = {}
    problems = []
    for stream, name in wanted.items():
        kinds = KINDS.get(stream, IMAGES)
        topic = _named(bag, name, kinds)
        if topic is None:
            near = [t.name for t in bag.topics.values() if t.kind in kinds]
            close = difflib.get_close_matches(name, near, 1, 0.3)
            problems.append(
                f"{stream}: no {name} of type {' or '.join(kinds)}"
                + (f" (is it {close[0]}?)" if close else "")
            )
        else:
            streams[topic] = stream
    if problems:
        raise BagError(
            f"{bag.path} lacks what the contract asks for: {'; '.join(problems)}. inspect_bag shows what is "
            "there and proposes a contract"
        )
    of_kind = {kind: [t.name for t in bag.topics.values() if t.kind == kind] for kind in (EVENT, COMMIT)}
    command = _named(bag, contract.command_topic, KINDS["commands"])
    return Topics(
        streams,
        None if command in streams else command,
        *(names[0] if len(names) == 1 else None for names in of_kind.values()),
    )


def _named(bag: Bag, name: str, kinds: Iterable[str]) -> str | None:
    there = [t.name for t in bag.topics.values() if t.kind in kinds]
    full = "/" + name.lstrip("/")
    if full in there:
        return full
    ends = [topic for topic in there if topic.endswith(full)]
    return ends[0] if len(ends) == 1 else None


class Durations:
    """Counted in steps of 0.1 ms: what it holds grows with how much they differ, not with how many they are.

    Attributes:
        largest: seconds.
    """

    STEPS = 10_000  # a second

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()  # by steps
        self.largest = float("-inf")

    def add(self, seconds: float) -> None:
        self._counts[round(seconds * self.STEPS)] += 1
        self.largest = max(self.largest, seconds)

    def __len__(self) -> int:
        """Steps that occur."""
        return len(self._counts)

    @property
    def median(self) -> float | None:
        """Seconds, the lower of two; None when there is nothing."""
        half, passed = self._counts.total() / 2, 0
        for step, count in sorted(self._counts.items()):
            passed += count
            if passed >= half:
                return step / self.STEPS
        return None


@dataclass
class StreamClock:
    """What the stamps of one stream say.

    Attributes:
        count: messages; unstamped: without a stamp; backwards: stamped before the one before.
        foreign: stamped by a clock that is not the recorder's.
        longest_gap: seconds between two messages.
        delays: from stamp to reception, of those that the recorder's clock stamped.
    """

    count: int = 0
    unstamped: int = 0
    backwards: int = 0
    foreign: int = 0
    longest_gap: float = 0.0
    delays: Durations = field(default_factory=Durations)
    _first: int = 0
    _last: int = 0
    _last_stamp: int = 0

    def note(self, stamp: int, received: int) -> int:
        """Count a message; returns the time (ns) that is to be used for it."""
        if self.count:
            self.longest_gap = max(self.longest_gap, (received - self._last) / NANOSECONDS)
        else:
            self._first = received
        self.count += 1
        self._last = received
        delay = (received - stamp) / NANOSECONDS
        if not stamp:
            self.unstamped += 1
        elif abs(delay) > CLOCK_TOLERANCE:
            self.foreign += 1
        else:
            self.backwards += stamp < self._last_stamp
            self._last_stamp = stamp
            self.delays.add(delay)
            return stamp
        return received

    @property
    def rate(self) -> float:
        """Messages a second."""
        seconds = (self._last - self._first) / NANOSECONDS
        return (self.count - 1) / seconds if seconds > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        return {
            "messages": self.count,
            "rate_hz": round(self.rate, 3),
            "longest_gap_s": round(self.longest_gap, 4),
            "median_delay_s": self.delays.median,
            "without_stamp": self.unstamped,
            "stamped_backwards": self.backwards,
            "stamped_by_another_clock": self.foreign,
        }
