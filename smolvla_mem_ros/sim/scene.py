# SPDX-License-Identifier: Apache-2.0
"""The simulated SO-100 on its table: load it, put it back to its start, read and set the arm's joints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np

from smolvla_mem_ros.so100.arm import JOINTS

ASSETS = Path(__file__).parent / "assets"
TABLETOP = ASSETS / "tabletop.xml"

# rad, in actuator order: gripper half open above the table, seen by both cameras and clear of everything.
HOME = (0.0, -0.6, 0.5, 1.1, -1.57, 0.5)

BLOCK_JITTER = 0.02  # m, each way along x and y


class Scene:
    """A MuJoCo model and its state, with the arm's joints by index.

    Attributes:
        model, data: MuJoCo's; whoever holds the scene may step them.
        joints: names of the arm's joints, in actuator order (LeRobot's order).
        qpos_index, dof_index: (J,) where these joints live in ``data.qpos`` and ``data.qvel``.
    """

    def __init__(self, path: Path = TABLETOP) -> None:
        """Raises ValueError when MuJoCo cannot compile the file at ``path``, or no SO-100 is in it."""
        self.model = mujoco.MjModel.from_xml_path(str(path))
        self.data = mujoco.MjData(self.model)
        ids = self.model.actuator_trnid[:, 0]
        self.joints = tuple(self.model.joint(i).name for i in ids)
        if self.joints != JOINTS:
            raise ValueError(f"{path} moves {', '.join(self.joints) or 'nothing'}, not {', '.join(JOINTS)}")
        self.qpos_index = self.model.jnt_qposadr[ids]
        self.dof_index = self.model.jnt_dofadr[ids]
        self._blocks = self.model.jnt_qposadr[self.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
        self.reset()

    @property
    def arm_position(self) -> np.ndarray:
        """(J,) rad, a copy."""
        return self.data.qpos[self.qpos_index]

    @property
    def arm_velocity(self) -> np.ndarray:
        """(J,) rad/s, a copy."""
        return self.data.qvel[self.dof_index]

    def reset(self, rng: np.random.Generator | None = None, arm: Sequence[float] = HOME) -> None:
        """Arm to ``arm``, (J,) rad, held there; blocks to their places, or by ``rng`` BLOCK_JITTER off."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self.qpos_index] = arm
        self.data.ctrl[:] = arm
        if rng is not None:
            for start in self._blocks:
                self.data.qpos[start : start + 2] += rng.uniform(-BLOCK_JITTER, BLOCK_JITTER, 2)
        mujoco.mj_forward(self.model, self.data)

    def show(self, qpos: np.ndarray) -> None:
        """Take over the positions of every joint, (nq,), from elsewhere, ready to be rendered."""
        self.data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
