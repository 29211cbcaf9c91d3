# SPDX-License-Identifier: Apache-2.0
"""The body behind the emulated servos: MuJoCo's physics, moving with a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from smolvla_mem_ros.sim.joint_servos import JointServos
from smolvla_mem_ros.sim.scene import HOME, Scene
from smolvla_mem_ros.sim.servo import Servo
from smolvla_mem_ros.so100.arm import Calibration

LONGEST_CATCH_UP = 0.5  # s; after a longer pause the simulation has stood still instead


class ArmPlant:
    """Drives the scene's arm the way its servos' registers say, and writes back what they measure.

    A servo with torque on moves its target to the goal no faster than it can; one with torque off, or
    stuck, stays where it is by the friction of its gears.

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
        self._joints = JointServos(calibration, servos)
        self._strength = scene.model.actuator_forcerange.copy()
        self._clock = clock
        self._rng = None if seed is None else np.random.default_rng(seed)
        self.resets = 0
        self._start(HOME)

    @property
    def qpos(self) -> np.ndarray:
        """(nq,) all joint positions of the scene's model."""
        return self._scene.data.qpos

    def reset(self) -> None:
        """Blocks back to their places, and the arm too, unless torque holds it: then it is its driver's."""
        self.resets += 1
        self._start(self._scene.arm_position if self._joints.torque.any() else HOME)

    def _start(self, arm: Sequence[float]) -> None:
        self._scene.reset(self._rng, arm)
        self._target = self._scene.arm_position
        self._time = self._clock()
        self._measure(0.0)

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
        torque, most = self._joints.torque, self._joints.max_speed * step
        driven = (torque > 0) & ~self._joints.stuck
        model, data = self._scene.model, self._scene.data
        model.actuator_forcerange[:] = self._strength * np.where(driven, torque, 1.0)[:, None]
        held = np.where(driven, self._joints.goal, self._target)
        for _ in range(steps):
            self._target += np.clip(held - self._target, -most, most)
            data.ctrl[:] = self._target
            mujoco.mj_step(model, data)
        self._measure(steps * step)

    def _measure(self, seconds: float) -> None:
        scene = self._scene
        load = scene.data.actuator_force / self._strength[:, 1]
        # What the gears hold is no work of the motor's.
        load = np.where(self._joints.torque > 0, load, 0.0)
        self._joints.measure(scene.arm_position, scene.arm_velocity, load, seconds)
