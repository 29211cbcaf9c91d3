# SPDX-License-Identifier: Apache-2.0
"""Whether what was written to the servos kept the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from smolvla_mem_ros.evaluation.arm_bench import Write
from smolvla_mem_ros.so100.arm import ArmConfig
from smolvla_mem_ros.so100.driver import HOLDING_TOLERANCE
from smolvla_mem_ros.so100.follower import LONGEST_STEP

ROUNDING = 1e-6  # rad, rad/s and rad/s^2, of the arithmetic here


@dataclass(frozen=True)
class Violations:
    """Writes that broke a limit.

    Args:
        not_finite: a position is no number.
        position: beyond the limits.
        velocity: a step longer than the largest velocity covers in its time.
        acceleration: the mean velocity of a step differs from that of the one before by more than the
            largest acceleration allows in its time.
        jump: the first write after torque was switched on is off the measured position by more than an arm
            that is held may be off its goal.
    """

    not_finite: int
    position: int
    velocity: int
    acceleration: int
    jump: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def violations(writes: Sequence[Write], config: ArmConfig) -> Violations:
    """Counts them.

    A write that tells a joint to be exactly where it was just measured is a hold (an emergency stop, torque
    that comes back, a time-out, a servo that has let go). The joint's steps are counted from it anew, as from
    the first write after torque was switched on.
    """
    if not writes:
        return Violations(0, 0, 0, 0, 0)
    time = np.array([w.time for w in writes])
    position = np.array([w.position for w in writes])
    measured = np.array([w.measured for w in writes])
    engagement = np.array([w.engagement for w in writes])
    finite = np.isfinite(position).all(axis=1)
    position = np.where(finite[:, None], position, measured)

    beyond = ((position < config.lower - ROUNDING) | (position > config.upper + ROUNDING)).any(axis=1)
    begins = np.concatenate([[True], np.diff(engagement) > 0])
    off = np.abs(position - measured)
    anew = begins[:, None] | (off == 0)
    # Longer than LONGEST_STEP the follower pauses, and then goes on as after that.
    seconds = np.clip(np.diff(time), ROUNDING, LONGEST_STEP)[:, None]
    rate = np.diff(position, axis=0) / seconds
    fast = (np.abs(rate) > config.max_velocity + ROUNDING) & ~anew[1:]
    # The first step after a hold starts from rest; the first write with torque may itself be a step.
    before = np.where(anew[1:-1], 0.0, rate[:-1])
    most = config.max_acceleration * seconds[1:]
    sudden = (np.abs(rate[1:] - before) > most + ROUNDING) & ~anew[2:] & ~begins[1:-1, None]
    return Violations(
        int((~finite).sum()),
        int(beyond.sum()),
        int(fast.any(axis=1).sum()),
        int(sudden.any(axis=1).sum()),
        int((off[begins].max(axis=1) > HOLDING_TOLERANCE).sum()),
    )
