# SPDX-License-Identifier: Apache-2.0
"""Demonstrations succeed in spite of the disturbance, and record what a policy is to learn from."""

import numpy as np
import pytest

from smolvla_mem_ros.sim.demos import draw, play
from smolvla_mem_ros.sim.tasks import REACTION, TASKS
from smolvla_mem_ros.sim.world import CAMERAS, World


@pytest.fixture(scope="module")
def world():
    with World() as world:
        yield world


@pytest.mark.parametrize("name", TASKS)
def test_the_expert_succeeds_in_spite_of_the_disturbance(world, name, monkeypatch):
    monkeypatch.setattr(world, "pictures", dict)  # they take most of the time
    failed = []
    for episode in range(40):
        for _ in play(world, *draw(TASKS[name], 21, episode)):
            pass
        if not world.referee.outcome:
            failed.append((episode, world.referee.reason))
    assert not failed


def test_an_episode_is_the_same_whenever_it_is_played(world):
    def frames(episode):
        return list(play(world, *draw(TASKS["CueRecall3"], 21, episode)))

    first = frames(4)
    frames(5)
    again = frames(4)
    assert len(first) == len(again)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.state, b.state)
        np.testing.assert_array_equal(a.action, b.action)
        for camera in CAMERAS:
            np.testing.assert_array_equal(a.images[camera], b.images[camera])


def test_frames_hold_what_lerobot_wants(world):
    frame = next(play(world, *draw(TASKS["CueRecall2"], 21, 0)))
    assert frame.state.shape == frame.action.shape == (6,)
    assert frame.state.dtype == frame.action.dtype == np.float32
    assert {camera: i.shape for camera, i in frame.images.items()} == dict.fromkeys(CAMERAS, (48, 64, 3))


def test_the_arm_is_disturbed_and_the_recorded_action_is_not(world):
    frames = list(play(world, *draw(TASKS["CueRecall2"], 21, 0, delay=20)))
    waiting = frames[10:25]
    actions = np.array([frame.action for frame in waiting])
    np.testing.assert_array_equal(actions, actions[:1].repeat(len(actions), 0))
    states = np.array([frame.state for frame in waiting])
    assert (states.std(axis=0) > 0.2).all(), "degrees"


def test_a_frame_holds_the_action_that_follows_what_it_shows(world):
    frames = list(play(world, *draw(TASKS["CueRecall2"], 21, 0, delay=8)))
    assert len(frames) == world.referee.frame
    moves = [(frame.action != frames[0].action).any() for frame in frames]
    assert moves.index(True) == world.referee.go + REACTION
