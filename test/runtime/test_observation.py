# SPDX-License-Identifier: Apache-2.0
"""Pins that an incomplete, old or broken input gives a reason that names it, never an observation."""

import math

import numpy as np
import pytest

from smolvla_mem_ros.runtime.observation import Observation, ObservationBuffer, Skip, SkipKind

from .conftest import JOINTS, SECOND, fill, image_message


@pytest.fixture
def buffer(contract):
    return ObservationBuffer(contract)


def reason(buffer, now=SECOND, **kwargs):
    skip = buffer.snapshot(now, "task", **kwargs)
    assert isinstance(skip, Skip)
    return skip


def test_a_complete_observation_carries_units_task_and_stamps(buffer):
    buffer.put_image("front", SECOND - 30, image_message())
    buffer.put_image("wrist", SECOND - 20, image_message())
    buffer.put_joint_state(SECOND - 10, JOINTS, [math.pi / 2, 0, 0, 0, 0, 0.8])
    observation = buffer.snapshot(SECOND, "pick")
    assert isinstance(observation, Observation)
    assert observation.stamp == SECOND - 10 and observation.oldest == SECOND - 30
    assert observation.task == "pick"
    assert observation.state.dtype == np.float32
    np.testing.assert_allclose(observation.state, [90, 0, 0, 0, 0, 50], atol=1e-4)
    assert list(observation.images) == ["observation.images.front", "observation.images.wrist"]
    assert observation.images["observation.images.front"].shape == (4, 6, 3)


def test_joints_come_in_any_order_and_extra_ones_are_ignored(buffer):
    fill(buffer, SECOND)
    names = ["elbow_flex", "extra", "gripper", "wrist_roll", "wrist_flex", "shoulder_lift", "shoulder_pan"]
    assert buffer.put_joint_state(SECOND, names, [0.3, 9, 0.8, 0.5, 0.4, 0.2, 0.1]) is None
    state = buffer.snapshot(SECOND, "t").state
    np.testing.assert_allclose(state, [*np.rad2deg([0.1, 0.2, 0.3, 0.4, 0.5]), 50], rtol=1e-5)


@pytest.mark.parametrize("stream", ["front", "wrist", "joint_states"])
def test_each_missing_stream_is_named(contract, stream):
    buffer = ObservationBuffer(contract)
    for camera in {"front", "wrist"} - {stream}:
        buffer.put_image(camera, SECOND, image_message())
    if stream != "joint_states":
        buffer.put_joint_state(SECOND, JOINTS, [0.0] * 6)
    skip = reason(buffer)
    assert skip.kind is SkipKind.MISSING
    assert skip.reason == f"{stream}: nothing received yet"


@pytest.mark.parametrize(("stream", "limit"), [("front", 0.2), ("wrist", 0.3), ("joint_states", 0.1)])
def test_each_stream_has_its_own_freshness_limit(buffer, stream, limit):
    now = 10 * SECOND
    fill(buffer, now)

    def age(seconds):
        stamp = now - round(seconds * SECOND)
        if stream == "joint_states":
            buffer.put_joint_state(stamp, JOINTS, [0.0] * 6)
        else:
            buffer.put_image(stream, stamp, image_message())

    age(limit - 0.01)
    assert isinstance(buffer.snapshot(now, "t"), Observation)
    age(limit + 0.01)
    skip = reason(buffer, now)
    assert skip.kind is SkipKind.STALE
    assert skip.reason.startswith(f"{stream}: {limit + 0.01:.2f} s old")


def test_a_stamp_in_the_future_means_that_clocks_differ(buffer):
    fill(buffer, 5 * SECOND)
    assert "stamped 4.00 s in the future" in reason(buffer, SECOND).reason


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_a_joint_that_is_not_finite_blocks_until_a_good_one_comes(buffer, value):
    fill(buffer, SECOND)
    problem = buffer.put_joint_state(SECOND, JOINTS, [0, 0, value, 0, 0, 0])
    assert problem == "the position of elbow_flex is not a finite number"
    assert problem in reason(buffer).reason
    fill(buffer, SECOND)
    assert isinstance(buffer.snapshot(SECOND, "t"), Observation)


def test_names_without_positions_are_refused(buffer):
    assert "6 joint names but 0 positions" in buffer.put_joint_state(SECOND, JOINTS, [])


def test_a_broken_image_is_named_and_forgotten_with_the_next_good_one(buffer):
    fill(buffer, SECOND)
    buffer.put_image("wrist", SECOND, image_message(encoding="12345"))
    for _ in range(2):
        assert reason(buffer).reason.startswith("wrist: encoding '12345' is not supported")
    buffer.put_image("wrist", SECOND, image_message())
    assert isinstance(buffer.snapshot(SECOND, "t"), Observation)


def test_ages_tell_what_never_came(buffer):
    buffer.put_image("front", SECOND, image_message())
    ages = buffer.ages(2 * SECOND)
    assert ages == {"joint_states": math.inf, "front": 1.0, "wrist": math.inf}
