# SPDX-License-Identifier: Apache-2.0
"""Pins the configuration: which frames training asks for, what is refused and that all faults are named."""

import math

import pytest
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig
from smolvla_mem_ros.policy.modeling_smolvla_mem import SmolVLAMemPolicy


def test_frames_of_training_are_the_anchor_and_the_segments(make_config):
    config = make_config(mem_segments=3, mem_stride=4)
    assert config.segment_delta_indices == [-8, -4, 0]
    assert config.observation_delta_indices == [-(10**6), -8, -4, 0]
    # One frame before the oldest segment: its padding flag tells whether that segment is the first frame.
    assert config.action_delta_indices == list(range(-9, 5))


def test_without_anchor_only_the_segments_are_asked_for(make_config):
    assert make_config(mem_segments=2, mem_stride=4, mem_anchor=False).observation_delta_indices == [-4, 0]


def test_stride_follows_the_steps_executed_unless_given(make_config):
    assert make_config(n_action_steps=3).stride == 3
    assert make_config(n_action_steps=3, mem_stride=7).stride == 7


@pytest.mark.parametrize(
    ("anchor", "segments", "steps", "stages"),
    [
        (True, 3, 6, [1, 1, 1, 2, 2, 2, 3, 3]),
        (True, 4, 3, [1, 2, 3, 4, 4]),
        # Without the anchor a single segment would never be remembered.
        (False, 4, 4, [2, 2, 3, 3, 4, 4]),
        (False, 2, 4, [2, 2, 2, 2, 2]),
        (True, 1, 4, [1, 1, 1, 1, 1]),
        (False, 1, 4, [1, 1, 1, 1, 1]),
        # Fewer steps than stages.
        (True, 5, 2, [1, 3, 5, 5]),
        (True, 3, 0, [3, 3]),
    ],
)
def test_a_curriculum_grows_in_equal_stages(make_config, anchor, segments, steps, stages):
    config = make_config(mem_segments=segments, mem_curriculum_steps=steps, mem_anchor=anchor)
    assert [config.segments_at(step) for step in range(len(stages))] == stages
    assert config.segments_at(10**9) == segments


def test_a_curriculum_leaves_the_frames_asked_for(make_config):
    plain, curriculum = make_config(mem_segments=3), make_config(mem_segments=3, mem_curriculum_steps=10)
    assert curriculum.observation_delta_indices == plain.observation_delta_indices
    assert curriculum.action_delta_indices == plain.action_delta_indices


def test_without_memory_the_frames_are_those_of_stock(make_config, make_stock):
    config, stock = make_config(num_mem_tokens=0), make_stock().config
    assert config.observation_delta_indices == stock.observation_delta_indices
    assert config.action_delta_indices == stock.action_delta_indices


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_mem_tokens", -1),
        ("mem_update", "lstm"),
        ("mem_ema_rate", 0.0),
        ("mem_ema_rate", 1.5),
        ("mem_ema_rate", math.nan),
        ("mem_gate_bias", math.nan),
        ("mem_gate_bias", -math.inf),
        ("mem_token_scale", 0.0),
        ("mem_token_scale", math.nan),
        ("mem_token_scale", math.inf),
        ("mem_segments", 0),
        ("mem_stride", 0),
        ("mem_backprop_depth", -1),
        ("mem_curriculum_steps", -1),
    ],
)
def test_a_bad_field_is_named(make_config, field, value):
    with pytest.raises(ValueError, match=f"{field}=") as caught:
        make_config(**{field: value})
    assert "\n" not in str(caught.value)
    for name in ("num_mem_tokens", "mem_update", "mem_ema_rate", "mem_segments", "mem_stride"):
        assert name == field or f"{name}=" not in str(caught.value)


def test_all_bad_fields_are_named_at_once(make_config):
    bad = dict(num_mem_tokens=-1, mem_update="lstm", mem_ema_rate=2, mem_token_scale=0, mem_segments=0)
    bad |= dict(mem_stride=0, mem_backprop_depth=-1, mem_curriculum_steps=-1)
    with pytest.raises(ValueError) as caught:
        make_config(**bad)
    assert [field for field in bad if f"{field}=" not in str(caught.value)] == []


@pytest.mark.parametrize(
    "good",
    [
        dict(num_mem_tokens=0),
        dict(mem_ema_rate=1.0),
        dict(mem_segments=1),
        dict(mem_stride=1),
        dict(mem_backprop_depth=0),
        dict(mem_backprop_depth=None),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(make_config, good):
    make_config(**good)


def test_lerobot_finds_policy_and_processors_by_type(make_config):
    assert type(make_policy_config("smolvla_mem", device="cpu")) is SmolVLAMemConfig
    assert get_policy_class("smolvla_mem") is SmolVLAMemPolicy
    pre, post = make_pre_post_processors(make_config())
    assert any(hasattr(step, "tokenizer_name") for step in pre.steps)
    assert len(post.steps) == 2


def test_configuration_survives_saving(make_config, tmp_path):
    config = make_config(
        num_mem_tokens=7, mem_at_end=False, mem_update="ema", mem_ema_rate=0.3, mem_token_scale=0.4,
        mem_segments=5, mem_stride=2, mem_backprop_depth=1, mem_anchor=False, read_mem_from_cache=True,
        mem_curriculum_steps=100,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path) == config


def test_a_stock_configuration_becomes_one_without_memory(make_stock):
    stock = make_stock().config
    config = SmolVLAMemConfig.from_stock(stock)
    assert config.num_mem_tokens == 0
    assert (config.chunk_size, config.input_features) == (stock.chunk_size, stock.input_features)
    assert SmolVLAMemConfig.from_stock(stock, num_mem_tokens=4).num_mem_tokens == 4
