# SPDX-License-Identifier: Apache-2.0
"""An arm's servos as its physics sees them: joints in radians, torque, supply and heat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smolvla_mem_ros.sim.servo import NOMINAL_VOLTAGE, Measurement, Servo
from smolvla_mem_ros.so100.arm import Calibration

MAX_SPEED = 4.7  # rad/s: 45 rpm, what an STS3215 reaches without load
PUSH = 0.07  # rad that a blocked servo is off its goal when it pushes with all it has
ROOM = 30.0  # degrees Celsius
STALL_RISE = 50.0  # K above the room where a servo ends up that pushes with all it has
HEAT_TIME = 300.0  # s, time constant of that


class JointServos:
    """Reads what the servos' registers ask for, and writes back what they measure.

    Args:
        calibration: how the servos are mounted: ticks to radians.
        servos: in the order of the arm's joints.
    """

    def __init__(self, calibration: Calibration, servos: Sequence[Servo]) -> None:
        self._ticks, self._mounting, self._servos = calibration.ticks, calibration.offset, servos
        self._celsius = np.full(len(servos), ROOM)

    @property
    def goal(self) -> np.ndarray:
        """(J,) rad."""
        return self._ticks.to_radians(np.array([s.goal for s in self._servos]) - self._mounting)

    @property
    def torque(self) -> np.ndarray:
        """(J,) 0 to 1, the share of its torque that each servo may use now."""
        return np.array([s.torque for s in self._servos])

    @property
    def stuck(self) -> np.ndarray:
        """(J,) bool."""
        return np.array([s.stuck for s in self._servos])

    @property
    def max_speed(self) -> np.ndarray:
        """(J,) rad/s; a motor turns as fast as its voltage lets it."""
        return np.array([MAX_SPEED * min(s.supply / NOMINAL_VOLTAGE, 1.0) for s in self._servos])

    def measure(self, position: np.ndarray, velocity: np.ndarray, load: np.ndarray, seconds: float) -> None:
        """The servos take over what the physics did in the last ``seconds``.

        Args:
            position: (J,) rad.
            velocity: (J,) rad/s.
            load: (J,) -1 to 1, as if no servo were stuck.
        """
        torque = self.torque
        push = np.clip((self.goal - position) / PUSH, -torque, torque)
        load = np.where(self.stuck, push, load)
        settled = ROOM + STALL_RISE * load**2
        self._celsius += (settled - self._celsius) * -np.expm1(-seconds / HEAT_TIME)
        ticks, rate = self._ticks.from_radians(position) + self._mounting, velocity * self._ticks.scale
        rows = np.stack([ticks, rate, load, self._celsius], axis=1).tolist()
        for servo, (*row, celsius) in zip(self._servos, rows, strict=True):
            hot = celsius if servo.forced_celsius is None else servo.forced_celsius
            servo.measure(Measurement(*row, servo.supply, hot), seconds)
