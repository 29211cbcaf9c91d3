# SPDX-License-Identifier: Apache-2.0
"""Noise on the memory belongs to training: it disturbs what the next segment reads, and nothing else."""

import pytest
import torch

from smolvla_mem_ros.policy.modeling_smolvla_mem import own_share

TIMES_AND_NOISE = dict(batch=2, segments=3)


def loss(policy, sample, noise, time, seed=0):
    torch.manual_seed(seed)
    return policy(sample, noise=noise, time=time, reduction="none")[0]


@pytest.fixture
def trained(make_policy, make_sample, noise_for):
    def make(**changes):
        policy = make_policy(**changes)
        return policy, make_sample(policy.config), *noise_for(policy.config, **TIMES_AND_NOISE)

    return make


@pytest.mark.parametrize("update", ["rmt", "gated", "ema"])
def test_the_memory_is_disturbed_in_training_and_not_in_evaluation(trained, update):
    policy, *sample = trained(mem_noise=0.5, mem_update=update)
    assert torch.equal(loss(policy, *sample, seed=1), loss(policy, *sample, seed=2))
    policy.train()
    assert not torch.equal(loss(policy, *sample, seed=1), loss(policy, *sample, seed=2))


def test_without_noise_training_repeats_itself(trained):
    policy, *sample = trained(mem_noise=0.0)
    policy.train()
    assert torch.equal(loss(policy, *sample, seed=1), loss(policy, *sample, seed=2))


def test_a_first_segment_reads_no_noise(trained):
    policy, *sample = trained(mem_noise=0.5, mem_segments=1, mem_anchor=False)
    policy.train()
    sample[1], sample[2] = sample[1][:, :1], sample[2][:, :1]
    assert torch.equal(loss(policy, *sample, seed=1), loss(policy, *sample, seed=2))


def test_each_sample_draws_how_much_noise_its_memory_has(make_policy, make_sample, monkeypatch):
    policy = make_policy(mem_noise=0.5, mem_token_scale=0.2, mem_segments=3, mem_anchor=False).train()
    read, written = [], []
    add_memory, update_memory = policy.model.add_memory, policy.model.update_memory

    def update(*args):
        written.append(update_memory(*args))
        return written[-1]

    monkeypatch.setattr(policy.model, "update_memory", update)
    monkeypatch.setattr(policy.model, "add_memory", lambda body, m: read.append(m) or add_memory(body, m))
    torch.manual_seed(0)
    policy(make_sample(policy.config, batch=100))
    noise = [after.tokens - before.tokens for after, before in zip(read[1:], written, strict=False)]
    first, second = (each.flatten(1).std(1).detach() for each in noise)
    # Up to what was asked for, of any size, and the same in all segments of a sample.
    assert first.max().item() == pytest.approx(0.5 * 0.2, rel=0.15)
    assert first.mean().item() == pytest.approx(0.5 * 0.2 / 2, rel=0.2)
    assert first.min() < 0.1 * first.max()
    torch.testing.assert_close(first, second, rtol=0.4, atol=0.003)


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_a_senseless_noise_is_refused(make_config, value):
    with pytest.raises(ValueError, match="mem_noise"):
        make_config(mem_noise=value)


@pytest.fixture
def as_process(monkeypatch):
    """Of two that share a batch."""

    def pretend(rank):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)

    return pretend


def test_processes_that_share_a_batch_draw_together_what_one_would(as_process):
    def draw(size):
        torch.manual_seed(0)  # lerobot-train seeds all processes alike
        return own_share(lambda rows: torch.randn(rows, 3), size)

    alone = draw(4)
    shares = [as_process(rank) or draw(2) for rank in (0, 1)]
    assert torch.equal(torch.cat(shares), alone)


def test_no_process_draws_the_noise_of_another_in_a_training_step(trained, as_process):
    policy, sample, _, _ = trained(mem_noise=0.5)
    policy.train()
    first, second, again = (as_process(rank) or loss(policy, sample, None, None) for rank in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.isclose(first, second).any()
