# SPDX-License-Identifier: Apache-2.0
"""How soon an emergency stop ends a motion."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from smolvla_mem_ros.evaluation.arm_bench import RATE, Bench, Write, running_arm
from smolvla_mem_ros.evaluation.arm_path import IdealPath, Stream, to_trajectory
from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.so100.requests import ClearEmergencyStop, EmergencyStop
from smolvla_mem_ros.units import NANOSECONDS

SPEED = 0.5  # share of the largest velocity that the path may use
MOVING = 0.05, 0.25  # s for which the arm moves before it is stopped
AFTER = 0.03  # s in which nothing may move the arm any more
ANSWER = 1.0  # s that a request may take


def measure(trials: int, contract: Contract, seed: int, tick: Callable[[], None] = lambda: None) -> dict:
    """Stops an emulated arm ``trials`` times while it moves, each at a moment drawn anew.

    Returns:
        ``last_motion_ms``: from the request to the last write that took the arm further along its path, 0
        when there was none; ``held_ms``: to the write that told it to stay where it was measured;
        ``late``: trials in which the former took longer than a period.
    """
    random = np.random.default_rng(seed)
    last, held = [], []
    with running_arm(seed) as arm:
        path = IdealPath.draw(random, arm.config, SPEED, time.monotonic())
        for _ in range(trials):
            asked, writes = _stop_once(arm, path, contract, random)
            motion, hold = delays(asked, writes)
            last.append(motion)
            held.append(hold)
            tick()
        exceptions = len(arm.exceptions)
    return {
        "trials": trials,
        "last_motion_ms": _spread(last),
        "held_ms": _spread(held),
        "late": int((np.array(last) > 1 / RATE).sum()),
        "exceptions": exceptions,
    }


def _stop_once(
    arm: Bench, path: IdealPath, contract: Contract, random: np.random.Generator
) -> tuple[float, list[Write]]:
    """When the stop was asked for, and what was written from the moment before until it was over.

    Raises:
        RuntimeError: the arm did not move, or the request was not answered.
    """
    arm.loop.request(ClearEmergencyStop()).result(ANSWER)
    chunk = Stream().chunk(path, round(time.monotonic() * NANOSECONDS), contract, random)
    before = arm.loop.status.accepted
    arm.loop.submit(to_trajectory(chunk))
    deadline = time.monotonic() + ANSWER
    while arm.loop.status.accepted == before:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the arm takes no trajectory: {arm.loop.status.last_rejection}")
        time.sleep(0.001)
    time.sleep(random.uniform(*MOVING))
    begin = len(arm.driver.writes) - 2
    asked = time.monotonic()
    arm.loop.request(EmergencyStop()).result(ANSWER)
    time.sleep(AFTER)
    writes = arm.driver.writes[begin:]
    if np.array_equal(writes[0].position, writes[1].position):
        raise RuntimeError("the arm did not move when it was to be stopped")
    return asked, writes


def delays(asked: float, writes: Sequence[Write]) -> tuple[float, float]:
    """Seconds from ``asked`` to the end of the last write before the arm is held, and of that which holds it.

    Only the last position may be repeated: a write after it that differs is motion again.
    """
    final = writes[-1].position
    moving = [w.done for w in writes if not np.array_equal(w.position, final)]
    last = max(moving, default=asked)
    hold = min(w.done for w in writes if w.done > last)
    return max(0.0, last - asked), hold - asked


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    ms = 1000 * np.array(seconds)
    values = (*np.percentile(ms, (50, 99)), ms.max())
    return {name: round(float(v), 3) for name, v in zip(("p50", "p99", "max"), values, strict=True)}
