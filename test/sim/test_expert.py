# SPDX-License-Identifier: Apache-2.0
"""The expert succeeds, and nothing it does tells the secret before it could act on it."""

import numpy as np
import pytest

from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.expert import PRESSED, Expert, press_pose, rest_pose
from smolvla_mem_ros.sim.scene import HOME
from smolvla_mem_ros.sim.tasks import BUTTON, PLACES, REACTION, TASKS, TIME_LIMIT
from smolvla_mem_ros.sim.world import World

everything = pytest.mark.parametrize("name", TASKS)


@pytest.fixture(scope="module")
def world():
    with World(8, 8) as world:
        yield world


def actions(world, trial, rng):
    """Actions up to the end of an episode without disturbance."""
    world.reset(trial, rng)
    expert = Expert(world.scene, world.referee)
    while world.referee.outcome is None:
        action = expert.act()
        yield action
        world.step(action)


@everything
def test_it_succeeds_in_time(world, name):
    for episode in range(8):
        trial, rng = draw(TASKS[name], 11, episode)
        for _ in actions(world, trial, rng):
            pass
        assert world.referee.outcome, world.referee.reason
        assert world.referee.frame < world.referee.go + TIME_LIMIT - 10


@pytest.mark.parametrize("place", [*PLACES.values(), BUTTON])
def test_a_press_brings_the_tip_to_the_place(world, place):
    world.scene.reset(arm=press_pose(world.scene, place))
    np.testing.assert_allclose(world.scene.data.site("tip").xpos, (*place, PRESSED), atol=1e-3)


def test_a_place_out_of_reach_is_refused(world):
    with pytest.raises(ValueError, match="cannot bring its tip"):
        press_pose(world.scene, (0.9, 0.0))


def test_rest_is_home_where_the_task_has_no_start(world):
    np.testing.assert_array_equal(rest_pose(world.scene, None), HOME)


@everything
@pytest.mark.parametrize("delay", [8, 20])
def test_its_actions_tell_no_answer_until_it_may_react(world, name, delay):
    quiet, moving = {}, {}
    for episode in range(25):
        trial, rng = draw(TASKS[name], 11, episode, delay=delay)
        if trial.goals in quiet:
            continue
        path = []
        for action in actions(world, trial, rng):
            path.append(action)
            go = world.referee.go
            if go is not None and world.referee.frame == go + REACTION + 6:
                break
        # Before that it came from its start to the button, where there is one.
        quiet[trial.goals] = path[-7 - delay - 2 : -7]
        moving[trial.goals] = path[-1]
    assert len(quiet) == round(1 / TASKS[name].ceiling)
    for other in quiet.values():
        np.testing.assert_allclose(other, next(iter(quiet.values())), rtol=0, atol=1e-9)
    firsts = {goals[0]: action for goals, action in moving.items()}
    a, b, *_ = firsts.values()
    assert np.abs(a - b).max() > 1.0, "degrees: by now it shows"


@everything
def test_it_moves_smoothly(world, name):
    trial, rng = draw(TASKS[name], 11, 0)
    path = np.array(list(actions(world, trial, rng)))
    assert np.abs(np.diff(path, axis=0)).max() < 12, "degrees in a frame"
