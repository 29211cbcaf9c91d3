# SPDX-License-Identifier: Apache-2.0
"""LeRobot's own commands evaluate in the memory tasks, unmodified, and see who succeeds."""

import json
import subprocess

import pytest
import torch
from lerobot.configs.parser import load_plugin
from lerobot.envs.factory import make_env, make_env_config
from lerobot.envs.utils import close_envs, env_to_policy_features
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout

from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.expert import Expert
from smolvla_mem_ros.sim.lerobot_env import SO100MemoryEnv
from smolvla_mem_ros.sim.tasks import TASKS
from smolvla_mem_ros.sim.world import World

SEEDS = [4, 5, 6]


class Experts(torch.nn.Module):
    """A policy in LeRobot's sense that looks at the environments and not at what they show.

    Args:
        idle: rows that do nothing.
    """

    def __init__(self, envs, idle=()):
        super().__init__()
        self._envs, self._idle = envs, idle
        self.tasks = []

    def reset(self):
        self._experts = None

    def select_action(self, batch):
        self.tasks.append(batch["task"])
        worlds = [env.unwrapped.world for env in self._envs]
        if self._experts is None:
            self._experts = [Expert(world.scene, world.referee) for world in worlds]
            self._rest = batch["observation.state"].clone()
        actions = torch.stack([torch.tensor(e.act(), dtype=torch.float32) for e in self._experts])
        for row in self._idle:
            actions[row] = self._rest[row]
        return actions


def nothing():
    return PolicyProcessorPipeline(steps=[])


def evaluate(config, **options):
    """One rollout by LeRobot, an episode for each of SEEDS. Returns its result and the policy."""
    envs = make_env(config, n_envs=len(SEEDS))
    env = envs["so100_memory"][0]
    policy = Experts(env.envs, **options)
    try:
        result = rollout(
            env=env,
            policy=policy,
            env_preprocessor=nothing(),
            env_postprocessor=nothing(),
            preprocessor=lambda batch: batch,
            postprocessor=lambda action: action,
            seeds=SEEDS,
            return_observations=True,
        )
    finally:
        close_envs(envs)
    return result, policy


def test_lerobots_plugin_discovery_finds_the_environment():
    load_plugin("smolvla_mem_ros.sim")
    config = make_env_config("so100_memory", task="LateCue2")
    assert type(config) is SO100MemoryEnv
    assert config.fps == 15


def test_features_are_those_of_the_demonstrations():
    features = env_to_policy_features(SO100MemoryEnv(observation_width=80, observation_height=60))
    assert {key: tuple(feature.shape) for key, feature in features.items()} == {
        "observation.images.front": (3, 60, 80),
        "observation.images.wrist": (3, 60, 80),
        "observation.state": (6,),
        "action": (6,),
    }


def test_an_unknown_task_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="there is no task 'Cue'; there are CueRecall2"):
        SO100MemoryEnv(task="Cue")


@pytest.mark.parametrize("name", ["CueRecall2", "Sequence2of3"])
def test_success_is_seen_row_by_row_although_episodes_end_at_different_times(name):
    """A finished row starts again at once (gymnasium's SAME_STEP); only its first episode may count."""
    result, policy = evaluate(SO100MemoryEnv(task=name), idle=[1])
    assert result["success"].any(dim=1).tolist() == [True, False, True]
    ends = [done.nonzero()[0].item() for done in result["done"]]
    assert min(ends) < max(ends)
    for row, (end, sum_of_rewards) in enumerate(zip(ends, [1.0, 0.0, 1.0], strict=True)):
        assert result["reward"][row, : end + 1].sum().item() == pytest.approx(sum_of_rewards)
    assert policy.tasks[0] == [TASKS[name].instruction] * 3


def test_a_seed_is_the_episode_that_it_is_everywhere():
    result, _ = evaluate(SO100MemoryEnv(task="CueRecall3", delay=8))
    with World() as world:
        for row, seed in enumerate(SEEDS):
            world.reset(*draw(TASKS["CueRecall3"], seed, 0, delay=8))
            assert torch.equal(result["observation"]["observation.state"][row, 0], torch.tensor(world.state))
            for camera, picture in world.pictures().items():
                seen = result["observation"][f"observation.images.{camera}"][row, 0]
                assert torch.equal(seen, torch.tensor(picture).permute(2, 0, 1) / 255)


def test_an_episode_length_cuts_off():
    result, _ = evaluate(SO100MemoryEnv(task="CueRecall2", episode_length=12))
    assert result["done"].shape[1] == 12
    assert not result["success"].any()


def lerobot_eval(folder, *options):
    """Runs the command inside the checkpoint's folder. LeRobot looks for its tokenizer from there."""
    command = [
        *("lerobot-eval", "--policy.path=.", "--policy.device=cpu"),
        # Not --policy.discover_packages_path: with --policy.path LeRobot takes that for a policy's field.
        "--discover_packages_path=smolvla_mem_ros.policy",
        "--env.discover_packages_path=smolvla_mem_ros.sim",
        *("--env.type=so100_memory", "--env.task=CueRecall2", "--env.delay=8"),
        *("--eval.n_episodes=2", f"--output_dir={folder.parent / 'evaluation'}"),
        *options,
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder.parent / "evaluation" / "eval_info.json").read_text())["overall"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--eval.batch_size=1"], ["--eval.batch_size=2"]])
def test_lerobot_eval_runs_a_checkpoint(memory_path, options):
    """With two environments they run in processes of their own."""
    overall = lerobot_eval(memory_path, *options)
    assert overall["n_episodes"] == 2
    assert 0 <= overall["pc_success"] <= 100
    assert len(overall["video_paths"]) == 2


@pytest.mark.slow
def test_lerobot_eval_records_pictures_and_success(memory_path):
    lerobot_eval(memory_path, "--eval.batch_size=1", "--eval.n_episodes=1", "--eval.recording=true")
    info = json.loads(next((memory_path.parent / "evaluation" / "recordings").rglob("info.json")).read_text())
    assert {"observation.images.front", "observation.images.wrist", "next.success"} <= set(info["features"])
    assert info["total_episodes"] == 1
