# SPDX-License-Identifier: Apache-2.0
"""The policy that the demo plays: small, self-contained, and it remembers."""

import shutil

import pytest

from smolvla_mem_ros.evaluation.rollout import rollout
from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.share import share_path
from smolvla_mem_ros.training.packing import MAX_BYTES

EPISODES = range(20)


@pytest.fixture(scope="module")
def shipped():
    return share_path("config/checkpoints/demo")


def test_it_is_small_and_holds_nothing_to_unpickle(shipped):
    files = [path for path in shipped.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md"}


def test_it_works_wherever_it_is_moved(shipped, tmp_path, monkeypatch):
    shutil.copytree(shipped, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint(tmp_path / "elsewhere", "cpu").config.num_mem_tokens <= 4


def successes(path, stage, mode):
    checkpoint = load_checkpoint(path, "cpu", 0 if mode == "off" else None)
    outcomes = rollout(checkpoint, stage, "CueRecall2", EPISODES, seed=77, memory_mode=mode)
    return sum(outcome.success for outcome in outcomes)


def test_it_recalls_the_cue_and_without_its_memory_it_does_not(shipped, stage):
    assert successes(shipped, stage, "on") >= 18
    # Guessing reaches half: 18 of 20 by chance once in 5000 times.
    assert successes(shipped, stage, "noise") < 18
    assert successes(shipped, stage, "off") < 18
