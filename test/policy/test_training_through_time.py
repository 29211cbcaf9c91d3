# SPDX-License-Identifier: Apache-2.0
"""Pins training: which frames of a real dataset count, how far the gradient reaches, and that it learns."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy as lerobot_make_policy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from lerobot.utils.utils import has_method
from memory_variants import CAMERA, STATE, variants

from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.policy.configuration_smolvla_mem import MEMORY_UPDATES
from smolvla_mem_ros.policy.memory import Memory
from smolvla_mem_ros.policy.modeling_smolvla_mem import SmolVLAMemPolicy
from smolvla_mem_ros.policy.processor_smolvla_mem import make_smolvla_mem_pre_post_processors

TOKENS = "observation.language.tokens"
TOKEN_MASK = "observation.language.attention_mask"


def reach(policy, sample, noise_for, seed=0):
    """Per row and slot, whether the loss has a gradient in that slot's image and state; and the loss."""
    sample = {
        **sample,
        STATE: sample[STATE].clone().requires_grad_(),
        CAMERA: sample[CAMERA].clone().requires_grad_(),
    }
    noise, time = noise_for(policy.config, len(sample[STATE]), seed, segments=policy.config.mem_segments)
    policy.zero_grad()
    loss, _ = policy(sample, noise=noise, time=time)
    loss.backward()
    state, image = (sample[key].grad.flatten(2).abs().amax(2) > 0 for key in (STATE, CAMERA))
    assert torch.equal(state, image)
    return state.tolist(), loss.item()


def only_last_segment(sample, config):
    """Leave a loss in the last segment alone, and an existing frame before every segment."""
    assert config.stride > config.chunk_size
    is_pad = torch.ones_like(sample["action_is_pad"])
    is_pad[:, -config.chunk_size :] = False
    is_pad[:, :: config.stride] = False
    return {**sample, "action_is_pad": is_pad}


# How far the gradient reaches ---------------------------------------------------------------------


@variants
def test_the_next_segments_loss_reaches_this_segments_write_tokens(make_policy, make_sample, update, at_end):
    """With an anchor and one segment the only loss is the one after the write."""
    policy = make_policy(mem_update=update, mem_at_end=at_end, mem_segments=1)
    policy(make_sample(policy.config))[0].backward()
    assert policy.model.mem_tokens.grad.norm(dim=1).min() > 1e-6
    for name, parameter in policy.model.mem_update.named_parameters():
        # The gate is not asked at a first write.
        assert (parameter.grad.norm() > 0) == (not name.startswith("gates.")), name


@variants
def test_depth_zero_cuts_every_boundary_exactly(make_policy, make_sample, update, at_end):
    policy = make_policy(mem_update=update, mem_at_end=at_end, mem_segments=1, mem_backprop_depth=0)
    policy(make_sample(policy.config))[0].backward()
    for parameter in (policy.model.mem_tokens, *policy.model.mem_update.parameters()):
        assert parameter.grad is None or torch.count_nonzero(parameter.grad) == 0


@variants
@pytest.mark.parametrize(
    ("depth", "reached"),
    [
        (0, [False, False, False, True]),
        (1, [False, False, True, True]),
        (2, [False, True, True, True]),
        (3, [True, True, True, True]),
        (None, [True, True, True, True]),
    ],
)
def test_the_gradient_crosses_as_many_boundaries_as_asked(
    make_policy, make_sample, noise_for, update, at_end, depth, reached
):
    policy = make_policy(
        mem_update=update,
        mem_at_end=at_end,
        mem_segments=4,
        mem_stride=6,
        mem_anchor=False,
        mem_backprop_depth=depth,
    )
    sample = only_last_segment(make_sample(policy.config), policy.config)
    assert reach(policy, sample, noise_for)[0] == [reached, reached]


@pytest.mark.parametrize(("depth", "reached"), [(0, False), (1, True)])
def test_skipped_slots_are_no_boundaries(make_policy, make_sample, noise_for, depth, reached):
    """From the anchor over two slots before the episode to the present is one boundary, not three."""
    policy = make_policy(mem_segments=3, mem_stride=6, mem_backprop_depth=depth)
    sample = only_last_segment(make_sample(policy.config), policy.config)
    sample[f"{STATE}_is_pad"] = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert reach(policy, sample, noise_for)[0] == [
        [reached, False, False, True],
        [False, False, reached, True],
    ]


def test_the_gradient_does_not_explode_or_vanish_over_segments(make_policy, make_sample):
    for update in MEMORY_UPDATES:
        policy = make_policy(mem_update=update, mem_segments=5, mem_stride=6, mem_anchor=False)
        sample = only_last_segment(make_sample(policy.config), policy.config)
        sample[STATE].requires_grad_()
        policy(sample)[0].backward()
        norms = sample[STATE].grad.norm(dim=(0, 2))
        assert 1e-4 < (norms[0] / norms[3]).item() < 1e2, (update, norms)


@pytest.mark.parametrize("n", [0, 4])
def test_memory_trains_the_last_layer_and_norm_that_stock_leaves_frozen(make_policy, make_sample, n):
    policy = make_policy(num_mem_tokens=n)
    text = policy.model.vlm_with_expert.get_vlm_model().text_model
    parameters = [*text.layers[-1].parameters(), *text.norm.parameters()]
    assert all(p.requires_grad == (n > 0) for p in parameters)
    if n:
        policy(make_sample(policy.config))[0].backward()
        assert all(p.grad.norm() > 0 for p in parameters)


def test_with_a_frozen_vlm_only_expert_state_and_memory_are_trained(make_policy, make_sample):
    policy = make_policy(train_expert_only=True, freeze_vision_encoder=True)
    policy(make_sample(policy.config))[0].backward()
    trained = {
        name for name, p in policy.model.named_parameters() if p.grad is not None and p.grad.norm() > 0
    }
    assert "mem_tokens" in trained
    assert not [name for name in trained if name.startswith("vlm_with_expert.vlm.")]
    assert any(name.startswith("vlm_with_expert.lm_expert.") for name in trained)


# One sample ---------------------------------------------------------------------------------------


def test_a_batch_of_single_frames_is_refused_with_the_shapes(make_policy, observe):
    policy = make_policy(mem_segments=3)
    batch = {**observe(2), "action": torch.zeros(2, 5, 3)}
    with pytest.raises(
        ValueError, match=r"4 frames of observations and 12 of actions.*\(2, 3\).*\(2, 5, 3\)"
    ):
        policy(batch)


def test_none_reduction_agrees_with_the_mean(make_policy, make_sample, noise_for):
    policy = make_policy(mem_stride=5)
    sample = make_sample(policy.config, batch=3)
    noise, time = noise_for(policy.config, 3, segments=3)
    losses, log = policy(sample, noise=noise, time=time, reduction="none")
    loss, _ = policy(sample, noise=noise, time=time)
    assert losses.shape == (3,)
    torch.testing.assert_close(losses.mean(), loss)
    assert log["loss"] == pytest.approx(loss.item(), rel=1e-5)

    # With padding the mean is over valid entries, so that rows count by how many they have.
    sample["action_is_pad"][0, -4:] = True
    losses, _ = policy(sample, noise=noise, time=time, reduction="none")
    loss, _ = policy(sample, noise=noise, time=time)
    torch.testing.assert_close((losses * torch.tensor([11, 15, 15])).sum() / 41, loss)


@pytest.mark.parametrize("cached", [False, True], ids=["tokens", "tokens_and_cache"])
def test_a_row_of_a_training_batch_equals_the_row_alone(make_policy, make_sample, noise_for, cached):
    policy = make_policy(mem_update="gated", read_mem_from_cache=cached)
    sample = make_sample(policy.config, batch=3)
    sample[f"{STATE}_is_pad"] = torch.tensor(
        [[True, False, False, False], [True, True, False, False], [True] * 3 + [False]]
    )
    noise, time = noise_for(policy.config, 3, segments=3)
    losses, _ = policy(sample, noise=noise, time=time, reduction="none")
    for row in range(3):
        only = slice(row, row + 1)
        alone, _ = policy({k: v[only] for k, v in sample.items()}, noise=noise[only], time=time[only])
        torch.testing.assert_close(losses[row], alone, rtol=0, atol=1e-5)


def test_training_ignores_and_leaves_the_memory_of_the_running_episode(
    make_policy, make_sample, observe, noise_for
):
    policy = make_policy()
    sample = make_sample(policy.config)
    noise, time = noise_for(policy.config, 2, segments=3)
    before, _ = policy(sample, noise=noise, time=time)
    with torch.inference_mode():
        policy.select_action(observe(2))
    carried = policy._memory
    after, _ = policy(sample, noise=noise, time=time)
    after.backward()
    assert torch.equal(before, after)
    assert policy._memory is carried


# Samples of a real dataset ------------------------------------------------------------------------

FRAMES, STRIDE, SEGMENTS, CHUNK = 20, 4, 3, 5


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    """Two episodes of 20 frames, every frame different."""
    folder = tmp_path_factory.mktemp("data") / "dataset"
    features = {
        CAMERA: {"dtype": "image", "shape": (24, 24, 3), "names": ["height", "width", "channels"]},
        STATE: {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
        "action": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
    }
    dataset = LeRobotDataset.create(
        "local/tiny", fps=10, features=features, root=folder, use_videos=False, robot_type="so100"
    )
    rng = np.random.default_rng(0)
    for episode in range(2):
        for _ in range(FRAMES):
            dataset.add_frame({
                CAMERA: rng.integers(0, 255, (24, 24, 3), dtype=np.uint8),
                STATE: rng.normal(0, 1, 3).astype(np.float32),
                "action": rng.normal(0, 1, 3).astype(np.float32),
                "task": ["reach the pad", "press the button and wait"][episode],
            })  # fmt: skip
        dataset.save_episode()
    dataset.finalize()
    return folder


@pytest.fixture(scope="module")
def dataset_of(dataset_folder):
    """(LeRobotDataset with the frames that a configuration asks for, its preprocessor)."""

    def load(config):
        plain = LeRobotDataset("local/tiny", root=dataset_folder)
        dataset = LeRobotDataset(
            "local/tiny", root=dataset_folder, delta_timestamps=resolve_delta_timestamps(config, plain.meta)
        )
        return dataset, make_smolvla_mem_pre_post_processors(config, plain.meta.stats)[0]

    return load


@pytest.fixture(scope="module")
def through_time(make_policy):
    """One policy for the dataset tests; gated, so that each write depends on all before it."""
    return make_policy(
        mem_update="gated", mem_segments=SEGMENTS, mem_stride=STRIDE, chunk_size=CHUNK, n_action_steps=CHUNK
    )


def collate(preprocess, items):
    return preprocess(torch.utils.data.default_collate(items))


# Frame t of an episode, and the slots of [anchor, t-8, t-4, t] that count there.
SLOTS = {
    0: [False, False, False, True],
    1: [True, False, False, True],
    3: [True, False, False, True],
    4: [False, False, True, True],
    5: [True, False, True, True],
    7: [True, False, True, True],
    8: [False, True, True, True],
    9: [True, True, True, True],
    17: [True, True, True, True],
    19: [True, True, True, True],
}


@pytest.mark.parametrize(("episode", "t"), [(0, t) for t in SLOTS] + [(1, 0), (1, 8), (1, 19)])
def test_the_right_frames_of_a_dataset_count(through_time, dataset_of, noise_for, t, episode):
    dataset, preprocess = dataset_of(through_time.config)
    sample = collate(preprocess, [dataset[episode * FRAMES + t]])
    assert reach(through_time, sample, noise_for)[0] == [SLOTS[t]]


@pytest.mark.parametrize("t", SLOTS)
def test_actions_count_in_the_windows_of_counting_segments_up_to_the_end(
    through_time, dataset_of, noise_for, t
):
    dataset, preprocess = dataset_of(through_time.config)
    sample = collate(preprocess, [dataset[t]])
    sample["action"].requires_grad_()
    noise, time = noise_for(through_time.config, 1, segments=SEGMENTS)
    through_time(sample, noise=noise, time=time)[0].backward()
    counted = sample["action"].grad[0].abs().amax(1) > 0
    # Frame numbers within the episode; the sample starts one frame before the oldest segment.
    frames = {t - (SEGMENTS - 1) * STRIDE - 1 + i for i in torch.nonzero(counted).flatten().tolist()}
    segments = [t - (SEGMENTS - 1 - s) * STRIDE for s in range(SEGMENTS) if SLOTS[t][1 + s]]
    assert frames == {f for start in segments for f in range(start, start + CHUNK) if f < FRAMES}


@pytest.mark.parametrize("t", SLOTS)
def test_the_loss_is_that_of_walking_through_the_episode_by_hand(
    through_time, dataset_of, dataset_folder, noise_for, t
):
    policy, model = through_time, through_time.model
    dataset, preprocess = dataset_of(policy.config)
    noise, time = noise_for(policy.config, 1, segments=SEGMENTS)
    with torch.no_grad():
        loss, _ = policy(collate(preprocess, [dataset[FRAMES + t]]), noise=noise, time=time)

    single = LeRobotDataset("local/tiny", root=dataset_folder)

    def frame(i):
        return collate(preprocess, [single[FRAMES + i]])

    def body(i):
        b = frame(i)
        return model.embed_prefix(
            *policy.prepare_images(b), b[TOKENS], b[TOKEN_MASK], state=policy.prepare_state(b)
        )

    starts = [t - (SEGMENTS - 1 - s) * STRIDE for s in range(SEGMENTS)]
    errors = []
    with torch.no_grad():
        memory = model.empty_memory(1)
        if 0 not in starts:
            memory = model.write(body(0), memory)
        for segment, start in enumerate(starts):
            if start < 0:
                continue
            there = range(start, min(start + CHUNK, FRAMES))
            actions = [frame(min(i, FRAMES - 1))["action"] for i in range(start, start + CHUNK)]
            losses, memory = model(
                body(start), torch.stack(actions, dim=1), memory, noise[:, segment], time[:, segment]
            )
            errors.append(losses[0, : len(there)].flatten())
    torch.testing.assert_close(loss, torch.cat(errors).mean(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("t", [0, 3, 4, 7, 8, 17, 19])
def test_the_content_of_what_does_not_count_changes_neither_loss_nor_gradient(
    through_time, dataset_of, noise_for, t
):
    policy = through_time
    dataset, preprocess = dataset_of(policy.config)
    noise, time = noise_for(policy.config, 1, segments=SEGMENTS)
    results = []
    for seed in (None, 1):
        sample = collate(preprocess, [dataset[t]])
        if seed is not None:
            g = torch.Generator().manual_seed(seed)
            for slot, counts in enumerate(SLOTS[t]):
                if not counts:
                    sample[CAMERA][:, slot] = torch.rand(sample[CAMERA][:, slot].shape, generator=g)
                    sample[STATE][:, slot] = 10 * torch.randn(sample[STATE][:, slot].shape, generator=g)
            garbage = 10 * torch.randn(sample["action"].shape, generator=g)
            sample["action"] = torch.where(sample["action_is_pad"][..., None], garbage, sample["action"])
            # The frame before the oldest segment is there for its padding flag alone.
            sample["action"][:, 0] = garbage[:, 0]
        policy.zero_grad()
        loss, _ = policy(sample, noise=noise, time=time)
        loss.backward()
        results.append(
            (loss, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
        )
    (loss, gradients), (changed_loss, changed_gradients) = results
    assert torch.equal(loss, changed_loss)
    assert gradients.keys() == changed_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, changed_gradients[name], rtol=1e-5, atol=1e-6, msg=name)


def test_what_does_not_count_is_not_computed(through_time, dataset_of, monkeypatch):
    dataset, preprocess = dataset_of(through_time.config)
    images, rows = [], []
    vlm = through_time.model.vlm_with_expert
    embed_image, forward = vlm.embed_image, vlm.forward

    def count(*, inputs_embeds, **inputs):
        rows.append(len(inputs_embeds[0]))
        return forward(inputs_embeds=inputs_embeds, **inputs)

    monkeypatch.setattr(vlm, "embed_image", lambda image: images.append(len(image)) or embed_image(image))
    monkeypatch.setattr(vlm, "forward", count)
    through_time(collate(preprocess, [dataset[t] for t in SLOTS]))
    assert rows == [sum(slot) for slot in zip(*SLOTS.values(), strict=True)]
    assert images == [sum(rows)]


def test_without_anchor_the_first_frame_is_not_used(make_policy, dataset_of, noise_for):
    policy = make_policy(mem_anchor=False, mem_segments=SEGMENTS, mem_stride=STRIDE)
    dataset, preprocess = dataset_of(policy.config)
    for t in (0, 3, 4, 9):
        assert reach(policy, collate(preprocess, [dataset[t]]), noise_for)[0] == [SLOTS[t][1:]]


def test_a_batch_over_both_episodes_weighs_every_valid_action_alike(through_time, dataset_of, noise_for):
    dataset, preprocess = dataset_of(through_time.config)
    indices = [0, 4, 19, FRAMES + 8, FRAMES + 17]
    sample = collate(preprocess, [dataset[i] for i in indices])
    noise, time = noise_for(through_time.config, len(indices), segments=SEGMENTS)
    with torch.no_grad():
        losses, _ = through_time(sample, noise=noise, time=time, reduction="none")
        loss, _ = through_time(sample, noise=noise, time=time)
    # Valid actions: all five of each counting segment but those beyond frame 19.
    counts = torch.tensor([5, 10, 5 + 5 + 1, 15, 5 + 5 + 3])
    torch.testing.assert_close((losses * counts).sum() / counts.sum(), loss)


# A curriculum over segments -----------------------------------------------------------------------

# As SLOTS, for the stages in which one and two segments are unrolled.
STAGE_SLOTS = {
    1: {t: [t != 0, False, False, True] for t in (0, 3, 4, 8, 19)},
    2: {
        0: [False, False, False, True],
        3: [True, False, False, True],
        4: [False, False, True, True],
        8: [True, False, True, True],
        19: [True, False, True, True],
    },
}


def at_stage(policy, segments):
    """Bring a policy with ``mem_curriculum_steps`` there as training does, by :meth:`update`."""
    for _ in range(100):
        if policy.segments == segments:
            return policy
        policy.update()
    raise AssertionError(f"no stage of {segments} segments")


@pytest.mark.parametrize("anchor", [True, False])
def test_a_curriculum_counts_the_steps_of_the_optimizer(make_policy, make_sample, anchor):
    policy = make_policy(mem_curriculum_steps=2, mem_segments=3, mem_anchor=anchor)
    sample = make_sample(policy.config)
    seen = []
    for _ in range(4):
        policy.train()
        _, log = policy(sample)
        policy.eval()
        # Validation unrolls what training does, and is no step.
        assert policy(sample)[1]["memory_segments"] == log["memory_segments"] == policy.segments
        seen.append(log["memory_segments"])
        policy.update()
    assert seen == ([1, 2, 3, 3] if anchor else [2, 2, 3, 3])
    assert policy.mem_steps.item() == 4


def test_without_a_curriculum_an_update_changes_nothing(make_policy, make_sample):
    for n in (0, 4):
        policy = make_policy(num_mem_tokens=n, mem_curriculum_steps=0)
        before = {key: value.clone() for key, value in policy.state_dict().items()}
        policy.update()
        assert before.keys() == policy.state_dict().keys() and "mem_steps" not in before
        assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())
    assert policy(make_sample(policy.config))[1]["memory_segments"] == 3


def test_without_memory_there_is_no_curriculum(make_policy, make_stock):
    policy = make_policy(num_mem_tokens=0, mem_curriculum_steps=5)
    policy.update()
    assert policy.state_dict().keys() == make_stock().state_dict().keys()


def test_lerobot_finds_the_hook(make_policy):
    """As lerobot-train asks for it, after the policy went through accelerate."""
    policy = make_policy(mem_curriculum_steps=5)
    accelerator = Accelerator(cpu=True)
    unwrapped = accelerator.unwrap_model(accelerator.prepare(policy), keep_fp32_wrapper=True)
    assert has_method(unwrapped, "update")
    unwrapped.update()
    assert policy.mem_steps.item() == 1


# Without the anchor a curriculum starts with two segments.
@pytest.mark.parametrize(("anchor", "segments"), [(True, 1), (True, 2), (True, 3), (False, 2), (False, 3)])
def test_a_stage_trains_as_a_policy_of_that_many_segments(
    make_policy, dataset_of, noise_for, anchor, segments
):
    """Over all frames of an episode, each policy with the frames of its own configuration."""
    changes = dict(mem_update="gated", mem_stride=STRIDE, mem_anchor=anchor)
    curriculum = at_stage(make_policy(mem_segments=3, mem_curriculum_steps=6, **changes), segments)
    plain = make_policy(mem_segments=segments, **changes)
    noise, time = noise_for(plain.config, FRAMES, segments=3)
    results = []
    for policy in (curriculum, plain):
        dataset, preprocess = dataset_of(policy.config)
        sample = collate(preprocess, [dataset[FRAMES + t] for t in range(FRAMES)])
        own = slice(3 - policy.config.mem_segments, None)
        losses, _ = policy(sample, noise=noise[:, own], time=time[:, own], reduction="none")
        losses.sum().backward()
        results.append((losses, {name: p.grad for name, p in policy.named_parameters()}))
    (losses, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("segments", STAGE_SLOTS)
def test_in_a_stage_the_right_frames_of_a_dataset_count(make_policy, dataset_of, noise_for, segments):
    """The anchor is left out only where the oldest segment that is used is the first frame itself."""
    policy = make_policy(mem_update="gated", mem_stride=STRIDE, mem_curriculum_steps=6)
    at_stage(policy, segments)
    dataset, preprocess = dataset_of(policy.config)
    sample = collate(preprocess, [dataset[t] for t in STAGE_SLOTS[segments]])
    assert reach(policy, sample, noise_for)[0] == list(STAGE_SLOTS[segments].values())


@pytest.mark.parametrize("segments", [1, 2, 3])
def test_a_stage_computes_no_more_than_its_segments(make_policy, make_sample, monkeypatch, segments):
    policy = at_stage(make_policy(mem_curriculum_steps=6), segments)
    images, passes = [], []
    vlm = policy.model.vlm_with_expert
    embed_image, forward = vlm.embed_image, vlm.forward
    monkeypatch.setattr(vlm, "embed_image", lambda image: images.append(len(image)) or embed_image(image))
    monkeypatch.setattr(vlm, "forward", lambda **inputs: passes.append(1) or forward(**inputs))
    policy(make_sample(policy.config, batch=2))
    # The anchor and the segments of two rows.
    assert images == [2 * (1 + segments)]
    assert len(passes) == 1 + segments


def test_a_stage_leaves_the_sample_as_it_is(make_policy, make_sample):
    policy = make_policy(mem_curriculum_steps=6)
    sample = make_sample(policy.config)
    before = {key: value.clone() for key, value in sample.items()}
    policy(sample)
    assert before.keys() == sample.keys()
    assert all(torch.equal(before[key], value) for key, value in sample.items())


# It learns ----------------------------------------------------------------------------------------


class Recall:
    """The first state says left or right and asks for nothing; each later chunk must go to that side.

    Later states say nothing, so that only memory tells.
    """

    def __init__(self, policy):
        self.policy = policy
        self.segments, self.joints = policy.config.mem_segments, policy.config.action_feature.shape[0]

    def episodes(self, batch):
        side = torch.randint(0, 2, (batch,)) * 2.0 - 1
        state = 0.1 * torch.randn(batch, self.segments, self.joints)
        state[:, 0, 0] += side
        return side, {
            STATE: state,
            CAMERA: torch.zeros(batch, self.segments, 3, 32, 32),
            TOKENS: torch.full((batch, 2), 9),
            TOKEN_MASK: torch.ones(batch, 2, dtype=torch.bool),
        }

    def train(self, steps):
        config = self.policy.config
        optimizer = torch.optim.AdamW(self.policy.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.2)
        self.policy.train()
        for _ in range(steps):
            side, batch = self.episodes(16)
            target = torch.zeros(16, len(config.action_delta_indices), self.joints)
            target[:, 1 + config.stride :, 0] = side[:, None]
            loss, _ = self.policy({**batch, "action": target})
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        self.policy.eval()

    def score(self, change=lambda memory: memory):
        """Share of 100 episodes whose last chunk goes to the right side; guessing gives 0.5 +- 0.05."""
        side, episode = self.episodes(100)
        memory = None
        for segment in range(self.segments):
            now = {k: v[:, segment] if k in (STATE, CAMERA) else v for k, v in episode.items()}
            actions, memory = self.policy.infer(now, memory)
            memory = change(memory)
        return (actions[:, :, 0].mean(1) * side > 0).float().mean().item()


@pytest.fixture
def recall(make_policy):
    def make(**changes):
        policy = make_policy(
            mem_segments=3, mem_anchor=False, joints=2, chunk_size=4, n_action_steps=4, num_steps=4,
            resize_imgs_with_padding=(32, 32), num_vlm_layers=2, **changes,
        )  # fmt: skip
        return Recall(policy)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("update", "at_end", "cached"),
    [
        ("rmt", True, False),
        ("gated", True, False),
        ("ema", True, False),
        ("gated", False, False),
        ("gated", True, True),
    ],
)
def test_a_policy_learns_to_remember(recall, update, at_end, cached):
    problem = recall(mem_update=update, mem_at_end=at_end, read_mem_from_cache=cached)
    problem.train(50)
    assert problem.score() > 0.9

    def noise(x):
        return torch.randn_like(x) * x.std()

    noised = problem.score(
        lambda m: Memory(noise(m.tokens), m.filled, None if m.cache is None else noise(m.cache))
    )
    forgotten = problem.score(lambda m: m.cleared(torch.ones_like(m.filled)))
    assert 0.25 < noised < 0.75
    assert 0.25 < forgotten < 0.75


@pytest.mark.slow
def test_without_gradient_through_time_it_has_not_learned_by_then(recall):
    problem = recall(mem_update="rmt", mem_backprop_depth=0)
    problem.train(50)
    assert problem.score() < 0.75


def test_lerobots_factory_builds_the_policy_for_a_dataset(make_config, dataset_folder):
    config = make_config(mem_segments=2)
    config.input_features, config.output_features = {}, {}
    meta = LeRobotDataset("local/tiny", root=dataset_folder).meta
    policy = lerobot_make_policy(config, ds_meta=meta)
    assert type(policy) is SmolVLAMemPolicy
    assert list(policy.config.input_features) == [CAMERA, STATE]

    pre, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
    deltas = resolve_delta_timestamps(config, meta)
    dataset = LeRobotDataset("local/tiny", root=dataset_folder, delta_timestamps=deltas)
    loss, _ = policy.train()(collate(pre, [dataset[i] for i in (0, 5, FRAMES + 19)]))
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_stock_lerobot_train_starts_from_stock_weights_saves_and_resumes(
    tmp_path, backbone, dataset_folder, make_stock
):
    stock = make_stock(chunk_size=5, n_action_steps=4, max_state_dim=32, max_action_dim=32)
    stock.save_pretrained(tmp_path / "stock")
    for processor in make_smolvla_pre_post_processors(stock.config):
        processor.save_pretrained(tmp_path / "stock")
    output = tmp_path / "run"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def train(*arguments):
        """In another working directory, as the plugin is found by its name alone."""
        done = subprocess.run(
            [sys.executable, "-m", "lerobot.scripts.lerobot_train", *map(str, arguments)],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return [round(float(n)) for n in re.findall(r"memory_segments:(\S+)", done.stdout + done.stderr)]

    plugin = "--policy.discover_packages_path=smolvla_mem_ros.policy"
    stages = train(
        plugin, "--policy.type=smolvla_mem", f"--policy.pretrained_path={tmp_path / 'stock'}",
        "--policy.num_mem_tokens=2", "--policy.mem_segments=2", f"--policy.vlm_model_name={backbone}",
        "--policy.load_vlm_weights=false", "--policy.num_vlm_layers=4",
        "--policy.expert_width_multiplier=1.0", "--policy.resize_imgs_with_padding=[96,96]",
        "--policy.chunk_size=5", "--policy.n_action_steps=4", "--policy.device=cpu",
        "--policy.push_to_hub=false", "--dataset.repo_id=local/tiny",
        f"--dataset.root={dataset_folder}", "--dataset.use_imagenet_stats=false", f"--output_dir={output}",
        "--steps=3", "--save_freq=3", "--batch_size=4", "--num_workers=0", "--wandb.enable=false",
        "--log_freq=1", "--policy.mem_curriculum_steps=4", "--policy.read_mem_from_cache=true",
    )  # fmt: skip
    assert stages == [1, 1, 1]
    third = output / "checkpoints" / "000003" / "pretrained_model"
    checkpoint = load_checkpoint(third, "cpu")
    assert checkpoint.config.num_mem_tokens == 2
    # By default only expert, state projection and memory are trained: the rest shows where it started.
    weights = checkpoint.policy.state_dict()
    frozen = {k: v for k, v in stock.state_dict().items() if ".vlm." in k}
    assert frozen and all(torch.equal(weights[key], value) for key, value in frozen.items())

    observation = {CAMERA: torch.rand(3, 24, 24), STATE: torch.randn(3), "task": "reach the pad"}
    actions, memory = checkpoint.policy.infer(checkpoint.preprocessor(observation))
    assert checkpoint.postprocessor(actions).shape == (1, 5, 3)
    assert memory.filled.all()

    assert checkpoint.policy.mem_steps.item() == 3
    stages = train(
        plugin, f"--config_path={third / 'train_config.json'}", "--resume=true", "--steps=5", "--save_freq=5"
    )
    assert stages == [1, 2]
    fifth = load_checkpoint(output / "checkpoints" / "000005" / "pretrained_model", "cpu")
    assert not torch.equal(checkpoint.policy.model.mem_tokens, fifth.policy.model.mem_tokens)
    assert fifth.policy.mem_steps.item() == 5
