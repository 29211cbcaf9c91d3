# SPDX-License-Identifier: Apache-2.0
"""Small models and samples for the policy tests; everything random is seeded."""

from dataclasses import fields

import pytest
import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from memory_variants import CAMERA, STATE

from smolvla_mem_ros.policy.modeling_smolvla_mem import SmolVLAMemPolicy
from smolvla_mem_ros.policy.tiny import make_backbone, tiny_config

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("policy") / "backbone")


@pytest.fixture(scope="session")
def make_config(backbone):
    """A small configuration: one camera, three joints, short chunks, few denoising steps."""

    def make(**changes):
        values = dict(
            cameras=(CAMERA,), joints=3, chunk_size=5, n_action_steps=3, num_steps=3, mem_update="rmt",
            resize_imgs_with_padding=(64, 64),
        )  # fmt: skip
        return tiny_config(backbone, **{**values, **changes})

    return make


@pytest.fixture(scope="session")
def make_policy(make_config):
    """The plugin with random weights, in evaluation mode."""

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return SmolVLAMemPolicy(make_config(**changes)).eval()

    return make


@pytest.fixture(scope="session")
def make_stock(make_config):
    """LeRobot's own SmolVLA of the same size and seed."""

    def make(seed=0, **changes):
        config = make_config(**changes)
        torch.manual_seed(seed)
        stock = {f.name: getattr(config, f.name) for f in fields(SmolVLAConfig) if f.init}
        return SmolVLAPolicy(SmolVLAConfig(**stock)).eval()

    return make


@pytest.fixture(scope="session")
def observe():
    """A preprocessed observation; row i has i words of padding, so that rows differ in length too."""

    def make(batch=1, seed=0, joints=3):
        g = torch.Generator().manual_seed(seed)
        words = 4 + batch
        length = words - torch.arange(batch)[:, None]
        return {
            CAMERA: torch.rand(batch, 3, 24, 24, generator=g),
            STATE: torch.randn(batch, joints, generator=g),
            "observation.language.tokens": torch.randint(8, 300, (batch, words), generator=g),
            "observation.language.attention_mask": torch.arange(words)[None] < length,
        }

    return make


@pytest.fixture(scope="session")
def make_sample():
    """A preprocessed training sample with the time dimensions of ``config``, mid-episode."""

    def make(config, batch=2, seed=0):
        g = torch.Generator().manual_seed(seed)
        slots, frames = len(config.observation_delta_indices), len(config.action_delta_indices)
        joints = config.action_feature.shape[0]
        words = 4 + batch
        length = words - torch.arange(batch)[:, None]
        is_pad = torch.zeros(batch, slots, dtype=torch.bool)
        is_pad[:, 0] = config.mem_anchor
        return {
            CAMERA: torch.rand(batch, slots, 3, 24, 24, generator=g),
            STATE: torch.randn(batch, slots, joints, generator=g),
            f"{STATE}_is_pad": is_pad,
            f"{CAMERA}_is_pad": is_pad,
            "action": torch.randn(batch, frames, joints, generator=g),
            "action_is_pad": torch.zeros(batch, frames, dtype=torch.bool),
            "observation.language.tokens": torch.randint(8, 300, (batch, words), generator=g),
            "observation.language.attention_mask": torch.arange(words)[None] < length,
        }

    return make


@pytest.fixture(scope="session")
def noise_for():
    """Noise (B, chunk, max_action_dim) of a configuration; with ``segments`` (B, S, ...), and times."""

    def make(config, batch, seed=0, segments=None):
        g = torch.Generator().manual_seed(1000 + seed)
        shape = (batch,) if segments is None else (batch, segments)
        noise = torch.randn(*shape, config.chunk_size, config.max_action_dim, generator=g)
        return noise, torch.rand(*shape, generator=g) * 0.9 + 0.05

    return make
