# SPDX-License-Identifier: Apache-2.0
"""Pins inference: stock SmolVLA until the first write, what sees what, rows that never mix."""

import copy

import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching
from memory_variants import CAMERA, STATE, variants

from smolvla_mem_ros.policy.memory import Memory


def rows_of(batch, index):
    return {key: value[index] for key, value in batch.items()}


def random_memory(policy, batch, seed=3, filled=True):
    g = torch.Generator().manual_seed(seed)
    n, hidden = policy.config.num_mem_tokens, policy.model.hidden_size
    tokens = policy.config.mem_token_scale * torch.randn(batch, n, hidden, generator=g)
    filled = torch.full((batch,), filled) if isinstance(filled, bool) else torch.tensor(filled)
    return Memory(torch.where(filled[:, None, None], tokens, 0), filled)


def stock_sample(observation, config, seed=0):
    """The observation with actions to train stock SmolVLA on."""
    g = torch.Generator().manual_seed(seed)
    size = observation[STATE].shape[0]
    is_pad = torch.zeros(size, config.chunk_size, dtype=torch.bool)
    is_pad[-1, -2:] = True
    actions = torch.randn(size, config.chunk_size, config.action_feature.shape[0], generator=g)
    return {**observation, "action": actions, "action_is_pad": is_pad}


@pytest.fixture
def counted(monkeypatch):
    """Counts the rows of each inference of a policy."""

    def watch(policy):
        sizes, sample_actions = [], policy.model.sample_actions

        def count(images, *args, **kwargs):
            sizes.append(images[0].shape[0])
            return sample_actions(images, *args, **kwargs)

        monkeypatch.setattr(policy.model, "sample_actions", count)
        return sizes

    return watch


# Without memory -----------------------------------------------------------------------------------


def test_without_memory_model_and_weights_are_stock(make_policy, make_stock):
    policy, stock = make_policy(num_mem_tokens=0), make_stock()
    assert type(policy.model) is VLAFlowMatching
    ours, theirs = policy.state_dict(), stock.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_without_memory_the_loss_is_bit_equal_to_stock(make_policy, make_stock, observe, reduction):
    policy, stock = make_policy(num_mem_tokens=0).train(), make_stock().train()
    results = []
    for model in (policy, stock):
        torch.manual_seed(7)
        loss, log = model(stock_sample(observe(3), model.config), reduction=reduction)
        loss.sum().backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append((loss, log, gradients))
    (loss, log, gradients), (stock_loss, stock_log, stock_gradients) = results
    assert torch.equal(loss, stock_loss)
    assert log == stock_log
    assert gradients.keys() == stock_gradients.keys()
    assert all(torch.equal(gradients[key], stock_gradients[key]) for key in gradients)


def test_without_memory_a_chunk_is_bit_equal_to_stock(make_policy, make_stock, observe):
    chunks = []
    for model in (make_policy(num_mem_tokens=0), make_stock()):
        torch.manual_seed(7)
        chunks.append(model.predict_action_chunk(observe(3)))
    assert torch.equal(*chunks)


def test_without_memory_actions_are_bit_equal_to_stock_over_several_chunks(make_policy, make_stock, observe):
    runs = []
    for model in (make_policy(num_mem_tokens=0), make_stock()):
        torch.manual_seed(7)
        actions = [model.select_action(observe(2, seed=step)) for step in range(8)]
        model.reset()
        runs.append(torch.stack([*actions, model.select_action(observe(2, seed=99))]))
    assert runs[0].shape == (9, 2, 3)
    assert torch.equal(*runs)


def test_without_memory_infer_gives_the_chunk_and_no_memory(make_policy, make_stock, observe, noise_for):
    policy, stock = make_policy(num_mem_tokens=0), make_stock()
    noise, _ = noise_for(policy.config, 2)
    actions, memory = policy.infer(observe(2), None, noise)
    assert memory is None
    assert torch.equal(actions, stock.predict_action_chunk(observe(2), noise))


# First segment ------------------------------------------------------------------------------------


@variants
@pytest.mark.parametrize("prefix_length", [-1, 40])
def test_first_segment_acts_as_stock(
    make_policy, make_stock, observe, noise_for, update, at_end, prefix_length
):
    policy = make_policy(mem_update=update, mem_at_end=at_end, prefix_length=prefix_length)
    stock = make_stock(prefix_length=prefix_length)
    noise, _ = noise_for(policy.config, 3)
    actions, memory = policy.infer(observe(3), None, noise)
    torch.testing.assert_close(actions, stock.predict_action_chunk(observe(3), noise), rtol=0, atol=1e-5)
    assert memory.filled.all()


@variants
@pytest.mark.parametrize("prefix_length", [-1, 40])
def test_first_segment_has_the_loss_of_stock(
    make_policy, make_stock, observe, noise_for, update, at_end, prefix_length
):
    changes = dict(mem_segments=1, mem_anchor=False, prefix_length=prefix_length)
    policy = make_policy(mem_update=update, mem_at_end=at_end, **changes)
    stock = make_stock(prefix_length=prefix_length)
    sample = stock_sample(observe(3), policy.config)
    noise, time = noise_for(policy.config, 3)
    expected, _ = stock(sample, noise=noise, time=time, reduction="none")

    unrolled = {**sample, CAMERA: sample[CAMERA][:, None], STATE: sample[STATE][:, None]}
    first = sample["action"][:, :1]
    unrolled["action"] = torch.cat([first, sample["action"]], dim=1)
    unrolled["action_is_pad"] = torch.cat(
        [torch.ones(3, 1, dtype=torch.bool), sample["action_is_pad"]], dim=1
    )
    loss, _ = policy(unrolled, noise=noise[:, None], time=time[:, None], reduction="none")
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)


def test_the_same_seed_gives_stock_weights_with_memory_too(make_policy, make_stock):
    ours, theirs = make_policy().state_dict(), make_stock().state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_padding_of_the_language_changes_nothing(make_policy, observe, noise_for):
    """A row with padded words acts and remembers as it does when the padding is cut off."""
    for at_end in (True, False):
        policy = make_policy(mem_at_end=at_end)
        noise, _ = noise_for(policy.config, 1)
        padded = rows_of(observe(3), slice(2, 3))
        short = {k: v[:, :-2] if "language" in k else v for k, v in padded.items()}
        memory = random_memory(policy, 1)
        actions, after = policy.infer(padded, memory, noise)
        expected, expected_after = policy.infer(short, memory, noise)
        torch.testing.assert_close(actions, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(after.tokens, expected_after.tokens, rtol=0, atol=1e-5)


# What sees what -----------------------------------------------------------------------------------


# Two memory tokens around an image token, a word, a padded word and the state. Query rows, key columns; the
# first line is what actions see, "." is blind. A row of padding sees nothing.
SEES = {
    # at_end, filled
    (True, True): """
        rr iw.s ..
        rr iw.. ..  read
        rr iw.. ..
        rr iw.. ..  image
        rr iw.. ..  word
        .. .... ..  padding
        rr iw.s ..  state
        rr iw.s WW  write
        rr iw.s WW
    """,
    (True, False): """
        .. iw.s ..
        rr iw.. ..  read
        rr iw.. ..
        .. iw.. ..  image
        .. iw.. ..  word
        .. .... ..  padding
        .. iw.s ..  state
        .. iw.s WW  write
        .. iw.s WW
    """,
    (False, True): """
        rr iw.s
        rr iw.s  read, which also writes
        rr iw.s
        rr iw..  image
        rr iw..  word
        .. ....  padding
        rr iw.s  state
    """,
    (False, False): """
        .. iw.s
        rr iw.s  read, which also writes
        rr iw.s
        .. iw..  image
        .. iw..  word
        .. ....  padding
        .. iw.s  state
    """,
}


@pytest.mark.parametrize("at_end", [True, False])
def test_the_masks_and_positions_are_those_of_the_figure(make_policy, at_end):
    model = make_policy(num_mem_tokens=2, mem_at_end=at_end).model
    pad = torch.tensor([[True, True, False, True]]).expand(2, -1)
    blocks = torch.tensor([[False, False, False, True]]).expand(2, -1)
    filled = torch.tensor([True, False])
    memory = Memory(torch.ones(2, 2, model.hidden_size), filled)
    prefix = model.add_memory((torch.zeros(2, 4, model.hidden_size), pad, blocks), memory)
    for row in range(2):
        lines = SEES[at_end, bool(filled[row])].strip().splitlines()
        width = prefix.embs.shape[1]
        drawn = torch.tensor([[c != "." for c in line.replace(" ", "")[:width]] for line in lines])
        assert torch.equal(prefix.visible[row], drawn[0])
        assert torch.equal(prefix.attention[row], drawn[1:])
    # Without memory the body keeps the positions of stock; padding takes no position of its own.
    read, write = [[0, 1], [0, 1]], [[5, 6], [3, 4]] if at_end else [[], []]
    body = [[2, 3, 3, 4], [0, 1, 1, 2]]
    assert prefix.positions.tolist() == [r + b + w for r, b, w in zip(read, body, write, strict=True)]
    assert torch.equal(prefix.embs[0, :2], memory.tokens[0] * model.hidden_size**0.5)


@variants
@pytest.mark.parametrize("prefix_length", [-1, 40])
def test_the_new_memory_is_made_of_the_outputs_of_its_own_tokens(
    make_policy, observe, update, at_end, prefix_length
):
    policy = make_policy(mem_update=update, mem_at_end=at_end, prefix_length=prefix_length)
    model, body, memory = policy.model, embed(policy, observe(2)), random_memory(policy, 2)
    with torch.no_grad():
        outputs, _ = model.prefill(model.add_memory(body, memory))
        n = policy.config.num_mem_tokens
        assert outputs.shape[1] == body[0].shape[1] + (2 * n if at_end else n)
        own = outputs[:, -n:] if at_end else outputs[:, :n]
        assert torch.equal(model.write(body, memory).tokens, model.mem_update(memory, own).tokens)


@variants
def test_later_actions_depend_on_the_memory(make_policy, observe, noise_for, update, at_end):
    policy = make_policy(mem_update=update, mem_at_end=at_end)
    noise, _ = noise_for(policy.config, 1)
    empty = policy.infer(observe(1), None, noise)[0]
    one = policy.infer(observe(1), random_memory(policy, 1, seed=1), noise)[0]
    two = policy.infer(observe(1), random_memory(policy, 1, seed=2), noise)[0]
    assert (one - two).abs().max() > 1e-3
    assert (one - empty).abs().max() > 1e-3


@variants
def test_what_was_seen_before_changes_later_actions(make_policy, observe, noise_for, update, at_end):
    policy = make_policy(mem_update=update, mem_at_end=at_end)
    noise, _ = noise_for(policy.config, 1)
    later = [
        policy.infer(observe(1, seed=9), policy.infer(observe(1, seed=seed), None, noise)[1], noise)[0]
        for seed in (1, 2)
    ]
    assert (later[0] - later[1]).abs().max() > 1e-5


@pytest.mark.parametrize("filled", [False, True])
def test_actions_do_not_see_write_tokens(make_policy, observe, noise_for, filled):
    policy = make_policy(mem_at_end=True)
    noise, _ = noise_for(policy.config, 2)
    memory = random_memory(policy, 2, filled=filled)
    before, written = policy.infer(observe(2), memory, noise)
    with torch.no_grad():
        policy.model.mem_tokens.mul_(-30)
    after, rewritten = policy.infer(observe(2), memory, noise)
    assert torch.equal(before, after)
    assert (written.tokens - rewritten.tokens).abs().max() > 1e-3


@pytest.mark.parametrize("at_end", [True, False])
def test_in_the_first_segment_nothing_but_memory_sees_the_read_block(make_policy, observe, noise_for, at_end):
    policy = make_policy(mem_at_end=at_end)
    noise, _ = noise_for(policy.config, 2)
    garbage = Memory(
        torch.full_like(policy.model.empty_memory(2).tokens, 3.0), torch.zeros(2, dtype=torch.bool)
    )
    actions, after = policy.infer(observe(2), garbage, noise)
    expected, expected_after = policy.infer(observe(2), None, noise)
    assert torch.equal(actions, expected)
    assert torch.equal(after.tokens, expected_after.tokens)


@variants
@pytest.mark.parametrize("changed", [STATE, CAMERA, "observation.language.tokens"])
def test_memory_sees_the_whole_observation(make_policy, observe, noise_for, update, at_end, changed):
    policy = make_policy(mem_update=update, mem_at_end=at_end)
    noise, _ = noise_for(policy.config, 1)
    memory = random_memory(policy, 1)
    observation = observe(1)
    other = {**observation, changed: observe(1, seed=1)[changed]}
    one, two = (policy.infer(o, memory, noise)[1].tokens for o in (observation, other))
    # The least of these, language in a random model, measured 1e-4.
    assert (one - two).abs().max() > 1e-5


@variants
def test_memory_never_sees_actions(make_policy, observe, noise_for, update, at_end):
    policy = make_policy(mem_update=update, mem_at_end=at_end)
    memory = random_memory(policy, 2, filled=[True, False])
    one, _ = noise_for(policy.config, 2, seed=1)
    two, _ = noise_for(policy.config, 2, seed=2)
    assert torch.equal(
        policy.infer(observe(2), memory, one)[1].tokens, policy.infer(observe(2), memory, two)[1].tokens
    )

    model = policy.model
    body = embed(policy, observe(2))
    with torch.no_grad():
        written = [
            model(body, 5 * actions, memory, noise, torch.tensor([time, 0.5]))[1].tokens
            for actions, noise, time in ((one, two, 0.1), (two, one, 0.9))
        ]
    assert torch.equal(*written)


def embed(policy, observation):
    images, masks = policy.prepare_images(observation)
    with torch.no_grad():
        return policy.model.embed_prefix(
            images,
            masks,
            observation["observation.language.tokens"],
            observation["observation.language.attention_mask"],
            state=policy.prepare_state(observation),
        )


@variants
@pytest.mark.parametrize("filled", [False, True, [True, False, True]])
def test_training_and_inference_write_the_same(make_policy, observe, noise_for, update, at_end, filled):
    policy = make_policy(mem_update=update, mem_at_end=at_end)
    body = embed(policy, observe(3))
    memory = random_memory(policy, 3, filled=filled)
    noise, time = noise_for(policy.config, 3)
    with torch.no_grad():
        trained = policy.model(body, noise, memory, noise, time)[1]
        written = policy.model.write(body, memory)
    inferred = policy.infer(observe(3), memory, noise)[1]
    for other in (written, inferred):
        torch.testing.assert_close(trained.tokens, other.tokens, rtol=0, atol=1e-6)
        assert other.filled.all()


@pytest.mark.parametrize("at_end", [True, False])
def test_training_and_denoising_see_the_same(make_policy, observe, noise_for, at_end):
    """One Euler step from t=1 moves the noise by the velocity that the training pass scores."""
    policy = make_policy(mem_at_end=at_end, num_steps=1)
    memory = random_memory(policy, 2, filled=[True, False])
    noise, _ = noise_for(policy.config, 2)
    actions = policy.infer(observe(2), memory, noise)[0]
    with torch.no_grad():
        # With u = noise - target, x1 - v = target + (u - v).
        target = torch.zeros_like(noise)
        losses, _ = policy.model(embed(policy, observe(2)), target, memory, noise, torch.ones(2))
    torch.testing.assert_close(actions.pow(2), losses, rtol=1e-4, atol=1e-5)


def test_learned_tokens_start_apart_and_as_loud_as_words(make_policy):
    model = make_policy().model
    words = model.vlm_with_expert.get_vlm_model().text_model.get_input_embeddings().weight
    tokens = model.mem_tokens.detach()
    torch.testing.assert_close(tokens.std(), words.std(), rtol=0.2, atol=0)
    similarity = torch.nn.functional.cosine_similarity(tokens[:, None], tokens[None], dim=-1)
    assert (similarity - torch.eye(len(tokens))).abs().max() < 0.5


@variants
def test_memory_is_neither_drowned_by_its_neighbours_nor_drowns_them(make_policy, observe, update, at_end):
    """Measured: image 3.9, state 0.5, words 0.2; memory 2.0, after one write and after ten."""
    policy = make_policy(mem_update=update, mem_at_end=at_end)
    body = embed(policy, observe(1))
    image = body[0][:, 0].pow(2).mean().sqrt()
    memory = policy.model.empty_memory(1)
    for _ in range(10):
        with torch.no_grad():
            memory = policy.model.write(body, memory)
        read = policy.model.add_memory(body, memory).embs[:, : policy.config.num_mem_tokens]
        loudness = read.detach().pow(2).mean(-1).sqrt()
        assert (loudness / image).min() > 0.2 and (loudness / image).max() < 2


# A pure function ----------------------------------------------------------------------------------


@variants
def test_infer_changes_nothing_and_repeats(make_policy, observe, noise_for, update, at_end):
    policy = make_policy(mem_update=update, mem_at_end=at_end)
    policy.select_action(observe(2))
    noise, _ = noise_for(policy.config, 2)
    arguments = (observe(2, seed=1), random_memory(policy, 2, filled=[True, False]), noise)
    kept = copy.deepcopy(arguments)
    weights = copy.deepcopy(policy.state_dict())
    inside = {
        key: copy.deepcopy(value) for key, value in vars(policy).items() if not key.startswith("_modules")
    }

    first, memory = policy.infer(*arguments)
    torch.manual_seed(123)
    second, again = policy.infer(*arguments)

    assert torch.equal(first, second)
    assert torch.equal(memory.tokens, again.tokens)
    assert not first.requires_grad and not memory.tokens.requires_grad
    assert all(torch.equal(arguments[0][key], value) for key, value in kept[0].items())
    assert arguments[0].keys() == kept[0].keys()
    assert torch.equal(arguments[1].tokens, kept[1].tokens) and torch.equal(
        arguments[1].filled, kept[1].filled
    )
    assert torch.equal(arguments[2], kept[2])
    assert all(torch.equal(value, weights[key]) for key, value in policy.state_dict().items())
    for key, value in inside.items():
        now = getattr(policy, key)
        if isinstance(value, Memory):
            assert torch.equal(now.tokens, value.tokens) and torch.equal(now.filled, value.filled)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(now, value)
        elif isinstance(value, int | bool | str | type(None)):
            assert now == value


def test_noise_is_drawn_when_none_is_given(make_policy, observe):
    policy = make_policy()
    torch.manual_seed(0)
    one = policy.infer(observe(1))[0]
    two = policy.infer(observe(1))[0]
    torch.manual_seed(0)
    assert not torch.equal(one, two)
    assert torch.equal(one, policy.infer(observe(1))[0])


def test_inference_works_in_inference_mode(make_policy, observe):
    """LeRobot evaluates so; what is remembered there must not break a later training step."""
    policy = make_policy()
    with torch.inference_mode():
        for step in range(7):
            if step == 5:
                policy.reset(torch.tensor([True, False]))
            assert torch.isfinite(policy.select_action(observe(2, seed=step))).all()
    assert torch.isfinite(policy.select_action(observe(2))).all()


# Rows of a batch ----------------------------------------------------------------------------------


@variants
def test_rows_of_a_batch_equal_the_rows_alone(make_policy, observe, noise_for, update, at_end):
    policy = make_policy(mem_update=update, mem_at_end=at_end)
    observation, memory = observe(3), random_memory(policy, 3, filled=[True, False, True])
    noise, _ = noise_for(policy.config, 3)
    actions, after = policy.infer(observation, memory, noise)
    for row in range(3):
        only = torch.tensor([row])
        alone, alone_after = policy.infer(rows_of(observation, only), memory.rows(only), noise[only])
        torch.testing.assert_close(actions[only], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(after.tokens[only], alone_after.tokens, rtol=0, atol=1e-5)


@variants
def test_one_row_cannot_influence_another(make_policy, observe, noise_for, update, at_end):
    policy = make_policy(mem_update=update, mem_at_end=at_end)
    noise, _ = noise_for(policy.config, 2)
    memory, other = random_memory(policy, 2), random_memory(policy, 2, seed=8)
    other = other.with_rows(torch.tensor([0]), memory.rows(torch.tensor([0])))
    observation, changed = observe(2), observe(2, seed=5)
    for key in changed:
        changed[key] = torch.cat([observation[key][:1], changed[key][1:]])
    actions, after = policy.infer(observation, memory, noise)
    actions_2, after_2 = policy.infer(changed, other, noise)
    assert torch.equal(actions[0], actions_2[0]) and torch.equal(after.tokens[0], after_2.tokens[0])
    assert not torch.equal(actions[1], actions_2[1]) and not torch.equal(after.tokens[1], after_2.tokens[1])


# LeRobot's protocol -------------------------------------------------------------------------------


def run(policy, observe, noise_for, steps, resets=None, batch=3):
    """Actions (steps, B, A), and the memory after each step."""
    policy.reset()
    actions, memories = [], []
    for step in range(steps):
        if resets and step in resets:
            policy.reset(resets[step])
        noise, _ = noise_for(policy.config, batch, seed=step)
        actions.append(policy.select_action(observe(batch, seed=step), noise))
        memories.append(policy._memory)
    return torch.stack(actions), memories


def test_select_action_is_infer_with_the_memory_carried(make_policy, observe, noise_for):
    policy = make_policy(mem_update="gated")
    steps = policy.config.n_action_steps
    actions, memories = run(policy, observe, noise_for, 3 * steps, batch=2)
    memory = None
    for chunk in range(3):
        step = chunk * steps
        noise, _ = noise_for(policy.config, 2, seed=step)
        expected, memory = policy.infer(observe(2, seed=step), memory, noise)
        assert torch.equal(actions[step : step + steps], expected[:, :steps].transpose(0, 1))
        assert all(torch.equal(m.tokens, memory.tokens) for m in memories[step : step + steps])


def test_each_predicted_chunk_is_one_memory_write(make_policy, observe, noise_for):
    policy = make_policy()
    memory = None
    for step in range(3):
        noise, _ = noise_for(policy.config, 2, seed=step)
        chunk = policy.predict_action_chunk(observe(2, seed=step), noise)
        expected, memory = policy.infer(observe(2, seed=step), memory, noise)
        assert torch.equal(chunk, expected)


def test_reset_forgets_memory_and_actions(make_policy, observe, noise_for):
    policy = make_policy()
    first, _ = run(policy, observe, noise_for, 5, batch=2)
    again, _ = run(policy, observe, noise_for, 5, batch=2)
    assert torch.equal(first, again)


def test_a_batch_of_another_size_may_follow_a_reset(make_policy, observe, noise_for):
    policy = make_policy()
    run(policy, observe, noise_for, 2, batch=3)
    actions, _ = run(policy, observe, noise_for, 2, batch=1)
    assert actions.shape == (2, 1, 3)


@pytest.mark.parametrize("n", [0, 4])
def test_reset_of_a_row_leaves_the_others(make_policy, observe, noise_for, counted, n):
    policy = make_policy(num_mem_tokens=n)
    sizes = counted(policy)
    plain, plain_memories = run(policy, observe, noise_for, 9)
    assert sizes == [3, 3, 3]

    sizes.clear()
    row = torch.tensor([False, True, False])
    actions, memories = run(policy, observe, noise_for, 9, resets={4: row})
    # Row 1 starts again at step 4 and keeps its own clock: 4, 7; the others infer at 0, 3, 6.
    assert sizes == [3, 3, 1, 2, 1]
    others = [0, 2]
    torch.testing.assert_close(actions[:, others], plain[:, others], rtol=0, atol=1e-5)
    torch.testing.assert_close(actions[:4, 1], plain[:4, 1], rtol=0, atol=0)
    assert (actions[4:, 1] - plain[4:, 1]).abs().max() > 1e-3
    for step in range(9 if n else 0):
        torch.testing.assert_close(
            memories[step].tokens[others], plain_memories[step].tokens[others], rtol=0, atol=1e-5
        )

    # Row 1 is now what it would be in an episode that began at step 4.
    noise, _ = noise_for(policy.config, 3, seed=4)
    begun, begun_memory = policy.infer(rows_of(observe(3, seed=4), row), None, noise[row])
    torch.testing.assert_close(actions[4:7, 1], begun[0, :3], rtol=0, atol=1e-5)
    if n:
        torch.testing.assert_close(memories[4].tokens[1], begun_memory.tokens[0], rtol=0, atol=1e-5)


def test_reset_of_a_row_leaves_the_others_when_whole_chunks_are_asked_for(make_policy, observe, noise_for):
    policy = make_policy()
    noise, _ = noise_for(policy.config, 3)
    policy.predict_action_chunk(observe(3), noise)
    memory = policy.infer(observe(3), None, noise)[1]
    row = torch.tensor([False, True, False])
    policy.reset(row)
    chunk = policy.predict_action_chunk(observe(3, seed=1), noise)
    expected = policy.infer(observe(3, seed=1), memory.cleared(row), noise)[0]
    assert torch.equal(chunk, expected)


def test_reset_of_no_row_changes_nothing(make_policy, observe, noise_for, counted):
    policy = make_policy()
    plain, _ = run(policy, observe, noise_for, 5)
    sizes = counted(policy)
    actions, _ = run(policy, observe, noise_for, 5, resets={4: torch.zeros(3, dtype=torch.bool)})
    assert torch.equal(plain, actions)
    assert sizes == [3, 3]


def test_reset_of_rows_before_anything_was_inferred_is_a_reset(make_policy, observe, noise_for):
    policy = make_policy()
    policy.reset(torch.tensor([True, False, False]))
    actions, memories = run(policy, observe, noise_for, 1)
    assert actions.shape == (1, 3, 3) and memories[0].filled.all()


def test_each_row_infers_once_per_its_own_steps(make_policy, observe, noise_for, monkeypatch):
    """Rows are told apart by their state, whatever the order of resets."""
    policy = make_policy()
    seen, sample_actions = [], policy.model.sample_actions

    def record(images, masks, tokens, token_masks, state, **kwargs):
        seen.extend(state[:, 0].tolist())
        return sample_actions(images, masks, tokens, token_masks, state, **kwargs)

    monkeypatch.setattr(policy.model, "sample_actions", record)
    resets = {2: [0], 4: [1], 6: [0, 2], 7: [2], 11: [1]}
    expected = {1: [0, 2, 5, 6, 9, 12], 2: [0, 3, 4, 7, 10, 11], 3: [0, 3, 6, 7, 10, 13]}
    for step in range(14):
        if step in resets:
            policy.reset(torch.tensor([row in resets[step] for row in range(3)]))
        observation = observe(3, seed=step)
        observation[STATE][:, 0] = torch.arange(3) + 1
        policy.select_action(observation)
        assert seen == [row for row, steps in expected.items() if step in steps], f"step {step}"
        seen.clear()
