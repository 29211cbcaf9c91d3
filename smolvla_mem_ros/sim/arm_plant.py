# SPDX-License-Identifier: Apache-2.0
"""The body behind the emulated servos: MuJoCo's physics, moving with a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from smolvla_mem_ros.sim.scene import HOME, Scene
from smolvla_mem_ros.sim.servo_bus import Servo
from smolvla_mem_ros.so100.arm import Calibration

MAX_SPEED = 4.7  # rad/s: 45 rpm, what an STS3215 reaches without load
LONGEST_CATCH_UP = 0.5  # s; after a longer pause the simulation has stood still instead


class ArmPlant:
    """Drives the scene's arm the way its servos' registers say, and writes back what they measure.

    A servo with torque on moves its target to the goal no faster than MAX_SPEED; one with torque off
    stays where it is by the friction of its gears.

    Args:
        scene: stepped by this object alone.
        calibration: how the servos are mounted: ticks to radians.
        servos: in the order of the scene's joints.
        clock: s, monotonic.
        seed: for where the blocks lie after a reset; None for their nominal places.
    """

    def __init__(
        self,
        scene: Scene,
        calibration: Calibration,
        servos: Sequence[Servo],
        clock: Callable[[], float],
        seed: int | None = None,
    ) -> None:
        self._scene = scene
        self._ticks = calibration.ticks
        self._mounting = calibration.offset
        self._servos = servos
        self._clock = clock
        self._rng = None if seed is None else np.random.default_rng(seed)
        self.resets = 0
        self._start(HOME)

    def reset(self) -> None:
        """Blocks back to their places, and the arm too, unless torque holds it: then it is its driver's."""
        self.resets += 1
        held = any(servo["Torque_Enable"] == 1 for servo in self._servos)
        self._start(self._scene.arm_position if held else HOME)

    def _start(self, arm: Sequence[float]) -> None:
        self._scene.reset(self._rng, arm)
        self._target = self._scene.arm_position
        self._time = self._clock()
        self._measure()

    def advance(self) -> None:
        """Steps the physics up to the clock and updates the registers."""
        now = self._clock()
        step = self._scene.model.opt.timestep
        if now - self._time > LONGEST_CATCH_UP:
            self._time = now - step
        steps = int((now - self._time) / step)
        if steps < 1:
            return
        self._time += steps * step
        goal = self._ticks.to_radians(np.array([s.goal for s in self._servos]) - self._mounting)
        powered = np.array([s["Torque_Enable"] == 1 for s in self._servos])
        data = self._scene.data
        held = np.where(powered, goal, self._target)
        for _ in range(steps):
            self._target += np.clip(held - self._target, -MAX_SPEED * step, MAX_SPEED * step)
            data.ctrl[:] = self._target
            mujoco.mj_step(self._scene.model, data)
        self._measure()

    def _to_ticks(self, radians: np.ndarray) -> np.ndarray:
        return self._ticks.from_radians(radians) + self._mounting

    def _measure(self) -> None:
        ticks = self._to_ticks(self._scene.arm_position)
        speed = self._scene.arm_velocity * self._ticks.scale
        limit = self._scene.model.actuator_forcerange[:, 1]
        load = self._scene.data.actuator_force / limit
        for servo, *values in zip(self._servos, ticks, speed, load, strict=True):
            servo.set_present(*values)
