# SPDX-License-Identifier: Apache-2.0
"""RViz shows the arm where the simulation has it: the URDF's frames are MuJoCo's, its limits the node's."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import mujoco
import numpy as np
import pytest

from smolvla_mem_ros.sim.scene import Scene
from smolvla_mem_ros.so100.arm import DEFAULT_LOWER, DEFAULT_MAX_VELOCITY, DEFAULT_UPPER, JOINTS

URDF = Path(__file__).parents[2] / "config/urdf/so100.urdf"
FRAMES = ("shoulder", "upper_arm", "lower_arm", "wrist", "gripper", "jaw")


@pytest.fixture(scope="module")
def robot():
    return ElementTree.parse(URDF).getroot()


@pytest.fixture(scope="module")
def scene():
    return Scene()


@pytest.fixture(scope="module")
def poses():
    """(50, 6) rad, within the limits."""
    return np.random.default_rng(0).uniform(DEFAULT_LOWER, DEFAULT_UPPER, (50, len(JOINTS)))


def numbers(element, key):
    return np.array([float(word) for word in element.get(key).split()])


def rotation(axis, angle):
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def frames(robot, pose):
    """Link name: (position (3,) m, rotation (3, 3)) in the frame of base_link."""
    found = {"base_link": (np.zeros(3), np.eye(3))}
    position = dict(zip(JOINTS, pose, strict=True))
    for joint in robot.findall("joint"):  # parents come first in the file
        at, turn = found[joint.find("parent").get("link")]
        origin = joint.find("origin")
        at = at + turn @ numbers(origin, "xyz")
        for axis, angle in zip(np.eye(3)[::-1], numbers(origin, "rpy")[::-1], strict=True):
            turn = turn @ rotation(axis, angle)
        if joint.get("type") == "revolute":
            turn = turn @ rotation(numbers(joint.find("axis"), "xyz"), position[joint.get("name")])
        found[joint.find("child").get("link")] = (at, turn)
    return found


def test_every_frame_is_where_the_simulation_has_it(robot, scene, poses):
    for pose in poses:
        scene.reset(arm=pose)
        found = frames(robot, pose)
        for name in FRAMES:
            body = scene.data.body(name)
            np.testing.assert_allclose(found[name][0], body.xpos, atol=5e-4)
            np.testing.assert_allclose(found[name][1], body.xmat.reshape(3, 3), atol=1e-3)
        np.testing.assert_allclose(found["tip"][0], scene.data.site("tip").xpos, atol=5e-4)


def test_mujocos_own_urdf_reader_sees_the_same_arm(scene, poses):
    model = mujoco.MjModel.from_xml_path(str(URDF))
    data = mujoco.MjData(model)
    assert [model.joint(i).name for i in range(model.njnt)] == list(JOINTS)
    for pose in poses:
        scene.reset(arm=pose)
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        for name in FRAMES:
            np.testing.assert_allclose(data.body(name).xpos, scene.data.body(name).xpos, atol=5e-4)


def test_limits_are_those_of_the_arm_and_effort_is_the_simulations(robot, scene):
    limits = [joint.find("limit") for joint in robot.findall("joint") if joint.get("type") == "revolute"]
    expected = {
        "lower": DEFAULT_LOWER,
        "upper": DEFAULT_UPPER,
        "velocity": DEFAULT_MAX_VELOCITY,
        "effort": scene.model.actuator_forcerange[:, 1],
    }
    for key, values in expected.items():
        np.testing.assert_allclose([float(limit.get(key)) for limit in limits], values)


def test_the_names_are_those_of_joint_states(robot):
    revolute = [joint.get("name") for joint in robot.findall("joint") if joint.get("type") == "revolute"]
    assert revolute == list(JOINTS)
