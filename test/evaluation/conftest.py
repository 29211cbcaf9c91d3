# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints with random weights, and worlds to play in."""

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from smolvla_mem_ros.evaluation.rollout import Stage
from smolvla_mem_ros.policy.tiny import CAMERAS, make_tiny_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory):
    """Folder of a checkpoint with random weights, for pictures of 64x48, that infers every 8 frames."""

    def make(**changes):
        size = changes.pop("size", (48, 64))
        features = {key: PolicyFeature(FeatureType.VISUAL, (3, *size)) for key in CAMERAS}
        features["observation.state"] = PolicyFeature(FeatureType.STATE, (6,))
        values = {
            "chunk_size": 16,
            "n_action_steps": 8,
            "num_steps": 2,
            "resize_imgs_with_padding": (64, 64),
            "input_features": features,
        }
        return make_tiny_checkpoint(tmp_path_factory.mktemp("policy") / "tiny", steps=0, **values | changes)

    return make


@pytest.fixture(scope="session")
def memory_path(make_checkpoint):
    return make_checkpoint()


@pytest.fixture(scope="session")
def stock_path(make_checkpoint):
    return make_checkpoint(num_mem_tokens=0)


@pytest.fixture(scope="session")
def stage():
    with Stage(4) as stage:
        yield stage
