# SPDX-License-Identifier: Apache-2.0
"""The episode: when to infer, what counts, and what is too old to count.

The live node and a bag replay drive the same :class:`Episode`, so both give the same actions for the same
input. It is a state machine without threads and without a clock of its own; every call gets the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.runtime.observation import Observation, ObservationBuffer, Skip, SkipKind
from smolvla_mem_ros.runtime.trajectory import Chunk, TrajectorySegment, hold, to_segment
from smolvla_mem_ros.units import NANOSECONDS


@dataclass(frozen=True)
class Request:
    """One inference to run: the arguments of ``Engine.infer``, its epoch, and the tick (ns) that asked."""

    observation: Observation
    memory: Any
    episode_id: int
    step: int
    epoch: int
    now: int


@dataclass(frozen=True)
class Result:
    """What came of a request.

    Args:
        actions: (T, A) in the checkpoint's units; None when it failed.
        memory: to commit if the result is accepted.
        error: why it failed, in words.
        duration: seconds that the inference took.
    """

    request: Request
    actions: np.ndarray | None = None
    memory: Any = None
    error: str = ""
    duration: float = 0.0


@dataclass(frozen=True)
class Counters:
    inferences: int = 0
    accepted: int = 0
    dropped_epoch: int = 0
    dropped_late: int = 0
    failed: int = 0
    skipped_stale: int = 0
    skipped_missing: int = 0
    overruns: int = 0


class Episode:
    """State machine of one policy on one robot. Not thread-safe: one thread drives it.

    * :meth:`start`, :meth:`reset_memory` and :meth:`stop` begin a new epoch: nothing that was observed,
      remembered or inferred before is used after, and the motion under way is to be stopped.
    * :meth:`tick` asks for an inference on the memory clock, every ``n_action_steps`` control periods.
    * :meth:`accept` commits a result of the present epoch, exactly once, and drops any other.
    """

    def __init__(self, contract: Contract):
        self._contract = contract
        self.episode_id = 0
        self.epoch = 0
        self.task = ""
        self.running = False
        self.memory: Any = None
        self.step = 0
        self.last_reset = 0
        self.counters = Counters()
        self.reason = "no episode; call start_episode"
        self._segment: TrajectorySegment | None = None
        self._in_flight: Request | None = None
        self._due = 0

    # Commands. Each returns what stops the motion under way, or None when nothing moves. --------

    def start(self, task: str, now: int) -> TrajectorySegment | None:
        """Begin a new episode at ``now`` (ns) with an empty memory."""
        self.episode_id += 1
        self.task = task
        self.running = True
        return self._new_epoch(now, "waiting for the first observation")

    def reset_memory(self, now: int) -> TrajectorySegment | None:
        """Forget everything; the episode goes on."""
        return self._new_epoch(now, "memory was reset" if self.running else self.reason)

    def stop(self, now: int) -> TrajectorySegment | None:
        """End the episode; nothing is commanded any more."""
        self.running = False
        return self._new_epoch(now, "no episode; call start_episode")

    def _new_epoch(self, now: int, reason: str) -> TrajectorySegment | None:
        self.epoch += 1
        self.memory, self.step = None, 0
        self.last_reset = self._due = now
        self.reason = reason
        segment, self._segment = self._segment, None
        return hold(segment, now) if segment else None

    # The clock ----------------------------------------------------------------------------------

    def tick(self, now: int, buffer: ObservationBuffer) -> Request | Skip | None:
        """Call once per control period.

        Returns:
            A request to infer; or why there is none although one is due; or None when none is due.
        """
        # Half a period of grace, or a tick that comes a hair early would lose a whole one.
        if not self.running or now < self._due - self._contract.control_period // 2:
            return None
        if self._in_flight:
            return None
        observation = buffer.snapshot(now, self.task, not_before=self.last_reset)
        if isinstance(observation, Skip):
            stale = observation.kind is SkipKind.STALE
            self._count(skipped_stale=int(stale), skipped_missing=int(not stale))
            self.reason = observation.reason
            return observation
        # Keep the phase when on time; after a gap start a new one instead of catching up.
        late = now - self._due >= self._contract.control_period
        self._due = (now if late else self._due) + self._contract.memory_period
        self._in_flight = Request(observation, self.memory, self.episode_id, self.step, self.epoch, now)
        return self._in_flight

    def accept(self, result: Result, now: int) -> TrajectorySegment | None:
        """Take a result at ``now`` (ns).

        Returns:
            The motion to command; None when the result is dropped, which never moves the memory.

        Raises:
            ValueError: the result is not of the request under way.
        """
        if result.request is not self._in_flight:
            raise ValueError("this result was taken before, or its request was never made")
        self._in_flight = None
        self._count(inferences=1)
        if result.request.epoch != self.epoch:
            self._count(dropped_epoch=1)
            return None
        if result.actions is None:
            self._count(failed=1)
            self.reason = result.error
            return None
        chunk = Chunk(
            result.request.observation.stamp, result.actions, 1 / self._contract.fps, result.request.epoch
        )
        segment = to_segment(chunk, self._contract)
        if segment.end <= now:
            self._count(dropped_late=1)
            self.reason = (
                f"the chunk came too late: inference took {result.duration:.2f} s, "
                f"the chunk lasts {(segment.end - segment.stamp) / NANOSECONDS:.2f} s; "
                "use a faster device or a longer chunk"
            )
            return None
        overrun = now >= self._due
        self._count(accepted=1, overruns=int(overrun))
        self.memory = result.memory
        self.step += 1
        self.reason = "inference takes longer than n_action_steps control periods" if overrun else ""
        self._segment = segment
        return segment

    def _count(self, **increments: int) -> None:
        current = {name: getattr(self.counters, name) + by for name, by in increments.items()}
        self.counters = replace(self.counters, **current)
