# SPDX-License-Identifier: Apache-2.0
"""Processors of ``smolvla_mem``: stock SmolVLA's own.

They hold no memory logic on purpose: a model started from stock weights takes its processors from there.
"""

from __future__ import annotations

from typing import Any

from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from lerobot.processor import PolicyAction, PolicyProcessorPipeline
from torch import Tensor

from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig


def make_smolvla_mem_pre_post_processors(
    config: SmolVLAMemConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """LeRobot's factory finds this function by its name."""
    return make_smolvla_pre_post_processors(config, dataset_stats)
