# SPDX-License-Identifier: Apache-2.0
"""The cameras show the arm and the things on the table, in RGB, and follow the joints."""

import numpy as np
import pytest

from smolvla_mem_ros.sim.cameras import Cameras
from smolvla_mem_ros.sim.scene import Scene


@pytest.fixture(scope="module")
def scene():
    return Scene()


@pytest.fixture(scope="module")
def cameras(scene):
    with Cameras(scene.model, ("front", "wrist"), 160, 120) as cameras:
        yield cameras


def share(image, red, green, blue):
    """Part of the picture where each channel is within its range."""
    low, high = np.array((red, green, blue)).T
    return ((low <= image) & (image <= high)).all(axis=-1).mean()


def test_pictures_are_rgb_bytes_of_the_size_asked_for(scene, cameras):
    image = cameras.render(scene.data, "front")
    assert image.shape == (120, 160, 3) and image.dtype == np.uint8


@pytest.mark.parametrize("name", ["front", "wrist"])
def test_each_camera_sees_the_arm_and_both_pads(scene, cameras, name):
    scene.reset()
    image = cameras.render(scene.data, name)
    assert share(image, (170, 255), (40, 110), (0, 30)) > 0.02, "the orange arm"
    assert share(image, (150, 255), (130, 240), (0, 90)) > 0.004, "the yellow pad"
    assert share(image, (0, 90), (100, 220), (130, 255)) > 0.004, "the blue pad"


@pytest.mark.parametrize("name", ["front", "wrist"])
def test_a_moved_joint_changes_both_pictures(scene, cameras, name):
    scene.reset()
    before = cameras.render(scene.data, name).astype(int)
    qpos = scene.data.qpos.copy()
    qpos[scene.qpos_index[0]] += 0.3
    scene.show(qpos)
    assert np.abs(cameras.render(scene.data, name) - before).mean() > 3


def test_unknown_camera_and_impossible_size_are_refused_by_name(scene):
    with pytest.raises(ValueError, match=r"no camera top; it has .*front"):
        Cameras(scene.model, ("front", "top"), 160, 120)
    with pytest.raises(ValueError, match="0x120"):
        Cameras(scene.model, ("front",), 0, 120)


def test_closing_twice_is_safe(scene):
    cameras = Cameras(scene.model, ("front",), 32, 32)
    cameras.close()
    cameras.close()
