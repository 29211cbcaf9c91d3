# SPDX-License-Identifier: Apache-2.0
"""How the system schedules a thread."""

from __future__ import annotations

import os


def schedule(realtime_priority: int = 0, cpu: int | None = None) -> list[str]:
    """Ask for real-time scheduling (SCHED_FIFO) and a processor for the calling thread.

    Args:
        realtime_priority: 1 to 99; 0 leaves it as it is.
        cpu: number of the processor; None for any.

    Returns:
        What the system refused, with what to do; the thread then goes on as it was.
    """
    problems = []
    if realtime_priority:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(realtime_priority))
        except OSError as error:
            problems.append(
                f"no real-time priority {realtime_priority} ({error.strerror}); permit it in "
                "/etc/security/limits.conf (@realtime - rtprio 99), or set realtime_priority to 0"
            )
    if cpu is not None:
        try:
            os.sched_setaffinity(0, {cpu})
        except OSError as error:
            there = sorted(os.sched_getaffinity(0))
            problems.append(f"cannot keep to processor {cpu} ({error.strerror}); there are {there}")
    return problems
