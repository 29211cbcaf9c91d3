# SPDX-License-Identifier: Apache-2.0
"""What an SO-100/101 arm is: joints, units, limits, and its calibration file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from smolvla_mem_ros.units import JointUnits

# LeRobot's names and order; the servos' ids on the bus are 1 to 6.
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")

# rad, where LeRobot's gripper is at 0 and at 100.
GRIPPER_CLOSED, GRIPPER_OPEN = -0.1745, 1.7453

# LeRobot's units: degrees about the calibrated middle for the body, 0-100 for the gripper.
LEROBOT_UNITS = JointUnits.stack(
    [JointUnits.degrees()] * 5 + [JointUnits.percent(GRIPPER_CLOSED, GRIPPER_OPEN)]
)

# rad. The ranges of the SO-101 under LeRobot's calibration (zero at mid-range).
DEFAULT_LOWER = (-1.92, -1.745, -1.69, -1.658, -2.744, GRIPPER_CLOSED)
DEFAULT_UPPER = (1.92, 1.745, 1.69, 1.658, 2.841, GRIPPER_OPEN)

# rad/s. An STS3215 turns at 45 rpm (4.7 rad/s) without load; two thirds of that leaves it the
# strength to follow what it is told while it carries the arm.
DEFAULT_MAX_VELOCITY = (3.0,) * len(JOINTS)

# rad/s^2. LeRobot sets the servos' own acceleration to its largest, 254 x 100 ticks/s^2 (39 rad/s^2); three
# quarters of that are asked for, so that the servo does what it is told when it is told.
DEFAULT_MAX_ACCELERATION = (30.0,) * len(JOINTS)

TICKS = 4096  # of the servo's encoder, per turn
RADIANS_PER_TICK = 2 * np.pi / (TICKS - 1)  # LeRobot's scale: 360 degrees are 4095 ticks


@dataclass(frozen=True)
class ArmConfig:
    """Limits that every command is kept within, in the order of JOINTS.

    Args:
        lower, upper: (6,) rad.
        max_velocity: (6,) rad/s.
        max_acceleration: (6,) rad/s^2.
        allow_partial: whether a trajectory may leave joints out (they stay where they were last told to be).
        blend_time: s, how long a new trajectory takes to take over from the one before.
        speed_scaling: the share of ``max_velocity`` that may be used, above 0 and up to 1.

    Raises:
        ValueError: a value does not make sense; names every one of them.
    """

    lower: np.ndarray = DEFAULT_LOWER
    upper: np.ndarray = DEFAULT_UPPER
    max_velocity: np.ndarray = DEFAULT_MAX_VELOCITY
    max_acceleration: np.ndarray = DEFAULT_MAX_ACCELERATION
    allow_partial: bool = False
    blend_time: float = 0.2
    speed_scaling: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "max_velocity", "max_acceleration"):
            value = np.asarray(getattr(self, name), float)
            if value.shape != (len(JOINTS),):
                raise ValueError(f"{name} must have {len(JOINTS)} values, not shape {value.shape}")
            object.__setattr__(self, name, value)
        problems = [
            f"{joint}: the lower limit {low:g} must be below the upper limit {high:g}"
            for joint, low, high in zip(JOINTS, self.lower, self.upper, strict=True)
            if not low < high
        ]
        for what in ("velocity", "acceleration"):
            problems += [
                f"{joint}: the largest {what} {value:g} must be above zero"
                for joint, value in zip(JOINTS, getattr(self, f"max_{what}"), strict=True)
                if not 0 < value < np.inf
            ]
        if not 0 < self.blend_time < np.inf:
            problems.append(f"the blend time {self.blend_time:g} s must be above zero")
        if not 0 < self.speed_scaling <= 1:
            problems.append(f"the speed scaling {self.speed_scaling:g} must be above zero and at most one")
        if problems:
            raise ValueError("; ".join(problems))

    def within(self, lower: np.ndarray, upper: np.ndarray) -> ArmConfig:
        """The same, with limits no wider than ``lower`` and ``upper``, (6,) rad."""
        return replace(self, lower=np.maximum(self.lower, lower), upper=np.minimum(self.upper, upper))


class CalibrationError(Exception):
    """The calibration file is missing, or not one; says what is wrong."""


@dataclass(frozen=True)
class Calibration:
    """A LeRobot calibration, in the order of JOINTS, in encoder ticks.

    Args:
        offset: (6,) what the servo takes off its own reading.
        lower, upper: (6,) the joint's range, after the offset.
        inverted: (6,) bool, LeRobot's drive mode; it turns the gripper's 0-100 round.
    """

    offset: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    inverted: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads LeRobot's ``<calibration_dir>/<id>.json``.

        Raises:
            CalibrationError: there is no such file, or it does not hold the six joints of this arm.
        """
        try:
            content = json.loads(Path(path).read_text())
        except OSError as error:
            raise CalibrationError(f"cannot read the calibration file {path} ({error.strerror})") from error
        except ValueError as error:
            raise CalibrationError(f"the calibration file {path} is not JSON ({error})") from error
        return cls.from_lerobot(content, path)

    @classmethod
    def from_lerobot(cls, content: object, path: Path) -> Calibration:
        """``content`` is what the JSON file at ``path`` holds. Raises CalibrationError like ``load``."""
        name = f"the calibration file {path}"
        rows = []
        for number, joint in enumerate(JOINTS, start=1):
            entry = content.get(joint) if isinstance(content, Mapping) else None
            if not isinstance(entry, Mapping):
                raise CalibrationError(f"{name} has no joint {joint}")
            keys = ("homing_offset", "range_min", "range_max", "drive_mode", "id")
            values = [entry.get(key) for key in keys]
            if wrong := [k for k, v in zip(keys, values, strict=True) if type(v) is not int]:
                raise CalibrationError(f"{name}: {joint} needs a whole number {wrong[0]}")
            offset, low, high, inverted, servo = values
            if servo != number:
                raise CalibrationError(f"{name}: {joint} must be servo {number}, not {servo}")
            if not 0 <= low < high < TICKS:
                raise CalibrationError(f"{name}: {joint} has no range in {low}..{high}")
            rows.append((offset, low, high, inverted))
        offset, lower, upper, inverted = np.array(rows).T
        return cls(offset, lower, upper, inverted.astype(bool))

    @property
    def ticks(self) -> JointUnits:
        """From radians to ticks (after the offset), the way LeRobot does it."""
        middle = (self.lower + self.upper) / 2
        joints = [JointUnits([1 / RADIANS_PER_TICK], [m]) for m in middle[:-1]]
        span = self.upper[-1] - self.lower[-1]
        ends = (GRIPPER_OPEN, GRIPPER_CLOSED) if self.inverted[-1] else (GRIPPER_CLOSED, GRIPPER_OPEN)
        per_radian = span / (ends[1] - ends[0])
        joints.append(JointUnits([per_radian], [self.lower[-1] - ends[0] * per_radian]))
        return JointUnits.stack(joints)

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """(6,) and (6,) rad: the ends of the calibrated ranges."""
        ends = np.stack([self.ticks.to_radians(self.lower), self.ticks.to_radians(self.upper)])
        return ends.min(axis=0), ends.max(axis=0)
