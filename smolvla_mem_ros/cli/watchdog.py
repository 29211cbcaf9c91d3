# SPDX-License-Identifier: Apache-2.0
"""Ends process groups when the process that started them is gone, however it went.

Started by :class:`smolvla_mem_ros.cli.processes.ProcessGroup` as a process of its own, with a pipe
for standard input. A line ``+ID`` adds a process group, ``-ID`` takes it out; the end of the pipe
means that the owner is gone, and then every group that is left is ended. Only the standard library is
used, so that it starts in a few milliseconds without ROS.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection

# What is sent, and how long a group has after it.
LADDER = ((signal.SIGINT, 3.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 1.0))


def send(group: int, number: int) -> bool:
    """Sends a signal to a process group; false when nothing of it is left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS says the second of a group of zombies
        return False
    return True


def ask(group: int) -> None:
    """SIGINT to the group's first process, which ends its own children; to all when it is gone."""
    try:
        os.kill(group, signal.SIGINT)
    except ProcessLookupError:
        send(group, signal.SIGINT)


def end_groups(
    groups: Collection[int],
    *,
    on_step: Callable[[int, int], None] = lambda group, number: None,
    reap: Callable[[], None] = lambda: None,
    hurry: Callable[[], bool] = lambda: False,
) -> None:
    """Climbs the ladder until none of ``groups`` is left, or the ladder ends.

    Args:
        groups: process group ids.
        on_step: called with (group, signal) for each signal after the first.
        reap: called before each look; a dead child counts as living until its parent has waited for it.
        hurry: asked while waiting; true goes on to the next rung at once.
    """
    left = set(groups)
    for number, patience in LADDER:
        for group in sorted(left):
            if number == signal.SIGINT:
                ask(group)
            elif send(group, number):
                on_step(group, number)
        deadline = time.monotonic() + patience
        while True:
            reap()
            left = {group for group in left if send(group, 0)}
            if not left:
                return
            if time.monotonic() > deadline or hurry():
                break
            time.sleep(0.02)


def main() -> None:
    # Whoever signals the owner's terminal must not end the one that cleans up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    end_groups(groups)


if __name__ == "__main__":
    main()
