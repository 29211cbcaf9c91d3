# SPDX-License-Identifier: Apache-2.0
"""Keeps a stream of positions within the limits of position, velocity and acceleration."""

from __future__ import annotations

import numpy as np

from smolvla_mem_ros.so100.arm import ArmConfig

EXACT = 1e-9  # rad and rad/s; a difference that no limit has made


def limited(
    wanted: np.ndarray,
    wanted_rate: np.ndarray,
    position: np.ndarray,
    rate: np.ndarray,
    dt: float,
    config: ArmConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """One step towards a moving target, which is reached as soon as the limits allow, without overshoot.

    A target that itself keeps the limits is followed exactly. Of limits that contradict one another, position
    comes before acceleration; they only do so when the arm was found beyond them, or on its way there too
    fast.

    Args:
        wanted, wanted_rate: (6,) rad and rad/s, where the joints are to be after the step.
        position, rate: (6,) where they are told to be, and the mean velocity of the step before.
        dt: s, of this step, above zero.

    Returns:
        (6,) rad and rad/s: the new position, and the mean velocity of the step to it.
    """
    most = config.max_acceleration * dt  # that the rate may change by
    target = np.clip(wanted, config.lower, config.upper)
    target_rate = np.where(target == wanted, wanted_rate, 0.0)
    direct = (target - position) / dt
    # How much faster than the target the joint would have to be to reach it in this step. It is no faster
    # than it can stop in what is between them; what one change of the rate makes up for is closed at once.
    excess = direct - target_rate
    stoppable = _stopping(np.abs(excess) * dt, config.max_acceleration, dt)
    closing = np.maximum(stoppable, np.minimum(np.abs(excess), most))
    new = target_rate + np.sign(excess) * closing
    new = np.clip(new, rate - most, rate + most)
    # The largest velocity may have been made smaller just now.
    fastest = np.maximum(config.max_velocity * config.speed_scaling, np.abs(rate) - most)
    new = np.clip(new, -fastest, fastest)
    up = _stopping(config.upper - position, config.max_acceleration, dt)
    down = _stopping(position - config.lower, config.max_acceleration, dt)
    new = np.clip(new, -down, up)
    return np.where(np.abs(new - direct) < EXACT, target, position + new * dt), new


def _stopping(distance: np.ndarray, deceleration: np.ndarray, dt: float) -> np.ndarray:
    """The largest velocity of a step of ``dt`` after which there is still room to stop within ``distance``.

    It solves v dt + v^2 / (2 deceleration) = distance.
    """
    change = deceleration * dt
    return np.sqrt(change**2 + 2 * deceleration * np.maximum(distance, 0.0)) - change
