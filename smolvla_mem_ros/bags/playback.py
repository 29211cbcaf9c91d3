# SPDX-License-Identifier: Apache-2.0
"""The time line of a playback: which message is due when, at what rate, and paused for how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator

from smolvla_mem_ros.bags.bag import Bag, Message
from smolvla_mem_ros.runtime.contract import NANOSECONDS


class Playback:
    """Hands out messages when they are due. One thread plays; any other may pause, resume and stop.

    Args:
        topics: of the bag; None plays all.
        rate: seconds of the bag in a second.
        start: seconds into the bag.
        loop: begin again at the end.
        clock: called with the bag's time (ns) ``clock_rate`` times a second, also while nothing is due.
    """

    def __init__(
        self,
        bag: Bag,
        topics: Collection[str] | None = None,
        *,
        rate: float = 1.0,
        start: float = 0.0,
        loop: bool = False,
        clock: Callable[[int], None] | None = None,
        clock_rate: float = 100.0,
    ) -> None:
        self._bag, self._topics, self._rate, self._loop = bag, topics, rate, loop
        self._start, self._clock, self._clock_period = start, clock, 1 / clock_rate
        self._running = threading.Event()
        self._running.set()
        self._stopped = threading.Event()
        self._zero = 0.0  # s on the monotonic clock at which the bag's time is _origin
        self._origin = 0  # ns
        self.lateness: float = 0.0  # s, of the message that was latest

    @property
    def paused(self) -> bool:
        return not self._running.is_set()

    def pause(self, paused: bool) -> None:
        if paused:
            self._running.clear()
        else:
            self._running.set()

    def stop(self) -> None:
        """Let the thread that plays come to its end."""
        self._stopped.set()
        self._running.set()

    def messages(self) -> Iterator[Message]:
        """Each message at its time; nothing any more after :meth:`stop`."""
        if self._bag.span is None:
            return
        begin = self._bag.span[0] + round(self._start * NANOSECONDS)
        while not self._stopped.is_set():
            self._origin, self._zero = begin, time.monotonic()
            played = False
            for message in self._bag.messages(self._topics, start=begin):
                if not self._wait_for(message.stamp):
                    return
                played = True
                yield message
            if not self._loop or not played:
                return

    def _wait_for(self, stamp: int) -> bool:
        """False when it was stopped."""
        while not self._stopped.is_set():
            if self.paused:
                began = time.monotonic()
                self._running.wait()
                self._zero += time.monotonic() - began
                continue
            now = time.monotonic()
            due = self._zero + (stamp - self._origin) / NANOSECONDS / self._rate
            if self._clock:
                at = min(stamp, self._origin + round((now - self._zero) * self._rate * NANOSECONDS))
                self._clock(at)
            if now >= due:
                self.lateness = max(self.lateness, now - due)
                return True
            left = due - now
            self._stopped.wait(min(left, self._clock_period) if self._clock else min(left, 0.1))
        return False
