# SPDX-License-Identifier: Apache-2.0
"""What may be asked of the control loop besides following a trajectory."""

from __future__ import annotations

from dataclasses import dataclass

from smolvla_mem_ros.so100.goals import Goal


@dataclass(frozen=True)
class EmergencyStop:
    """Hold the measured position, and reject trajectories from then on."""


@dataclass(frozen=True)
class ClearEmergencyStop:
    """Take trajectories again."""


@dataclass(frozen=True)
class SwitchTorque:
    """Hold the arm where it is, or let go of it."""

    on: bool


@dataclass(frozen=True)
class SpeedScaling:
    """Use at most this share of the velocity limits, above 0 and up to 1."""

    share: float


@dataclass(frozen=True)
class CancelGoal:
    """Hold the measured position, if this goal is the one under way."""

    goal: Goal


Request = EmergencyStop | ClearEmergencyStop | SwitchTorque | SpeedScaling | CancelGoal
