# SPDX-License-Identifier: Apache-2.0
"""What memory costs: LeRobot's own SmolVLA and the same model with memory, in one process, turn by turn.

Weights and observations are random; what is timed depends on their sizes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import nn

from smolvla_mem_ros.evaluation import measure
from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig
from smolvla_mem_ros.policy.modeling_smolvla_mem import SmolVLAMemPolicy
from smolvla_mem_ros.policy.tiny import CAMERAS

WORDS = 12  # of an instruction, in tokens
JOINTS = 6


@dataclass(frozen=True)
class Size:
    """A model to compare at.

    Args:
        full_backbone: SmolVLM2-500M's sizes, or the tiny one's.
        picture: height and width of a camera picture.
        batch: samples in a training step.
        options: fields of SmolVLAConfig.
    """

    full_backbone: bool
    picture: tuple[int, int]
    batch: int
    options: dict[str, object]


FULL = Size(True, (480, 640), 1, {})


@dataclass(frozen=True)
class Side:
    """One of two that take turns.

    Args:
        run: does the thing once.
        frames: observations that it takes, of all samples together.
    """

    policy: nn.Module
    run: Callable[[], None]
    frames: int
    optimizer: torch.optim.Optimizer | None = None


@dataclass(frozen=True)
class Comparison:
    """Something that both models do; ``stock`` and ``memory`` build what does it."""

    name: str
    stock: Callable[[], Side]
    memory: Callable[[], Side]


def comparisons(size: Size, backbone: str, device: str, memory: dict[str, object]) -> list[Comparison]:
    """Inference of a chunk, and training steps.

    Args:
        backbone: folder with SmolVLM's configuration, of ``size``.
        memory: fields of SmolVLAMemConfig; segments and anchor as in training.
    """
    features = {key: PolicyFeature(FeatureType.VISUAL, (3, *size.picture)) for key in CAMERAS}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (JOINTS,))
    actions = {"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))}
    base = SmolVLAMemConfig(
        input_features=features, output_features=actions, vlm_model_name=backbone, load_vlm_weights=False,
        device=device, push_to_hub=False, **{**size.options, **memory},
    )  # fmt: skip
    single = replace(base, mem_segments=1, mem_anchor=False)
    slots = len(base.observation_delta_indices)
    return [
        Comparison("inference of a chunk", lambda: _infer_stock(base), lambda: _infer_memory(base)),
        Comparison(
            "training step, one segment",
            lambda: _train(_stock(base), size.batch),
            lambda: _train(SmolVLAMemPolicy(single), size.batch),
        ),
        Comparison(
            f"training step, {base.mem_segments} segments"
            + " and the anchor" * base.mem_anchor
            + f", against {slots} times as many samples",
            lambda: _train(_stock(base), size.batch * slots),
            lambda: _train(SmolVLAMemPolicy(base), size.batch),
        ),
    ]


def compare(comparison: Comparison, device: str, repeats: int, progress: Callable[[], None]) -> dict:
    """Times in milliseconds, peak memory, parameters, and the ratios of memory to stock.

    The ratio of times is that of two neighbouring turns, so its spread is not that of the machine's mood.
    """
    torch.manual_seed(0)
    sides = {"stock": comparison.stock(), "memory": comparison.memory()}
    runs = [side.run for side in sides.values()]
    times = measure.times_in_turn(runs, device, repeats, budget=float("inf"), progress=progress)
    result: dict = {"name": comparison.name}
    for (name, side), each in zip(sides.items(), times, strict=True):
        result[name] = {
            "frames": side.frames,
            "ms": measure.quartiles(each),
            "peak_mb": measure.peak_memory_mb(side.policy, device, side.run, side.optimizer),
            "parameters": measure.num_parameters(side.policy),
        }
    stock, memory = result["stock"], result["memory"]
    result["ratio"] = {
        "time": measure.quartiles(times[1] / times[0]),
        "peak": memory["peak_mb"] / stock["peak_mb"] if memory["peak_mb"] and stock["peak_mb"] else None,
        "parameters": memory["parameters"] / stock["parameters"],
    }
    result["turns"] = times.shape[1]
    return result


def _stock(config: SmolVLAMemConfig) -> SmolVLAPolicy:
    values = {f.name: getattr(config, f.name) for f in fields(SmolVLAConfig) if f.init}
    return SmolVLAPolicy(SmolVLAConfig(**values))


def _infer_stock(config: SmolVLAMemConfig) -> Side:
    policy, batch = _stock(config).to(config.device).eval(), _observation(config, 1)
    return Side(policy, lambda: policy.predict_action_chunk(dict(batch)), frames=1)


def _infer_memory(config: SmolVLAMemConfig) -> Side:
    policy, batch = SmolVLAMemPolicy(config).to(config.device).eval(), _observation(config, 1)
    # As in the midst of an episode.
    memory = policy.infer(batch)[1]
    return Side(policy, lambda: policy.infer(batch, memory), frames=1)


def _train(policy: SmolVLAPolicy, batch: int) -> Side:
    """One step as lerobot-train does it, the loading of samples apart."""
    config = policy.config
    policy = policy.to(config.device).train()
    sample = _observation(config, batch, training=True)
    length = len(config.action_delta_indices)
    sample["action"] = torch.randn(batch, length, JOINTS, device=config.device)
    sample["action_is_pad"] = torch.zeros(batch, length, dtype=torch.bool, device=config.device)
    trained = [p for p in policy.get_optim_params() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        loss, _ = policy(dict(sample))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.optimizer_grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Side(policy, step, batch * len(config.observation_delta_indices), optimizer)


def _observation(config: SmolVLAConfig, batch: int, training: bool = False) -> dict[str, torch.Tensor]:
    """Random, as preprocessed; a training sample of a policy with memory has a dimension of time."""
    unrolls = training and isinstance(config, SmolVLAMemConfig)
    time = (len(config.observation_delta_indices),) if unrolls else ()
    device = config.device
    observation = {
        key: torch.rand(batch, *time, *feature.shape, device=device)
        for key, feature in config.image_features.items()
    }
    observation["observation.state"] = torch.randn(batch, *time, JOINTS, device=device)
    tokens = torch.randint(8, 300, (batch, WORDS), device=device)
    mask = torch.ones(batch, WORDS, dtype=torch.bool, device=device)
    return {
        **observation,
        "observation.language.tokens": tokens,
        "observation.language.attention_mask": mask,
    }
