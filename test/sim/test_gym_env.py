# SPDX-License-Identifier: Apache-2.0
"""The environments keep to gymnasium's rules, and a seed means the same episode everywhere."""

import subprocess
import sys
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from smolvla_mem_ros.sim import gym_env
from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.expert import Expert
from smolvla_mem_ros.sim.tasks import FPS, PLACES, TASKS
from smolvla_mem_ros.sim.world import CAMERAS, World

everything = pytest.mark.parametrize("name", TASKS)


@pytest.fixture
def make():
    made = []

    def make(name="CueRecall2", **options):
        made.append(gym.make(gym_env.gym_id(name), **options))
        return made[-1]

    yield make
    for env in made:
        env.close()


def play(env, act, **reset):
    """Runs one episode with ``act`` (a function of nothing). Returns (rewards, last step's values)."""
    env.reset(**reset)
    rewards = []
    while True:
        observation, reward, terminated, truncated, info = env.step(act())
        rewards.append(reward)
        if terminated or truncated:
            return rewards, (observation, terminated, truncated, info)


def expert(env):
    """An expert for the next episode of ``env``; made at its first action."""
    made = []

    def act():
        world = env.unwrapped.world
        if not made:
            made.append(Expert(world.scene, world.referee))
        return made[0].act()

    return act


@everything
def test_gymnasiums_checker_is_content(make, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # LeRobot's units are the point of this action space.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space.*")
        check_env(make(name).unwrapped)


@everything
def test_an_experts_rewards_add_up_to_one(make, name):
    env = make(name)
    rewards, (_, terminated, truncated, info) = play(env, expert(env), seed=3)
    assert sum(rewards) == pytest.approx(1.0)
    assert np.count_nonzero(rewards) == len(env.unwrapped.world.referee.trial.goals)
    assert (terminated, truncated, info["is_success"]) == (True, False, True)


@everything
def test_doing_nothing_ends_by_the_referees_clock_and_earns_nothing(make, name):
    env = make(name)
    start = env.reset(seed=3)[0]["agent_pos"]
    rewards, (_, terminated, truncated, info) = play(env, lambda: start, seed=3)
    assert sum(rewards) == 0
    assert (terminated, truncated, info["is_success"]) == (True, False, False)
    assert info["reason"] == "out of time"
    assert len(rewards) <= env.get_wrapper_attr("_max_episode_steps")


def test_half_a_sequence_earns_half(make):
    env = make("Sequence2of3")
    act = expert(env)
    trial = draw(TASKS["Sequence2of3"], 3, 0)[0]
    other = next(place for place in PLACES if place not in trial.goals)

    def act_and_be_wrong_in_the_end():
        referee = env.unwrapped.world.referee
        if referee.done:  # the expert goes on to what was the second goal
            referee.trial = replace(trial, goals=(trial.goals[0], other))
        return act()

    rewards, (*_, info) = play(env, act_and_be_wrong_in_the_end, seed=3)
    assert sum(rewards) == pytest.approx(0.5)
    assert not info["is_success"]


@everything
@pytest.mark.parametrize("delay", [None, 8, 60])
def test_the_longest_episode_is_within_max_episode_steps(make, name, delay):
    longest = max(draw(TASKS[name], 0, k, delay=delay)[0].max_frames for k in range(400))
    assert longest <= make(name, delay=delay).get_wrapper_attr("_max_episode_steps") <= longest + 150


def test_a_seed_counts_episodes_as_the_demonstrations_do(make):
    env = make("CueRecall3")
    with World() as world:
        for episode in range(3):
            observation, _ = env.reset(seed=8) if episode == 0 else env.reset()
            world.reset(*draw(TASKS["CueRecall3"], 8, episode))
            assert env.unwrapped.world.referee.trial == world.referee.trial
            np.testing.assert_array_equal(observation["agent_pos"], world.state)
            for camera, picture in world.pictures().items():
                np.testing.assert_array_equal(observation["pixels"][camera], picture)


def test_an_episode_can_be_chosen_by_its_number(make):
    env = make("CueRecall3")
    env.reset(seed=8, options={"episode": 5})
    trial = env.unwrapped.world.referee.trial
    assert trial == draw(TASKS["CueRecall3"], 8, 5)[0]
    env.reset()
    assert env.unwrapped.world.referee.trial == draw(TASKS["CueRecall3"], 8, 6)[0]


def test_without_a_seed_episodes_differ(make):
    starts = [make().reset()[0]["agent_pos"] for _ in range(2)]
    assert (starts[0] != starts[1]).any()


def test_delay_and_visible_cue_reach_the_trial(make):
    env = make(delay=31, cue_visible=True)
    env.reset(seed=0)
    trial = env.unwrapped.world.referee.trial
    assert (trial.wait, trial.cue_visible) == (31, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"delay": 2}, "delay 2"), ({"name": "TakeItBack3", "cue_visible": True}, "no cue")],
)
def test_options_that_a_task_cannot_play_are_refused_at_once(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_size_of_pictures_is_chosen_and_render_shows_the_front(make):
    env = make(width=40, height=24)
    observation, _ = env.reset(seed=0)
    assert {c: p.shape for c, p in observation["pixels"].items()} == dict.fromkeys(CAMERAS, (24, 40, 3))
    np.testing.assert_array_equal(env.render(), observation["pixels"]["front"])
    observation = env.step(observation["agent_pos"] + 5)[0]
    np.testing.assert_array_equal(env.render(), observation["pixels"]["front"])


def test_a_rendered_picture_is_the_callers_own(make):
    env = make()
    env.reset(seed=0)
    env.render()[:] = 0
    assert env.render().any()


def test_what_lerobot_asks_for_is_there(make):
    env = make("LateCue2")
    assert env.get_wrapper_attr("task") == "LateCue2"
    assert env.get_wrapper_attr("task_description") == TASKS["LateCue2"].instruction
    assert env.metadata["render_fps"] == FPS


def test_the_secret_is_not_in_the_observation_or_the_info(make):
    observation, info = make().reset(seed=0)
    assert set(observation) == {"pixels", "agent_pos"}
    assert info == {"is_success": False, "reason": ""}


def test_neither_torch_nor_lerobot_is_imported():
    code = (
        "import sys, smolvla_mem_ros.sim.gym_env; "
        "assert not {'torch', 'lerobot', 'smolvla_mem_ros.policy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
