# SPDX-License-Identifier: Apache-2.0
"""How smoothly the arm goes from one chunk to the next, and how close it keeps to the path."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from smolvla_mem_ros.evaluation.arm_bench import RATE, Write, by_joint, running_arm
from smolvla_mem_ros.evaluation.arm_limits import violations
from smolvla_mem_ros.evaluation.arm_path import IdealPath, Stream, Streamer, to_trajectory
from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.so100.arm import ArmConfig
from smolvla_mem_ros.so100.driver import ArmState

SPEED = 0.5  # share of the largest velocity that the path may use
WARM_UP = 2.0  # s in which the arm gets onto the path
LAGS = np.arange(0.0, 0.2, 0.001)  # s that are tried


def measure(
    seconds: float,
    stream: Stream,
    contract: Contract,
    seed: int,
    tick: Callable[[float], None] = lambda seconds: None,
) -> dict:
    """Streams chunks of a drawn path to an emulated arm for ``seconds``, and says how it followed.

    Args:
        tick: called now and then with the seconds since it was called before.
    """
    random = np.random.default_rng(seed)
    with running_arm(seed) as arm:
        begin = time.monotonic()
        path = IdealPath.draw(random, arm.config, SPEED, begin)
        with Streamer(path, stream, contract, random, lambda chunk: arm.loop.submit(to_trajectory(chunk))):
            while (left := begin + WARM_UP + seconds - time.monotonic()) > 0:
                time.sleep(min(0.1, left))
                tick(min(0.1, left) * seconds / (seconds + WARM_UP))
            # Before the loop ends, which writes once more.
            writes, states = list(arm.driver.writes), list(arm.driver.states)
        status = arm.loop.status
    found = violations(writes, arm.config).total
    writes = [w for w in writes if w.time >= begin + WARM_UP]
    states = [s for s in states if s.time >= begin + WARM_UP]
    return {
        **seams(writes, path, arm.config),
        **tracking(writes, states, path),
        "limit_violations": found,
        "clamped_cycles": status.clamped,
        "rejected": status.rejected,
    }


def seams(writes: Sequence[Write], path: IdealPath, config: ArmConfig) -> dict:
    """Velocity steps from one cycle to the next, at seams and inside chunks, in rad/s.

    A seam lasts from the write in which a chunk was taken until its blend is over; two cycles more are
    counted to it. ``ratio`` is the largest step there over the 99th percentile inside chunks, of the joint
    where that is worst. ``ratio_of_path`` is the same of the ideal path at the very same moments, which is
    what a follower without any seam would get: a largest value over a percentile is above 1 by itself.
    ``ratio_added`` counts only what is added to the path's own steps.
    """
    times = np.array([w.time for w in writes])
    positions = np.array([w.position for w in writes])
    taken = np.flatnonzero(np.diff([w.accepted for w in writes]) > 0) + 1
    latest = np.searchsorted(taken, np.arange(len(times)), side="right") - 1
    since = times - np.where(latest >= 0, times[taken[latest]], -np.inf)
    at_seam = since <= config.blend_time + 2 / RATE
    # After a lost connection the arm is held where it is, which is no seam.
    engagement = np.array([w.engagement for w in writes])
    counts = engagement[2:] == engagement[:-2]
    steps, ideal = velocity_steps(times, positions)[counts], velocity_steps(times, path.at(times)[0])[counts]
    at_seam = at_seam[2:][counts]

    def ratio(at_seams: np.ndarray, inside: np.ndarray) -> float:
        return round(float((at_seams[at_seam].max(axis=0) / _p99(inside[~at_seam])).max()), 3)

    return {
        "seams": len(taken),
        "connections_lost": int(engagement[-1] - engagement[0]),
        "ratio": ratio(steps, steps),
        "ratio_of_path": ratio(ideal, ideal),
        "ratio_added": ratio(np.abs(steps - ideal), steps),
        "largest_at_seam": by_joint(steps[at_seam].max(axis=0), 4),
        "p99_inside": by_joint(_p99(steps[~at_seam]), 4),
        "largest_inside": by_joint(steps[~at_seam].max(axis=0), 4),
    }


def velocity_steps(times: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(N - 2, 6) rad/s, from (N,) s and (N, 6) rad.

    A cycle that comes early or late sees a shorter or longer stretch of the same motion, so each step is
    brought to what it is in a period: jitter is measured elsewhere.
    """
    period = np.diff(times)[:, None]
    velocity = np.diff(positions, axis=0) / period
    between = (period[1:] + period[:-1]) / 2
    return np.abs(np.diff(velocity, axis=0)) / between / RATE


def _p99(values: np.ndarray) -> np.ndarray:
    """(6,) from (N, 6)."""
    return np.percentile(values, 99, axis=0)


def tracking(writes: Sequence[Write], states: Sequence[ArmState], path: IdealPath) -> dict:
    """How far from the path, in degrees: what was commanded, what was measured at the same moment, and what
    was measured a lag later, which is the one that fits best."""
    times = np.array([s.time for s in states])
    measured = np.array([s.position for s in states])
    commanded = np.array([w.position for w in writes]) - path.at([w.time for w in writes])[0]
    errors = [measured - path.at(times - lag)[0] for lag in LAGS]
    best = int(np.argmin([(e**2).mean() for e in errors]))
    return {
        "tracking_error_deg": _degrees(commanded),
        "measured_error_deg": _degrees(errors[0]),
        "servo_lag_ms": round(1000 * float(LAGS[best]), 1),
        "measured_error_without_lag_deg": _degrees(errors[best]),
    }


def _degrees(error: np.ndarray) -> dict[str, dict[str, float]]:
    """rms and max by joint, from (N, 6) rad."""
    degrees = np.degrees(error)
    return {
        "rms": by_joint(np.sqrt((degrees**2).mean(axis=0))),
        "max": by_joint(np.abs(degrees).max(axis=0)),
    }
