# SPDX-License-Identifier: Apache-2.0
"""Pins read_mem_from_cache: memory alone sees the keys and values of the write before, at every layer."""

from dataclasses import replace

import pytest
import torch
from memory_variants import CAMERA, STATE, variants

from smolvla_mem_ros.policy.memory import Memory

both_places = pytest.mark.parametrize("at_end", [True, False], ids=["written_after", "written_in_place"])


@pytest.fixture
def make_reader(make_policy):
    """The policy of ``make_policy`` with ``read_mem_from_cache``; two tokens."""

    def make(update="gated", at_end=True, **changes):
        values = dict(num_mem_tokens=2, read_mem_from_cache=True, mem_update=update, mem_at_end=at_end)
        return make_policy(**{**values, **changes})

    return make


@pytest.fixture
def embed(observe):
    """(policy, batch, seed) -> the stock prefix of an observation."""

    def make(policy, batch=2, seed=0):
        observation = observe(batch, seed)
        with torch.no_grad():
            return policy.model.embed_prefix(
                *policy.prepare_images(observation),
                observation["observation.language.tokens"],
                observation["observation.language.attention_mask"],
                state=policy.prepare_state(observation),
            )

    return make


@pytest.fixture
def remember(embed):
    """A memory that the policy wrote itself; rows that are not filled are empty."""

    def make(policy, batch=2, seed=7, filled=True):
        filled = torch.full((batch,), filled) if isinstance(filled, bool) else torch.tensor(filled)
        with torch.no_grad():
            memory = policy.model.write(embed(policy, batch, seed), policy.model.empty_memory(batch))
        return memory.cleared(~filled)

    return make


def assert_same(one, other, atol=0.0):
    for name in ("tokens", "cache"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=atol)
    assert torch.equal(one.filled, other.filled)


def with_other_cache(memory, seed=0):
    g = torch.Generator().manual_seed(seed)
    return replace(memory, cache=memory.cache + torch.randn(memory.cache.shape, generator=g))


# What is cached -----------------------------------------------------------------------------------


@variants
def test_the_path_adds_no_weights(make_reader, make_policy, update, at_end):
    ours = make_reader(update, at_end).state_dict()
    plain = make_policy(num_mem_tokens=2, mem_update=update, mem_at_end=at_end).state_dict()
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[key], plain[key]) for key in plain)


@both_places
def test_the_cache_holds_what_each_layer_used_for_the_tokens_that_write(make_reader, remember, embed, at_end):
    policy = make_reader(at_end=at_end)
    model, memory = policy.model, remember(policy, filled=[True, False])
    with torch.no_grad():
        prefix = model.add_memory(embed(policy), memory)
        outputs, used = model.prefill(prefix)
        after = model.update_memory(memory, prefix, outputs)
    # (B, layers, 2, n, kv_heads, head_dim) of the tiny model.
    assert after.cache.shape == model.empty_memory(2).cache.shape == (2, 4, 2, 2, 1, 32)
    length = prefix.embs.shape[1]
    rows = slice(length - 2, length) if at_end else slice(0, 2)
    for layer, (keys, values) in enumerate((layer.keys, layer.values) for layer in used.layers):
        # Nothing of the previous segment stays in what the actions look up.
        assert keys.shape[2] == values.shape[2] == length
        assert torch.equal(after.cache[:, layer, 0], keys.transpose(1, 2)[:, rows])
        assert torch.equal(after.cache[:, layer, 1], values.transpose(1, 2)[:, rows])


def test_without_the_path_there_is_no_cache(make_policy, observe):
    policy = make_policy()
    assert policy.model.empty_memory(1).cache is None
    assert policy.infer(observe(1))[1].cache is None


def test_without_memory_the_path_changes_nothing(make_reader, make_stock, observe, noise_for):
    policy, stock = make_reader(num_mem_tokens=0), make_stock()
    noise, _ = noise_for(policy.config, 2)
    assert policy.state_dict().keys() == stock.state_dict().keys()
    assert torch.equal(
        policy.infer(observe(2), None, noise)[0], stock.predict_action_chunk(observe(2), noise)
    )


def test_a_memory_without_the_cache_is_refused(make_reader, remember, observe):
    policy = make_reader()
    with pytest.raises(ValueError, match="read_mem_from_cache: this memory has no cache"):
        policy.infer(observe(2), replace(remember(policy), cache=None))


# Who sees it --------------------------------------------------------------------------------------


@variants
def test_first_segment_acts_as_stock(make_reader, make_stock, observe, noise_for, update, at_end):
    policy = make_reader(update, at_end)
    noise, _ = noise_for(policy.config, 3)
    actions, memory = policy.infer(observe(3), None, noise)
    expected = make_stock().predict_action_chunk(observe(3), noise)
    torch.testing.assert_close(actions, expected, rtol=0, atol=1e-5)
    assert memory.filled.all()


@variants
def test_first_segment_trains_and_writes_as_without_the_path(
    make_reader, make_policy, embed, noise_for, update, at_end
):
    policy = make_reader(update, at_end)
    plain = make_policy(num_mem_tokens=2, mem_update=update, mem_at_end=at_end)
    noise, time = noise_for(policy.config, 2)
    with torch.no_grad():
        losses, memory = policy.model(embed(policy), -noise, policy.model.empty_memory(2), noise, time)
        expected, written = plain.model(embed(plain), -noise, plain.model.empty_memory(2), noise, time)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(memory.tokens, written.tokens, rtol=0, atol=1e-6)


@both_places
def test_in_the_first_segment_nobody_sees_the_cache(make_reader, observe, noise_for, at_end):
    policy = make_reader(at_end=at_end)
    noise, _ = noise_for(policy.config, 2)
    garbage = with_other_cache(policy.model.empty_memory(2))
    actions, after = policy.infer(observe(2), garbage, noise)
    expected, expected_after = policy.infer(observe(2), None, noise)
    assert torch.equal(actions, expected)
    assert_same(after, expected_after)


@variants
def test_memory_depends_on_the_cache_at_every_layer(make_reader, remember, embed, update, at_end):
    policy = make_reader(update, at_end)
    memory = remember(policy)
    cache = memory.cache.requires_grad_()
    after = policy.model.write(embed(policy), memory)
    torch.manual_seed(0)
    (after.tokens * torch.randn_like(after.tokens)).sum().backward()
    # Each row, layer, key or value, and token.
    assert (cache.grad.flatten(4).norm(dim=4) > 1e-9).all()


@both_places
def test_in_a_layer_the_rows_of_memory_alone_see_the_cache(make_reader, remember, embed, noise_for, at_end):
    """With a single layer nothing has time to pass it on."""
    policy = make_reader(at_end=at_end, num_vlm_layers=1)
    model, body, memory = policy.model, embed(policy, 3), remember(policy, 3, filled=[True, False, True])
    noise, time = noise_for(policy.config, 3)

    def run(memory):
        with torch.no_grad():
            outputs, _ = model.prefill(model.add_memory(body, memory))
            return outputs, *model(body, -noise, memory, noise, time)

    outputs, losses, _ = run(memory)
    other_outputs, other_losses, _ = run(with_other_cache(memory))
    assert torch.equal(losses, other_losses)
    changed = (outputs - other_outputs).abs().amax(2) > 0
    # A row of padding, blind to all, takes the mean of what there is; nobody looks at it.
    changed[:, 2 : 2 + body[1].shape[1]] &= body[1]
    sees = [True] * 2 + [False] * body[1].shape[1] + [True] * (2 if at_end else 0)
    assert changed.tolist() == [sees, [False] * len(sees), sees]


@variants
def test_actions_depend_on_the_cache_through_the_read_tokens(
    make_reader, remember, observe, embed, noise_for, update, at_end
):
    policy = make_reader(update, at_end)
    memory = remember(policy, filled=[True, False])
    noise, time = noise_for(policy.config, 2)
    acted = [policy.infer(observe(2), m, noise)[0] for m in (memory, with_other_cache(memory))]
    with torch.no_grad():
        trained = [
            policy.model(embed(policy), -noise, m, noise, time)[0] for m in (memory, with_other_cache(memory))
        ]
    for one, other in (acted, trained):
        assert (one[0] - other[0]).abs().max() > 1e-5
        assert torch.equal(one[1], other[1])


@both_places
def test_denoising_sees_the_prefix_alone(make_reader, remember, observe, noise_for, monkeypatch, at_end):
    """Counted at the attention itself: only the pass of the prefix has columns beyond its sequence."""
    policy = make_reader(at_end=at_end)
    memory = remember(policy, filled=[True, False])
    noise, _ = noise_for(policy.config, 2)
    widths = []
    attention = type(policy.model.vlm_with_expert).eager_attention_forward

    def watch(self, mask, batch, head_dim, queries, keys, values):
        assert mask.shape == (2, queries.shape[1], keys.shape[1])
        widths.append((queries.shape[1], keys.shape[1]))
        return attention(self, mask, batch, head_dim, queries, keys, values)

    monkeypatch.setattr(type(policy.model.vlm_with_expert), "eager_attention_forward", watch)
    policy.infer(observe(2), memory, noise)
    prefix, horizon, layers, steps = widths[0][0], policy.config.chunk_size, 4, policy.config.num_steps
    assert widths[:layers] == [(prefix, prefix + 2)] * layers
    # Every second layer of the expert is self-attention, the others look at the prefix alone.
    assert widths[layers:] == [(horizon, prefix + horizon), (horizon, prefix)] * (layers // 2) * steps


@variants
@pytest.mark.parametrize("filled", [False, True, [True, False, True]])
def test_training_and_inference_write_the_same(
    make_reader, remember, observe, embed, noise_for, update, at_end, filled
):
    policy = make_reader(update, at_end)
    body, memory = embed(policy, 3), remember(policy, 3, filled=filled)
    noise, time = noise_for(policy.config, 3)
    with torch.no_grad():
        trained = policy.model(body, -noise, memory, noise, time)[1]
        written = policy.model.write(body, memory)
    inferred = policy.infer(observe(3), memory, noise)[1]
    assert_same(trained, written, atol=1e-6)
    assert_same(trained, inferred, atol=1e-6)


@pytest.mark.parametrize(
    "layout",
    [
        dict(attention_mode="self_attn"),
        dict(self_attn_every_n_layers=-1),
        dict(num_expert_layers=2, self_attn_every_n_layers=4),
        # Action rows as many as the prefix has.
        dict(chunk_size=12, resize_imgs_with_padding=(32, 32)),
    ],
    ids=["self_attention", "cross_attention", "fewer_expert_layers", "long_chunk"],
)
def test_the_path_works_with_every_layout_of_the_expert(
    make_reader, remember, observe, embed, noise_for, layout
):
    policy = make_reader(**{**layout, "n_action_steps": 3}, num_steps=1)
    body, memory = embed(policy), remember(policy, filled=[True, False])
    noise, _ = noise_for(policy.config, 2)
    with torch.no_grad():
        losses, trained = policy.model(body, torch.zeros_like(noise), memory, noise, torch.ones(2))
    actions, inferred = policy.infer(observe(2), memory, noise)
    assert_same(trained, inferred, atol=1e-6)
    # One Euler step from t=1 moves the noise by the velocity that the training pass scores.
    torch.testing.assert_close(actions.pow(2), losses, rtol=1e-4, atol=1e-5)


@variants
def test_memory_never_sees_actions(make_reader, remember, observe, noise_for, update, at_end):
    policy = make_reader(update, at_end)
    memory = remember(policy, filled=[True, False])
    one, two = (policy.infer(observe(2), memory, noise_for(policy.config, 2, seed)[0])[1] for seed in (1, 2))
    assert_same(one, two)


# Rows and the running episode ---------------------------------------------------------------------


@variants
def test_rows_of_a_batch_equal_the_rows_alone(make_reader, remember, observe, noise_for, update, at_end):
    policy = make_reader(update, at_end)
    observation, memory = observe(3), remember(policy, 3, filled=[True, False, True])
    noise, _ = noise_for(policy.config, 3)
    actions, after = policy.infer(observation, memory, noise)
    for row in range(3):
        only = torch.tensor([row])
        alone, alone_after = policy.infer(
            {key: value[only] for key, value in observation.items()}, memory.rows(only), noise[only]
        )
        torch.testing.assert_close(actions[only], alone, rtol=0, atol=1e-5)
        assert_same(after.rows(only), alone_after, atol=1e-5)


@both_places
def test_one_rows_cache_cannot_influence_another(make_reader, remember, observe, noise_for, at_end):
    policy = make_reader(at_end=at_end)
    memory, first = remember(policy), torch.tensor([0])
    other = with_other_cache(memory).with_rows(first, memory.rows(first))
    noise, _ = noise_for(policy.config, 2)
    actions, after = policy.infer(observe(2), memory, noise)
    actions_2, after_2 = policy.infer(observe(2), other, noise)
    assert torch.equal(actions[0], actions_2[0]) and not torch.equal(actions[1], actions_2[1])
    assert_same(after.rows(first), after_2.rows(first))
    assert not torch.equal(after.tokens[1], after_2.tokens[1])


def test_the_cache_is_carried_and_forgotten_with_the_memory(make_reader, observe, noise_for):
    """Row 1 starts again at step 4: select_action must give what infer gives by hand."""
    policy = make_reader()
    memory, row, rest = None, torch.tensor([False, True]), torch.tensor([True, False])

    def at(step):
        return observe(2, seed=step), noise_for(policy.config, 2, seed=step)[0]

    for step in range(5):
        if step == 4:
            policy.reset(row)
        policy.select_action(*at(step))
        if step in (0, 3):
            memory = policy.infer(at(step)[0], memory, at(step)[1])[1]
    assert_same(policy._memory.rows(rest), memory.rows(rest))
    observation, noise = at(4)
    begun = policy.infer({key: value[row] for key, value in observation.items()}, None, noise[row])[1]
    assert_same(policy._memory.rows(row), begun)


def test_infer_changes_nothing_and_repeats(make_reader, remember, observe, noise_for):
    policy = make_reader()
    memory, weights = remember(policy), {k: v.clone() for k, v in policy.state_dict().items()}
    inside = dict(vars(policy.model.vlm_with_expert))
    kept = Memory(memory.tokens.clone(), memory.filled.clone(), memory.cache.clone())
    noise, _ = noise_for(policy.config, 2)
    one, after = policy.infer(observe(2), memory, noise)
    two, again = policy.infer(observe(2), memory, noise)
    assert torch.equal(one, two)
    assert_same(after, again)
    assert_same(memory, kept)
    assert not after.cache.requires_grad
    assert vars(policy.model.vlm_with_expert) == inside
    assert all(torch.equal(value, weights[key]) for key, value in policy.state_dict().items())


# Training through time ----------------------------------------------------------------------------


@variants
def test_a_loss_reaches_the_previous_write_through_the_cache_alone(
    make_reader, embed, noise_for, update, at_end
):
    policy = make_reader(update, at_end)
    model = policy.model
    embs, pad, blocks = embed(policy, 2, seed=1)
    embs.requires_grad_()
    before = model.write((embs, pad, blocks), model.empty_memory(2))
    noise, time = noise_for(policy.config, 2)
    losses, _ = model(embed(policy), -noise, replace(before, tokens=before.tokens.detach()), noise, time)
    losses.sum().backward()
    assert embs.grad[pad].norm(dim=1).min() > 1e-9
    assert model.mem_tokens.grad.norm(dim=1).min() > 1e-9


@variants
def test_depth_zero_cuts_every_boundary_exactly(make_reader, make_sample, update, at_end):
    policy = make_reader(update, at_end, mem_segments=1, mem_backprop_depth=0)
    policy(make_sample(policy.config))[0].backward()
    for parameter in (policy.model.mem_tokens, *policy.model.mem_update.parameters()):
        assert parameter.grad is None or torch.count_nonzero(parameter.grad) == 0


@variants
@pytest.mark.parametrize(("depth", "reached"), [(0, 1), (1, 2), (2, 3), (None, 4)])
def test_the_gradient_crosses_as_many_boundaries_as_asked(
    make_reader, make_sample, update, at_end, depth, reached
):
    policy = make_reader(
        update, at_end, mem_segments=4, mem_stride=6, mem_anchor=False, mem_backprop_depth=depth
    )
    sample = make_sample(policy.config)
    sample["action_is_pad"][:, : -policy.config.chunk_size] = True
    sample[STATE].requires_grad_()
    policy(sample)[0].backward()
    assert (sample[STATE].grad.abs().amax(2) > 0).tolist() == [[False] * (4 - reached) + [True] * reached] * 2


@both_places
def test_a_skipped_slot_keeps_the_cache_before_it(make_reader, make_sample, noise_for, at_end):
    """From the anchor over two slots before the episode to the present, as by hand."""
    policy = make_reader(at_end=at_end, mem_stride=6)
    sample = make_sample(policy.config)
    sample[f"{STATE}_is_pad"] = torch.tensor([[True, True, True, False]] * 2)
    noise, time = noise_for(policy.config, 2, segments=3)
    with torch.no_grad():
        loss, _ = policy(sample, noise=noise, time=time)
        bodies = policy._unroll(sample).bodies
        memory = policy.model.write(bodies[0], policy.model.empty_memory(2))
        losses, _ = policy.model(bodies[-1], sample["action"][:, -5:], memory, noise[:, -1], time[:, -1])
    torch.testing.assert_close(loss, losses.mean(), rtol=0, atol=1e-6)
    sample[CAMERA][:, 1:3] = 0
    with torch.no_grad():
        assert torch.equal(loss, policy(sample, noise=noise, time=time)[0])


def test_with_a_frozen_vlm_the_memory_is_trained_through_the_cache(make_reader, make_sample):
    policy = make_reader(train_expert_only=True, freeze_vision_encoder=True)
    policy(make_sample(policy.config))[0].backward()
    assert policy.model.mem_tokens.grad.norm(dim=1).min() > 0
    frozen = [p for p in policy.model.vlm_with_expert.vlm.parameters() if p.grad is not None]
    assert not frozen
