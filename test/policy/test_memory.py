# SPDX-License-Identifier: Apache-2.0
"""Pins the memory as a value, its three updates and the number of weights each adds."""

import copy

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from smolvla_mem_ros.policy.configuration_smolvla_mem import MEMORY_UPDATES, SmolVLAMemConfig
from smolvla_mem_ros.policy.memory import Memory, make_memory_update, normalised
from smolvla_mem_ros.policy.modeling_smolvla_mem import SmolVLAMemPolicy
from smolvla_mem_ros.policy.tiny import make_backbone

SCALE = 0.2
# Layers, keys and values, tokens, heads, size of a head.
CACHE = (3, 2, 2, 1, 4)


@pytest.fixture(params=[False, True], ids=["plain", "cached"])
def memory(request):
    """Three rows of two tokens; the second row is empty."""
    torch.manual_seed(0)
    cache = torch.randn(3, *CACHE) if request.param else None
    return Memory(torch.randn(3, 2, 8), torch.tensor([True, False, True]), cache)


@pytest.fixture
def make_update(make_config):
    def make(kind, scale=SCALE, **changes):
        torch.manual_seed(1)
        return make_memory_update(make_config(mem_update=kind, mem_token_scale=scale, **changes), 8)

    return make


def rms(tokens):
    return tokens.pow(2).mean(-1).sqrt()


def test_empty_memory_remembers_nothing():
    memory = Memory.empty(3, 2, 8)
    assert memory.tokens.shape == (3, 2, 8)
    assert memory.filled.tolist() == [False] * 3
    assert memory.cache is None
    cached = Memory.empty(3, 2, 8, cache_shape=CACHE)
    assert cached.cache.shape == (3, *CACHE)
    assert torch.count_nonzero(cached.cache) == 0


def test_rows_are_taken_and_put_back_without_touching_the_original(memory):
    before, cache = memory.tokens.clone(), copy.deepcopy(memory.cache)
    some = torch.tensor([False, True, True])
    taken = memory.rows(some)
    assert torch.equal(taken.tokens, memory.tokens[1:])
    assert taken.filled.tolist() == [False, True]

    ones = None if cache is None else torch.ones(2, *CACHE)
    new = memory.with_rows(some, Memory(torch.ones(2, 2, 8), torch.tensor([True, False]), ones))
    assert torch.equal(new.tokens[0], before[0])
    assert torch.equal(new.tokens[1:], torch.ones(2, 2, 8))
    assert new.filled.tolist() == [True, True, False]
    assert torch.equal(memory.tokens, before)
    assert memory.filled.tolist() == [True, False, True]
    if cache is None:
        assert taken.cache is None and new.cache is None
    else:
        assert torch.equal(taken.cache, cache[1:])
        assert torch.equal(new.cache, torch.cat([cache[:1], ones]))
        assert torch.equal(memory.cache, cache)
    by_number = memory.with_rows(torch.tensor([1, 2]), memory.rows(torch.tensor([2, 1])))
    assert torch.equal(by_number.tokens, before[[0, 2, 1]])


def test_clearing_rows_leaves_the_others(memory):
    before, cache = memory.tokens.clone(), copy.deepcopy(memory.cache)
    cleared = memory.cleared(torch.tensor([True, False, False]))
    assert cleared.filled.tolist() == [False, False, True]
    assert torch.count_nonzero(cleared.tokens[0]) == 0
    assert torch.equal(cleared.tokens[1:], before[1:])
    assert torch.equal(memory.tokens, before)
    if cache is not None:
        assert torch.count_nonzero(cleared.cache[0]) == 0
        assert torch.equal(cleared.cache[1:], cache[1:])


def test_choosing_between_memories_is_differentiable_on_both_sides(memory):
    a = memory.tokens.clone().requires_grad_()
    b = torch.randn(3, 2, 8, requires_grad=True)
    rows = torch.tensor([True, False, True])
    a_cache, b_cache = torch.randn(2, 3, *CACHE).requires_grad_().unbind()
    a_cache.retain_grad(), b_cache.retain_grad()
    chosen = Memory(a, memory.filled, a_cache).where(rows, Memory(b, ~memory.filled, b_cache))
    assert chosen.filled.tolist() == [True, True, True]
    assert torch.equal(chosen.cache, torch.stack([a_cache[0], b_cache[1], a_cache[2]]))
    (chosen.tokens.sum() + chosen.cache.sum()).backward()
    assert a.grad.abs().sum(dim=(1, 2)).tolist() == [16, 0, 16]
    assert b.grad.abs().sum(dim=(1, 2)).tolist() == [0, 16, 0]
    assert a_cache.grad.flatten(1).abs().sum(1).tolist() == [48, 0, 48]
    assert b_cache.grad.flatten(1).abs().sum(1).tolist() == [0, 48, 0]


def test_detaching_cuts_the_gradient():
    tokens, cache = torch.randn(1, 2, 8, requires_grad=True), torch.randn(1, *CACHE, requires_grad=True)
    detached = Memory(tokens, torch.ones(1, dtype=torch.bool), cache).detach()
    assert not detached.tokens.requires_grad and not detached.cache.requires_grad
    assert torch.equal(detached.tokens, tokens) and torch.equal(detached.cache, cache)


def test_normalised_tokens_have_the_given_scale():
    torch.testing.assert_close(rms(normalised(torch.randn(4, 8) * 50, SCALE)), torch.full((4,), SCALE))
    assert torch.isfinite(normalised(torch.zeros(1, 8), SCALE)).all()


@pytest.mark.parametrize("kind", MEMORY_UPDATES)
def test_an_update_fills_every_row_and_starts_at_the_stated_scale(make_update, memory, kind):
    written = torch.randn(3, 2, 8) * 3
    after = make_update(kind)(Memory.empty(3, 2, 8), written)
    assert after.filled.all()
    torch.testing.assert_close(rms(after.tokens), torch.full((3, 2), SCALE), rtol=1e-3, atol=1e-4)
    assert make_update(kind)(memory, written).filled.all()


@pytest.mark.parametrize("kind", MEMORY_UPDATES)
def test_an_empty_row_keeps_nothing_of_its_old_tokens(make_update, memory, kind):
    """Tokens of a row that is not filled are meaningless; a first write must not mix them in."""
    written = torch.randn(3, 2, 8)
    update = make_update(kind)
    other = Memory(torch.where(memory.filled[:, None, None], memory.tokens, 100.0), memory.filled)
    torch.testing.assert_close(
        update(memory, written).tokens, update(other, written).tokens, rtol=0, atol=1e-4
    )


def test_rmt_takes_the_write_output_whole(make_update, memory):
    written = torch.randn(3, 2, 8)
    assert torch.equal(make_update("rmt")(memory, written).tokens, normalised(written, SCALE))


def test_ema_mixes_at_its_fixed_rate(make_update, memory):
    written = torch.randn(3, 2, 8)
    after = make_update("ema", mem_ema_rate=0.25)(memory, written).tokens
    expected = 0.75 * memory.tokens + 0.25 * normalised(written, SCALE)
    torch.testing.assert_close(after[[0, 2]], expected[[0, 2]])
    torch.testing.assert_close(after[1], normalised(written, SCALE)[1])


def test_gated_moves_between_old_and_new_as_its_gate_says(make_update, memory):
    update, written = make_update("gated"), torch.randn(3, 2, 8)
    for bias, weight_of_old in ((-50.0, 1.0), (50.0, 0.0)):
        torch.nn.init.zeros_(update.gates.weight)
        torch.nn.init.constant_(update.gates.bias, bias)
        after = update(memory, written).tokens
        candidate = SCALE * update.norm(update.proj(written))
        expected = weight_of_old * memory.tokens + (1 - weight_of_old) * candidate
        torch.testing.assert_close(after[[0, 2]], expected[[0, 2]])
        torch.testing.assert_close(after[1], candidate[1])


def test_gates_open_alike_at_every_token_scale(make_update, memory):
    """They see what they are to tell apart, not how large the tokens are."""
    small, written = make_update("gated"), torch.randn(3, 2, 8)
    large = make_update("gated", scale=10 * SCALE)
    after = large(Memory(10 * memory.tokens, memory.filled), written).tokens
    torch.testing.assert_close(after, 10 * small(memory, written).tokens)


@pytest.mark.parametrize(("bias", "taken"), [(-3.0, 0.05), (-1.0, 0.27)])
def test_gated_starts_by_keeping_as_much_as_asked(make_update, bias, taken):
    update = make_update("gated", mem_gate_bias=bias)
    old = Memory(torch.full((1, 2, 8), SCALE), torch.ones(1, dtype=torch.bool))
    written = torch.randn(1, 2, 8)
    candidate = SCALE * update.norm(update.proj(written))
    gate = (update(old, written).tokens - old.tokens) / (candidate - old.tokens)
    assert gate.mean().item() == pytest.approx(taken, rel=0.5)


@pytest.fixture(scope="module")
def count_weights(tmp_path_factory):
    """Weights of SmolVLA at its published size; on the meta device, so that none is ever made."""
    backbone = make_backbone(tmp_path_factory.mktemp("full") / "backbone", full_size=True)
    # The rest is stock SmolVLA's own default.
    config = dict(
        vlm_model_name=str(backbone), device="cpu", push_to_hub=False,
        input_features={
            "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 480, 640)),
            "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
    )  # fmt: skip

    def count(n, kind="rmt", **changes):
        with torch.device("meta"):
            policy = SmolVLAMemPolicy(
                SmolVLAMemConfig(**config, num_mem_tokens=n, mem_update=kind, **changes)
            )
        assert policy.model.vlm_with_expert.config.text_config.hidden_size == 960
        assert all(p.is_meta for p in policy.parameters())
        return sum(p.numel() for p in policy.parameters())

    stock = count(0)
    return lambda *args, **changes: count(*args, **changes) - stock


@pytest.mark.parametrize(("n", "added"), [(2, 1_920), (4, 3_840), (8, 7_680), (16, 15_360)])
def test_rmt_adds_its_tokens_and_nothing_else(count_weights, n, added):
    assert count_weights(n) == added


@pytest.mark.parametrize(
    "changes", [dict(mem_at_end=False), dict(read_mem_from_cache=True), dict(mem_curriculum_steps=100)]
)
def test_neither_place_nor_cache_nor_curriculum_changes_the_count(count_weights, changes):
    assert count_weights(4, **changes) == 3_840


def test_ema_adds_its_tokens_and_nothing_else(count_weights):
    assert count_weights(4, "ema") == 3_840


def test_gated_adds_what_its_docstring_says(count_weights):
    assert count_weights(4, "gated") == 4 * 960 + 3 * 960**2 + 4 * 960
