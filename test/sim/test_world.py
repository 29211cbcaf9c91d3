# SPDX-License-Identifier: Apache-2.0
"""The world is the same for the same numbers, speaks LeRobot's units, and shows what the referee says."""

import numpy as np
import pytest

from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.scene import HOME
from smolvla_mem_ros.sim.tasks import FPS, PLACES, TASKS
from smolvla_mem_ros.sim.world import CAMERAS, World
from smolvla_mem_ros.so100.arm import LEROBOT_UNITS

AT_HOME = LEROBOT_UNITS.from_radians(np.array(HOME))


@pytest.fixture(scope="module")
def world():
    with World() as world:
        yield world


def play(world, actions, task="CueRecall2", episode=0, **options):
    """The states after each action, (T, 6)."""
    world.reset(*draw(TASKS[task], 3, episode, **options))
    states = []
    for action in actions:
        world.step(action)
        states.append(world.state)
    return np.array(states)


def test_states_are_degrees_and_the_grippers_percent(world):
    world.reset(*draw(TASKS["CueRecall2"], 0, 0))
    world.scene.reset(arm=HOME)
    assert world.state.dtype == np.float32
    np.testing.assert_allclose(world.state[:5], np.rad2deg(HOME[:5]), atol=1e-4)
    assert 0 < world.state[5] < 100
    np.testing.assert_allclose(world.state, AT_HOME, atol=1e-4)


def test_actions_are_in_the_units_of_the_state(world):
    goal = AT_HOME + (10, -8, 6, 5, 15, 20)
    states = play(world, [goal] * 20)
    np.testing.assert_allclose(states[-1], goal, atol=1.5)


def test_the_start_jitters_about_home(world):
    starts = []
    for episode in range(200):
        world.reset(*draw(TASKS["CueRecall2"], 3, episode))
        starts.append(np.rad2deg(world.scene.arm_position - HOME))
    assert np.abs(np.mean(starts)) < 0.3
    assert np.std(starts) == pytest.approx(2.0, rel=0.1)


def test_the_arm_starts_over_its_place_where_the_task_has_one(world):
    for episode in range(12):
        world.reset(*draw(TASKS["TakeItBack3"], 3, episode))
        tip = world.scene.data.site("tip").xpos
        place = PLACES[world.referee.trial.start]
        assert np.hypot(*(tip[:2] - place)) < 0.045, "within the place"
        assert tip[2] > 0.07


def test_one_step_is_one_frame_of_time(world):
    play(world, [AT_HOME] * 30)
    assert world.referee.frame == 30
    timestep = world.scene.model.opt.timestep
    assert world.scene.data.time == pytest.approx(30 / FPS, abs=timestep)


def test_the_same_numbers_make_the_same_episode_to_the_bit(world):
    rng = np.random.default_rng(0)
    actions = AT_HOME + np.cumsum(rng.normal(0, 1, (25, 6)), axis=0)
    first = play(world, actions), world.pictures()
    play(world, actions, "TakeItBack3", episode=1)  # leaves nothing behind
    again = play(world, actions), world.pictures()
    np.testing.assert_array_equal(first[0], again[0])
    for camera in CAMERAS:
        np.testing.assert_array_equal(first[1][camera], again[1][camera])
    with World() as other:
        np.testing.assert_array_equal(first[0], play(other, actions))


def test_looking_changes_nothing(world):
    actions = AT_HOME + np.linspace(0, 12, 15)[:, None]
    unseen = play(world, actions)
    world.reset(*draw(TASKS["CueRecall2"], 3, 0))
    for action in actions:
        world.pictures()
        world.step(action)
        world.pictures()
    np.testing.assert_array_equal(unseen[-1], world.state)


def test_actions_beyond_the_joints_are_clipped(world):
    states = play(world, [np.full(6, 1e6)] * 10)
    assert np.isfinite(states).all()
    assert np.abs(states).max() < 360


def test_a_finished_episode_stands_still(world):
    play(world, [AT_HOME] * 200)
    assert world.referee.outcome is False
    frame, state = world.referee.frame, world.state
    world.step(AT_HOME + 20)
    assert world.referee.frame == frame
    np.testing.assert_array_equal(world.state, state)


def test_pictures_have_the_size_asked_for():
    with World(width=40, height=24) as world:
        world.reset(*draw(TASKS["CueRecall2"], 0, 0))
        pictures = world.pictures()
    assert list(pictures) == list(CAMERAS)
    assert all(p.shape == (24, 40, 3) and p.dtype == np.uint8 for p in pictures.values())


@pytest.mark.parametrize("camera", CAMERAS)
def test_an_episodes_colour_is_seen_while_the_lamp_is_lit_and_not_at_go(world, camera):
    """The cue must reach the policy, and must not outlive its time in the picture."""
    seen = {}
    for episode in range(20):
        world.reset(*draw(TASKS["CueRecall2"], 3, episode, delay=8))
        trial = world.referee.trial
        world.scene.reset(arm=HOME)  # no jitter: pictures differ by their colours alone
        lit = world.pictures()[camera]
        for _ in range(trial.go):
            world.referee.step((0.25, 0.0, 0.11))
        seen.setdefault(trial.goals, (lit, world.pictures()[camera]))
    (lit_a, go_a), (lit_b, go_b) = seen.values()
    np.testing.assert_array_equal(go_a, go_b)
    if camera == "front":
        differs = np.abs(lit_a.astype(int) - lit_b).max(axis=-1) > 60
        assert differs.sum() >= 4, "pixels of the lamp"


def test_lamp_and_pads_are_seen_in_their_colours(world):
    world.reset(*draw(TASKS["CueRecall2"], 3, 0))
    front = world.pictures()["front"].astype(int)
    red = (front[..., 0] - front[..., 1:].max(axis=-1) > 80).sum()
    blue = (front[..., 2] - front[..., :2].max(axis=-1) > 80).sum()
    assert red > 10 and blue > 10


def test_closing_twice_is_safe():
    world = World(8, 8)
    world.close()
    world.close()
