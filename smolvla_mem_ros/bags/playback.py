# SPDX-License-Identifier: Apache-2.0
"""The time line of a playback: which message is due when, at what rate, and paused for how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator

from smolvla_mem_ros.bags.bag import Bag, Message
from smolvla_mem_ros.units import NANOSECONDS


class Playback:
    """Hands out messages when they are due. One thread plays; any other may pause, resume and stop.

    Args:
        topics: of the bag; None plays all.
        rate: seconds of the bag in a second.
        start: seconds into the bag.
        loop: begin again at the end.
        clock: called with the bag's time (ns) ``clock_rate`` times a second, also while nothing is due or
            it is paused.
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
        self._start, self._clock, self._period = start, clock, 1 / clock_rate
        self._paused = False
        self._stopped = threading.Event()
        self.lateness: float = 0.0  # s, of the message that was latest

    def pause(self, paused: bool) -> None:
        self._paused = paused

    def stop(self) -> None:
        """Let the thread that plays come to its end."""
        self._stopped.set()

    def messages(self) -> Iterator[Message]:
        """Each message at its time; nothing any more after :meth:`stop`."""
        if self._bag.span is None:
            return
        begin = self._bag.span[0] + round(self._start * NANOSECONDS)
        while not self._stopped.is_set():
            self._begin, self._elapsed, self._seen = begin, 0.0, time.monotonic()
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
            now = time.monotonic()
            # Seconds of the bag, not a time to wait for: so a pause or a late message needs no correction.
            self._elapsed += 0.0 if self._paused else (now - self._seen) * self._rate
            self._seen = now
            if self._clock:
                self._clock(min(stamp, self._begin + round(self._elapsed * NANOSECONDS)))
            due = ((stamp - self._begin) / NANOSECONDS - self._elapsed) / self._rate
            if due <= 0 and not self._paused:
                self.lateness = max(self.lateness, -due)
                return True
            self._stopped.wait(self._period if self._paused else min(due, self._period))
        return False
