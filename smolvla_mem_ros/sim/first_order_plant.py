# SPDX-License-Identifier: Apache-2.0
"""The lightest body behind the emulated servos: each joint for itself, without MuJoCo or a scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from smolvla_mem_ros.sim.joint_servos import MAX_SPEED, JointServos
from smolvla_mem_ros.sim.servo import Servo
from smolvla_mem_ros.so100.arm import Calibration

LAG = 0.03  # s, time constant with which a joint nears its goal
FRICTION = 0.3  # load at full speed; a joint at rest carries nothing
STEP = 0.001  # s; less is not worth the work


class FirstOrderPlant:
    """A joint with torque on nears its goal with time constant LAG, no faster than it can.

    Args, attributes and methods are those of ``ArmPlant``, without a scene. The arm starts in the middle of
    its calibrated range, and ``reset`` puts it back there unless torque holds it.
    """

    def __init__(self, calibration: Calibration, servos: Sequence[Servo], clock: Callable[[], float]) -> None:
        self._joints = JointServos(calibration, servos)
        self._clock = clock
        self._start = calibration.ticks.to_radians((calibration.lower + calibration.upper) / 2)
        self._position = self._start.copy()
        self._time = clock()
        self.resets = 0
        self._measure(np.zeros_like(self._start), 0.0)

    @property
    def qpos(self) -> np.ndarray:
        """(J,) rad."""
        return self._position

    def reset(self) -> None:
        """The arm back to its start, unless torque holds it."""
        self.resets += 1
        if not self._joints.torque.any():
            self._position = self._start.copy()
        self._measure(np.zeros_like(self._start), 0.0)

    def advance(self) -> None:
        """Moves the joints up to the clock and updates the registers."""
        seconds = self._clock() - self._time
        if seconds < STEP:
            return
        self._time += seconds
        driven = (self._joints.torque > 0) & ~self._joints.stuck
        most = self._joints.max_speed * seconds
        step = np.clip((self._joints.goal - self._position) * -np.expm1(-seconds / LAG), -most, most)
        step = np.where(driven, step, 0.0)
        self._position = self._position + step
        self._measure(step / seconds, seconds)

    def _measure(self, velocity: np.ndarray, seconds: float) -> None:
        self._joints.measure(self._position, velocity, FRICTION * velocity / MAX_SPEED, seconds)
