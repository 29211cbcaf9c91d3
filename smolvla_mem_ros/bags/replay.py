# SPDX-License-Identifier: Apache-2.0
"""Feeds a bag to the live node's own Episode, and infers as it asks, as fast as that can be done."""

from __future__ import annotations

import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from smolvla_mem_ros.bags.bag import Bag, Message
from smolvla_mem_ros.bags.storage import BagError, tally
from smolvla_mem_ros.bags.streams import JOINT_STATE, StreamClock, Topics
from smolvla_mem_ros.policy.memory import Memory
from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.runtime.engine import Engine, EngineError
from smolvla_mem_ros.runtime.episode import Episode, Request, Result
from smolvla_mem_ros.runtime.images import ImageError, decode_image
from smolvla_mem_ros.runtime.metrics import MemorySummary
from smolvla_mem_ros.runtime.observation import STATE, ObservationBuffer, Skip
from smolvla_mem_ros.runtime.stamps import from_time, header_stamp
from smolvla_mem_ros.units import NANOSECONDS

# on: the memory goes from inference to inference.  off: the model without its memory blocks.
# reset_every_step: an empty memory for each.  stale: what was left by the episode before, as if nobody had
# called start_episode.
MODES = ("on", "off", "reset_every_step", "stale")

FAR = 1e6  # radians
KEEP = 5.0  # seconds of messages that a recorded commit may refer to
LONG = 60.0  # seconds without any message, after which ticks are only counted


class Unused(ValueError):
    """A message cannot be used; the others can."""


@dataclass(frozen=True)
class Span:
    """An episode that a file names: nanoseconds from ``start`` to ``end``, and what was to be done."""

    start: int
    end: int
    task: str


@dataclass(frozen=True, slots=True)
class Inference:
    """One chunk.

    Args:
        stamp: nanoseconds, of the observation.
        step: memory writes before it.
        positions: (T, D) radians; dt apart, the first at ``stamp``.
        norm, cosine_distance: (n,), of the memory that was written.
        seconds: that it took.
    """

    stamp: int
    step: int
    positions: np.ndarray
    norm: np.ndarray
    cosine_distance: np.ndarray
    seconds: float


@dataclass
class Played:
    """An episode of the bag and what the policy would have done in it.

    Attributes:
        inferences: mode -> in order; the modes have seen the same ticks.
        skips: reason, without its figures, -> ticks.
        resets: times (ns) at which the memory was reset.
    """

    number: int
    task: str
    start: int
    end: int = 0
    inferences: dict[str, list[Inference]] = field(default_factory=dict)
    skips: Counter[str] = field(default_factory=Counter)
    resets: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Rows:
    """Stamped positions, of which there may be millions: in flat arrays, 8 bytes a number.

    Args:
        width: numbers in a row.

    Attributes:
        stamps: (N,) ns.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.stamps = array("q")
        self._values = array("d")

    def append(self, stamp: int, row: Iterable[float]) -> None:
        self.stamps.append(stamp)
        self._values.extend(row)

    def __len__(self) -> int:
        return len(self.stamps)

    def __getitem__(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """(N,) ns and (N, width), a copy."""
        first, stop, _ = part.indices(len(self))
        values = self._values[first * self.width : stop * self.width]
        return np.frombuffer(self.stamps[first:stop], np.int64), self._shaped(values)

    @property
    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) ns and (N, width), not copied: nothing can be appended while one of them is there."""
        return np.frombuffer(self.stamps, np.int64), self._shaped(self._values)

    def _shaped(self, values: array) -> np.ndarray:
        return np.frombuffer(values).reshape(-1, self.width)


class Reference:
    """What the robot did and was told, in radians and the contract's order of joints.

    Attributes:
        states: of the joints.
        begins: ns at which each command counts from.
    """

    def __init__(self, joints: int) -> None:
        self.states = Rows(joints)
        self.begins = array("q")
        self._points = Rows(joints)
        self._ends = array("q")  # of each command in _points

    def add_command(self, begin: int, times: Sequence[int], positions: Iterable[Iterable[float]]) -> None:
        """A command of T points at ``times`` (ns) with ``positions`` (T, D)."""
        for stamp, row in zip(times, positions, strict=True):
            self._points.append(stamp, row)
        self.begins.append(begin)
        self._ends.append(len(self._points))

    def command(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """ns of its points (T,), and (T, D)."""
        return self._points[self._ends[number - 1] if number else 0 : self._ends[number]]


class Policy(Protocol):
    """What a replay asks."""

    def infer(self, request: Request, played: Played) -> Result:
        """The result whose memory the Episode is to carry; what else came of it may go into ``played``."""


class Modes:
    """Runs each request in every mode, with the same noise.

    Args:
        engines: "on" and, where it is asked for, "off" with the memory switched off.
        modes: the first is the one whose memory the Episode carries.
    """

    def __init__(self, engines: Mapping[str, Engine], modes: Sequence[str], contract: Contract) -> None:
        self._engines, self.modes, self._contract = engines, tuple(modes), contract
        self._memory: dict[str, Memory | None] = dict.fromkeys(modes)

    def infer(self, request: Request, played: Played) -> Result:
        """The result of the first mode; every mode's goes into ``played``."""
        if request.step == 0:
            self._memory |= {mode: None for mode in self.modes if mode != "stale"}
        first: Result | None = None
        for mode in self.modes:
            before = self._memory[mode]
            engine = self._engines["off" if mode == "off" else "on"]
            began = time.perf_counter()
            try:
                done = engine.infer(request.observation, before, request.episode_id, request.step)
            except EngineError as error:
                played.failures.append(f"{mode}: {error}")
                first = first or Result(request, error=str(error))
                continue
            seconds = time.perf_counter() - began
            self._memory[mode] = None if mode == "reset_every_step" else done.memory
            summary = MemorySummary.of(done.memory, before, engine.memory_shape)
            inference = Inference(
                request.observation.stamp,
                request.step,
                self._contract.units.to_radians(done.actions),
                summary.norm,
                summary.cosine_distance,
                seconds,
            )
            played.inferences.setdefault(mode, []).append(inference)
            first = first or Result(request, done.actions, done.memory, duration=seconds)
        assert first is not None
        return first


class Replay:
    """One pass through a bag.

    Episodes are those that ``spans`` name; else those that the bag's own events tell; else they end where
    nothing comes for ``gap`` seconds.

    Args:
        recorded_ticks: infer when the live policy did and on the very messages that it used, which the
            bag's memory states name; else on the control clock, from the start of each episode.
        task: instruction, for episodes that have none of their own.
        progress: called with the time (ns) that has been reached.

    Raises:
        BagError: episodes have no task, or ``recorded_ticks`` and the bag does not tell them.
    """

    def __init__(
        self,
        bag: Bag,
        contract: Contract,
        topics: Topics,
        policy: Policy,
        *,
        spans: Sequence[Span] | None = None,
        gap: float = 1.0,
        task: str = "",
        recorded_ticks: bool = False,
        progress: Callable[[int], None] = lambda now: None,
    ) -> None:
        if spans is None and topics.events is None and not task:
            raise BagError(f"{bag.path} does not tell what was to be done; say so with --task")
        if recorded_ticks and (topics.commits is None or topics.events is None):
            raise BagError(
                f"{bag.path} does not tell when its policy inferred, and on what; use --ticks clock"
            )
        self._bag, self._contract, self._topics, self._policy = bag, contract, topics, policy
        self._spans = None if spans is None else deque(sorted(spans, key=lambda s: s.start))
        self._gap, self._task, self._recorded, self._progress = gap, task, recorded_ticks, progress
        self.clocks = {stream: StreamClock() for stream in contract.streams}
        self.reference = Reference(len(contract.joints))
        self.played: list[Played] = []
        self.unused: Counter[str] = Counter()  # problem -> messages
        self._episode = Episode(contract)
        self._buffer = ObservationBuffer(contract, self._decode)
        self._recent: deque[tuple[str, int, Any]] = deque()
        self._next_tick = 0
        self._last = 0
        self._ended_by_gap = False

    @property
    def counters(self):
        return self._episode.counters

    def run(self) -> None:
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """The same, message by message."""
        for message in self._bag.messages(self._topics.all):
            self._advance(message.stamp)
            try:
                self._take(message)
            except Unused as error:
                tally(self.unused, error)
            self._last = message.stamp
            self._progress(message.stamp)
            yield
        self._end(self._last)

    # The clock ----------------------------------------------------------------------------------

    def _advance(self, now: int) -> None:
        """Do what was due before ``now``."""
        if self._spans is not None:
            self._follow_spans(now)
        elif self._topics.events is None and self._last and now - self._last > self._gap * NANOSECONDS:
            self._ticks_until(self._last)
            self._end(self._last)
        self._ticks_until(now)

    def _follow_spans(self, now: int) -> None:
        while self._spans:
            span = self._spans[0]
            if self._episode.running:
                if now < span.end:
                    return
                self._ticks_until(span.end)
                self._end(span.end)
                self._spans.popleft()
            elif now >= span.start:
                self._start(span.start, span.task or self._task)
            else:
                return

    def _ticks_until(self, now: int) -> None:
        if self._recorded:
            return
        period = self._contract.control_period
        while self._episode.running and self._next_tick <= now:
            if now - self._last > LONG * NANOSECONDS and self._next_tick > self._last:
                left = (now - self._next_tick) // period + 1
                self.played[-1].skips["nothing was recorded"] += left
                self._next_tick += left * period
                return
            self._tick(self._next_tick)
            self._next_tick += period

    def _tick(self, now: int) -> None:
        due = self._episode.tick(now, self._buffer)
        played = self.played[-1]
        if isinstance(due, Skip):
            # "front: 0.31 s old, limit 0.2 s" differs each time; the stream and the kind do not.
            said = {part.split(":")[0].strip() for part in due.reason.split(";")}
            streams = sorted(said.intersection(self._contract.streams))
            played.skips[f"{due.kind}: {', '.join(streams)}"] += 1
        elif isinstance(due, Request):
            self._episode.accept(self._policy.infer(due, played), now)

    def _start(self, now: int, task: str) -> None:
        if not task:
            raise BagError(f"an episode of {self._bag.path} has no task; say what was to be done with --task")
        self._end(now)
        self._episode.start(task, now)
        self.played.append(Played(len(self.played) + 1, task, now))
        self._next_tick = now

    def _end(self, now: int) -> None:
        if self._episode.running:
            self._episode.stop(now)
            self.played[-1].end = max(now, self.played[-1].start)

    # Messages -----------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        topic = message.topic
        if topic == self._topics.events:
            if self._spans is None:
                self._take_event(self._decoded(message), message.stamp)
        elif topic == self._topics.commits:
            if self._recorded:
                self._repeat(self._decoded(message))
        elif topic == self._topics.commands:
            self._take_command(message)
        else:
            self._take_stream(self._topics.streams[topic], message)

    def _take_stream(self, stream: str, message: Message) -> None:
        if self._spans is None and self._topics.events is None and not self._episode.running:
            self._start(message.stamp, self._task)
        if stream == STATE:
            decoded = self._decoded(message)
            stamp = self.clocks[stream].note(from_time(decoded.header.stamp), message.stamp)
            if problem := self._put_state(stamp, decoded):
                raise Unused(f"joint state: {problem}")
        else:
            decoded = message
            try:
                stamp = header_stamp(message.raw)
            except ValueError as error:
                raise Unused(f"{stream}: {error}") from error
            stamp = self.clocks[stream].note(stamp, message.stamp)
            self._buffer.put_image(stream, stamp, message)
        if self._recorded:
            self._recent.append((stream, stamp, decoded))
            while self._recent[0][1] < stamp - KEEP * NANOSECONDS:
                self._recent.popleft()

    def _put_state(self, stamp: int, decoded: Any) -> str | None:
        problem = self._buffer.put_joint_state(stamp, decoded.name, decoded.position)
        if problem is None:
            known = dict(zip(decoded.name, decoded.position, strict=True))
            turn = self._contract.radians_per_unit
            self.reference.states.append(stamp, (known[joint] * turn for joint in self._contract.joints))
        return problem

    def _take_command(self, message: Message) -> None:
        decoded = self._decoded(message)
        goal = self._bag.topics[message.topic].kind == JOINT_STATE
        names = list(decoded.name if goal else decoded.joint_names)
        rows = [decoded.position] if goal else [point.positions for point in decoded.points]
        if not rows or any(joint not in names for joint in self._contract.joints):
            return
        order = [names.index(joint) for joint in self._contract.joints]
        begin = from_time(decoded.header.stamp)
        if abs(message.stamp - begin) > KEEP * NANOSECONDS:
            begin = message.stamp
        if any(len(row) != len(names) for row in rows):
            raise Unused("command: a point has not one position for each joint")
        times = [begin] if goal else [begin + from_time(point.time_from_start) for point in decoded.points]
        if times != sorted(times):
            raise Unused("command: its points are not in the order of their times")
        turn = self._contract.radians_per_unit
        positions = [np.asarray(row)[order] * turn for row in rows]
        if not (np.abs(positions) < FAR).all():
            raise Unused("command: a position is not a finite number, or no joint's")
        # A trajectory counts from when it is there, even if it is stamped earlier.
        self.reference.add_command(max(begin, message.stamp), times, positions)

    def _take_event(self, event: Any, received: int) -> None:
        now = from_time(event.header.stamp)
        # Of another clock, or none: from there to here it would tick for ever.
        if abs(received - now) > KEEP * NANOSECONDS:
            now = received
        if event.event == "start":
            self._start(now, event.task or self._task)
            # Noise depends on the number of the episode: the live one's, for the same chunks.
            self._episode.episode_id = event.episode_id
        elif event.event == "reset_memory" and self._episode.running:
            self._episode.reset_memory(now)
            self.played[-1].resets.append(now)
            self._next_tick = max(self._next_tick, now)
        elif event.event == "stop":
            self._end(now)

    def _repeat(self, commit: Any) -> None:
        """Infer as the live policy did when it wrote this memory."""
        if len(commit.stream_names) != len(commit.stream_stamps):
            raise Unused(f"commit: {len(commit.stream_names)} streams but {len(commit.stream_stamps)} stamps")
        used = dict(zip(commit.stream_names, map(from_time, commit.stream_stamps), strict=True))
        if not used or not self._episode.running:
            return
        buffer = ObservationBuffer(self._contract, self._decode)
        for stream, stamp, message in self._recent:
            if used.get(stream) != stamp:
                continue
            if stream == STATE:
                buffer.put_joint_state(stamp, message.name, message.position)
            else:
                buffer.put_image(stream, stamp, message)
        self._buffer, kept = buffer, self._buffer
        try:
            self._tick(from_time(commit.requested))
        finally:
            self._buffer = kept

    def _decoded(self, message: Message) -> Any:
        try:
            return self._bag.decode(message)
        except BagError as error:
            raise Unused(str(error)) from error

    def _decode(self, message: Message) -> np.ndarray:
        try:
            # Torch wants arrays that may be written to; the bytes of a message may not.
            return np.require(decode_image(self._bag.decode(message)), requirements="W")
        except BagError as error:
            raise ImageError(str(error)) from error
