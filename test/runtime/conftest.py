# SPDX-License-Identifier: Apache-2.0
"""A contract, observations and a fake engine for tests that need no network."""

from types import SimpleNamespace

import numpy as np
import pytest

from smolvla_mem_ros.runtime.contract import Contract, make_contract
from smolvla_mem_ros.runtime.observation import ObservationBuffer
from smolvla_mem_ros.units import NANOSECONDS

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SECOND = NANOSECONDS


def entries() -> dict:
    """The shipped contract's content, fresh for each test to spoil."""
    return {
        "fps": 30,
        "cameras": {
            "observation.images.front": {"topic": "camera/front/image_raw"},
            "observation.images.wrist": {"topic": "camera/wrist/image_raw", "max_age": 0.3},
        },
        "state": {"topic": "joint_states", "max_age": 0.1},
        "command": {"topic": "so100/joint_trajectory"},
        "joints": [{"name": name} for name in JOINTS[:5]]
        + [{"name": "gripper", "units": "percent", "zero": -0.2, "full": 1.8}],
    }


def features(cameras=("front", "wrist"), joints=6, chunk_size=20, n_action_steps=10) -> SimpleNamespace:
    """What a contract reads of a checkpoint's configuration."""
    return SimpleNamespace(
        image_features={f"observation.images.{c}": None for c in cameras},
        robot_state_feature=SimpleNamespace(shape=(joints,)),
        action_feature=SimpleNamespace(shape=(joints,)),
        chunk_size=chunk_size,
        n_action_steps=n_action_steps,
    )


@pytest.fixture
def contract() -> Contract:
    return make_contract(entries(), features())


def image_message(height=4, width=6, encoding="rgb8", step=None, data=None, big_endian=0):
    channels = {"mono8": 1, "rgba8": 4, "mono16": 2, "bayer_rggb8": 1, "yuv422_yuy2": 2}.get(encoding, 3)
    step = width * channels if step is None else step
    data = np.arange(step * height, dtype=np.uint8).tobytes() if data is None else data
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, step=step, data=data, is_bigendian=big_endian
    )


def fill(buffer: ObservationBuffer, stamp: int, position: float = 0.0) -> None:
    """One sample of each stream at ``stamp``."""
    for camera in ("front", "wrist"):
        buffer.put_image(camera, stamp, image_message())
    assert buffer.put_joint_state(stamp, JOINTS, [position] * 6) is None
