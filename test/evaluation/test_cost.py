# SPDX-License-Identifier: Apache-2.0
"""Memory is compared with LeRobot's own SmolVLA, of the same size, on as many frames."""

import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from smolvla_mem_ros.evaluation import cost
from smolvla_mem_ros.policy.modeling_smolvla_mem import SmolVLAMemPolicy
from smolvla_mem_ros.policy.tiny import make_backbone

OPTIONS = {
    "resize_imgs_with_padding": (64, 64), "num_vlm_layers": 4, "expert_width_multiplier": 1.0, "num_steps": 2,
    "max_state_dim": 6, "max_action_dim": 6, "chunk_size": 8, "n_action_steps": 4, "train_expert_only": False,
}  # fmt: skip
TOKENS, HIDDEN = 3, 96


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory):
    backbone = make_backbone(tmp_path_factory.mktemp("cost") / "backbone")
    size = cost.Size(False, (24, 32), 2, OPTIONS)
    memory = {"num_mem_tokens": TOKENS, "mem_segments": 2, "mem_update": "rmt"}
    return cost.comparisons(size, str(backbone), "cpu", memory)


def test_both_sides_take_as_many_frames(comparisons):
    frames = [(each.stock().frames, each.memory().frames) for each in comparisons]
    assert frames == [(1, 1), (2, 2), (6, 6)]


def test_stock_is_lerobots_own_and_differs_by_the_memory_tokens_alone(comparisons):
    for each in comparisons:
        stock, memory = each.stock().policy, each.memory().policy
        assert type(stock) is SmolVLAPolicy
        assert type(memory) is SmolVLAMemPolicy
        counts = [sum(p.numel() for p in policy.parameters()) for policy in (stock, memory)]
        assert counts[1] - counts[0] == TOKENS * HIDDEN


def test_an_inference_is_one_in_the_midst_of_an_episode(comparisons, monkeypatch):
    side = comparisons[0].memory()
    handed = []
    monkeypatch.setattr(side.policy, "infer", lambda batch, memory: handed.append(memory))
    side.run()
    assert handed[0].filled.all()


@pytest.mark.parametrize("name", ["stock", "memory"])
def test_a_training_step_trains(comparisons, name):
    side = getattr(comparisons[2], name)()
    trained = {key: p.detach().clone() for key, p in side.policy.named_parameters() if p.requires_grad}
    side.run()
    after = dict(side.policy.named_parameters())
    changed = {key for key, before in trained.items() if (after[key] != before).any()}
    assert len(changed) > 0.9 * len(trained)
    assert all(p.grad is None for p in side.policy.parameters())
    # The unrolled memory is trained too.
    assert name == "stock" or "model.mem_tokens" in changed


def test_what_is_reported(comparisons):
    turns = []
    torch.set_num_threads(1)
    result = cost.compare(comparisons[0], "cpu", 5, lambda: turns.append(0))
    assert len(turns) == result["turns"] == 5
    assert result["ratio"]["parameters"] == result["memory"]["parameters"] / result["stock"]["parameters"] > 1
    assert result["ratio"]["peak"] == result["memory"]["peak_mb"] / result["stock"]["peak_mb"]
    assert 0 < result["ratio"]["time"]["p25"] <= result["ratio"]["time"]["median"]
