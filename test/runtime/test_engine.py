# SPDX-License-Identifier: Apache-2.0
"""Pins that inference is a pure function of its arguments and that a result that is not finite is refused."""

import numpy as np
import pytest
import torch
from lerobot.policies.utils import prepare_observation_for_inference

from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.policy.memory import Memory
from smolvla_mem_ros.policy.tiny import make_tiny_checkpoint
from smolvla_mem_ros.runtime.contract import load_contract
from smolvla_mem_ros.runtime.engine import Engine, EngineError
from smolvla_mem_ros.runtime.observation import Observation
from smolvla_mem_ros.share import share_path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    return load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("engine") / "tiny", steps=0))


@pytest.fixture
def engine(checkpoint):
    return Engine(checkpoint, load_contract(share_path("config/contract.yaml"), checkpoint.config), seed=3)


def observation(seed=0, task="sway gently"):
    rng = np.random.default_rng(seed)
    images = {
        f"observation.images.{c}": rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        for c in ("front", "wrist")
    }
    return Observation(0, {}, images, rng.normal(0, 20, 6).astype(np.float32), task)


def test_actions_are_in_the_checkpoints_units(engine, checkpoint):
    actions = engine.infer(observation(), None, 1, 0).actions
    assert actions.shape == (20, 6) and actions.dtype == np.float64
    # An untrained chunk is noise about the mean (0 degrees, gripper 20) with the statistics' spread.
    assert 5 < actions[:, :5].std() < 60
    assert 5 < actions[:, 5].mean() < 35


def test_the_same_arguments_give_the_same_result_whatever_came_between(engine):
    first = engine.infer(observation(), None, 1, 0)
    second = engine.infer(observation(1), first.memory, 1, 1)
    tokens = first.memory.tokens.clone()
    for other in range(3):
        engine.infer(observation(other), second.memory, 9, other)
    again = engine.infer(observation(1), first.memory, 1, 1)
    np.testing.assert_array_equal(again.actions, second.actions)
    assert torch.equal(again.memory.tokens, second.memory.tokens)
    assert torch.equal(first.memory.tokens, tokens), "the memory handed in is not changed"


@pytest.mark.parametrize(("episode_id", "step"), [(1, 1), (2, 0)])
def test_each_inference_of_each_episode_has_noise_of_its_own(engine, episode_id, step):
    reference = engine.infer(observation(), None, 1, 0).actions
    assert not np.allclose(engine.infer(observation(), None, episode_id, step).actions, reference)


def test_memory_task_and_images_all_count(engine):
    memory = engine.infer(observation(5), None, 1, 0).memory
    reference = engine.infer(observation(), None, 1, 1).actions
    assert np.abs(engine.infer(observation(), memory, 1, 1).actions - reference).max() > 1e-6
    assert np.abs(engine.infer(observation(task="pick"), None, 1, 1).actions - reference).max() > 1e-6
    assert np.abs(engine.infer(observation(1), None, 1, 1).actions - reference).max() > 1e-6


def test_it_equals_lerobots_own_path(engine, checkpoint):
    seen = observation()
    raw = {**seen.images, "observation.state": seen.state}
    batch = checkpoint.preprocessor(prepare_observation_for_inference(raw, torch.device("cpu"), seen.task))
    checkpoint.policy.reset()
    chunk = checkpoint.policy.predict_action_chunk(batch, noise=engine._noise(1, 0))
    expected = checkpoint.postprocessor(chunk)[0].numpy()
    np.testing.assert_array_equal(engine.infer(seen, None, 1, 0).actions.astype(np.float32), expected)


def test_actions_that_are_not_finite_are_refused(engine):
    broken = observation()
    broken.state[2] = np.nan
    with pytest.raises(EngineError, match="actions that are not finite"):
        engine.infer(broken, None, 1, 0)


def test_a_memory_that_is_not_finite_is_refused(engine, monkeypatch, checkpoint):
    infer = checkpoint.policy.infer

    def poisoned(*args, **kwargs):
        actions, memory = infer(*args, **kwargs)
        return actions, Memory(memory.tokens * float("nan"), memory.filled)

    monkeypatch.setattr(checkpoint.policy, "infer", poisoned)
    with pytest.raises(EngineError, match="reset it"):
        engine.infer(observation(), None, 1, 0)
