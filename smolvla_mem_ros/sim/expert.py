# SPDX-License-Identifier: Apache-2.0
"""A scripted expert for the memory tasks, which knows the trial's secret.

It moves REACTION frames after what it reacts to, which is as long as the chunks that are trained on it. So no
chunk depends on what has not been seen yet. With a shorter one a policy is taught to foretell the go lamp by
counting the frames since the cue, and to go without it when it has waited for longer than ever before.
"""

from __future__ import annotations

import functools

import mujoco
import numpy as np

from smolvla_mem_ros.sim.scene import HOME, Scene
from smolvla_mem_ros.sim.tasks import BUTTON, PLACES, REACTION, Referee
from smolvla_mem_ros.so100.arm import LEROBOT_UNITS

REACH = 14  # frames from home to a pad, and from a place to the button and back
LIFT = 6  # frames up from a pad, and down to the next
CROSS = 12  # frames from above one pad to above another

PRESSED = 0.02  # m, height of the tip
HOVER = 0.11
_BODY = slice(0, 4)  # the joints that move the tip; roll and gripper stay as they are at home


def press_pose(scene: Scene, place: tuple[float, float], height: float = PRESSED) -> np.ndarray:
    """(6,) rad with the tip at ``height`` over ``place``."""
    return np.array(_solve(scene.model, (*place, height)))


def rest_pose(scene: Scene, place: str | None) -> np.ndarray:
    """(6,) rad where a trial starts: hovering over ``place``, or at home."""
    return np.array(HOME) if place is None else press_pose(scene, PLACES[place], HOVER)


@functools.lru_cache(maxsize=64)
def _solve(model: mujoco.MjModel, target: tuple[float, float, float]) -> tuple[float, ...]:
    """Joints, (6,) rad, that bring the tip to ``target``: damped least squares from home.

    Raises:
        ValueError: the arm does not reach there.
    """
    data = mujoco.MjData(model)
    tip, ids = model.site("tip").id, model.actuator_trnid[:, 0]
    position, velocity = model.jnt_qposadr[ids], model.jnt_dofadr[ids]
    low, high = model.jnt_range[ids].T
    joints = np.array(HOME)
    joints[0] = -np.arctan2(target[1], target[0])
    jacobian = np.zeros((3, model.nv))
    for _ in range(200):
        data.qpos[position] = joints
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        error = np.array(target) - data.site_xpos[tip]
        if np.linalg.norm(error) < 5e-4:
            return tuple(joints)
        mujoco.mj_jacSite(model, data, jacobian, None, tip)
        a = jacobian[:, velocity[_BODY]]
        step = a.T @ np.linalg.solve(a @ a.T + 1e-4 * np.eye(3), error)
        joints[_BODY] = np.clip(joints[_BODY] + np.clip(step, -0.2, 0.2), low[_BODY], high[_BODY])
    raise ValueError(f"the arm cannot bring its tip to {target}")


class Expert:
    """Plays one trial: :meth:`act` once per frame, before the world's step."""

    def __init__(self, scene: Scene, referee: Referee) -> None:
        self._scene, self._referee = scene, referee
        self._pose = rest_pose(scene, referee.trial.start)
        self._plan: list[np.ndarray] = []
        self._gone = False
        if referee.trial.button:
            self._move(press_pose(scene, BUTTON), REACH)

    def act(self) -> np.ndarray:
        """(6,) the action of this frame, in LeRobot's units."""
        referee = self._referee
        if not self._gone and referee.go is not None and referee.frame >= referee.go + REACTION:
            self._gone = True
            self._plan_goals()
        if self._plan:
            self._pose = self._plan.pop(0)
        return LEROBOT_UNITS.from_radians(self._pose)

    def _plan_goals(self) -> None:
        trial = self._referee.trial
        if trial.button:
            self._move(rest_pose(self._scene, trial.goals[0]), REACH)
            return
        for number, goal in enumerate(trial.goals):
            place = PLACES[goal]
            if number:
                self._move(self._pose_at_end(), LIFT)  # rest on the pad until the press has counted
                self._move(press_pose(self._scene, PLACES[trial.goals[number - 1]], HOVER), LIFT)
                self._move(press_pose(self._scene, place, HOVER), CROSS)
            self._move(press_pose(self._scene, place), LIFT if number else REACH)

    def _pose_at_end(self) -> np.ndarray:
        return self._plan[-1] if self._plan else self._pose

    def _move(self, pose: np.ndarray, frames: int) -> None:
        """Add a minimum-jerk motion (Flash and Hogan, 1985)."""
        u = np.arange(1, frames + 1)[:, None] / frames
        start = self._pose_at_end()
        self._plan += list(start + (pose - start) * (10 * u**3 - 15 * u**4 + 6 * u**5))
