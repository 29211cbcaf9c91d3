# SPDX-License-Identifier: Apache-2.0
"""The arm in a memory task: physics, cameras and referee, frame by frame."""

from __future__ import annotations

import mujoco
import numpy as np

from smolvla_mem_ros.sim.cameras import Cameras
from smolvla_mem_ros.sim.expert import rest_pose
from smolvla_mem_ros.sim.scene import ASSETS, Scene
from smolvla_mem_ros.sim.tasks import FPS, Referee, Rgb, Trial
from smolvla_mem_ros.so100.arm import LEROBOT_UNITS

CAMERAS = ("front", "wrist")
MEMORY_SCENE = ASSETS / "memory.xml"
START_JITTER = np.deg2rad(2.0)  # rad, standard deviation of each joint at the start


def paint(model: mujoco.MjModel, colours: dict[str, Rgb | None]) -> None:
    """Give the things in the memory scene their colours; None makes one invisible."""
    for name, colour in colours.items():
        model.geom(name).rgba = (*colour, 1.0) if colour else (0.0, 0.0, 0.0, 0.0)


class World:
    """One arm in one task at a time. Use it from one thread, and close it (or use ``with``).

    Args:
        width, height: pixels of a picture.
    """

    def __init__(self, width: int = 64, height: int = 48) -> None:
        self.scene = Scene(MEMORY_SCENE)
        self._cameras = Cameras(self.scene.model, CAMERAS, width, height)
        self._tip = self.scene.model.site("tip").id
        self.referee: Referee | None = None

    def reset(self, trial: Trial, rng: np.random.Generator) -> None:
        """Begin ``trial``; the arm starts at rest, START_JITTER off its place by ``rng``."""
        start = rest_pose(self.scene, trial.start) + rng.normal(0, START_JITTER, len(self.scene.joints))
        self.scene.reset(arm=start)
        self.referee = Referee(trial)

    def step(self, action: np.ndarray) -> None:
        """One frame, in which the servos' targets move evenly to ``action``, (6,) in LeRobot's units."""
        data = self.scene.data
        low, high = self.scene.model.actuator_ctrlrange.T
        target = np.clip(LEROBOT_UNITS.to_radians(action), low, high)
        before = data.ctrl.copy()
        end = (self.referee.frame + 1) / FPS
        steps = round((end - data.time) / self.scene.model.opt.timestep)
        for step in range(1, steps + 1):
            data.ctrl[:] = before + (target - before) * (step / steps)
            mujoco.mj_step(self.scene.model, data)
        mujoco.mj_kinematics(self.scene.model, data)
        self.referee.step(data.site_xpos[self._tip])

    @property
    def state(self) -> np.ndarray:
        """(6,) float32, the joints in LeRobot's units."""
        return LEROBOT_UNITS.from_radians(self.scene.arm_position).astype(np.float32)

    def pictures(self) -> dict[str, np.ndarray]:
        """camera -> (height, width, 3) uint8 RGB of this moment."""
        paint(self.scene.model, self.referee.colours)
        self.scene.show(self.scene.data.qpos)
        return {name: self._cameras.render(self.scene.data, name) for name in CAMERAS}

    def close(self) -> None:
        """Safe to call twice."""
        self._cameras.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
