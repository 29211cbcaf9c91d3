# SPDX-License-Identifier: Apache-2.0
"""Loading a checkpoint (folder or hub name) with its processors, and nothing that is not safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.processor import PolicyProcessorPipeline

from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig
from smolvla_mem_ros.policy.modeling_smolvla_mem import SmolVLAMemPolicy, resolve_vlm


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the cause and the cure."""


@dataclass(frozen=True)
class Checkpoint:
    """A policy in evaluation mode and the processors it was trained with."""

    policy: SmolVLAMemPolicy
    preprocessor: PolicyProcessorPipeline[dict[str, Any], dict[str, Any]]
    postprocessor: PolicyProcessorPipeline[Any, Any]

    @property
    def config(self) -> SmolVLAMemConfig:
        return self.policy.config


def load_config(path: str | Path) -> SmolVLAMemConfig:
    """The configuration of a ``smolvla_mem`` or stock ``smolvla`` checkpoint, without its weights.

    Raises:
        CheckpointError: there is no such checkpoint, or it is of another policy type.
    """
    name = str(path)
    if not name:
        raise CheckpointError(
            "no checkpoint given: set the parameter checkpoint to a folder or a hub name "
            "(make_tiny_checkpoint FOLDER makes a small one to try things with)"
        )
    looks_local = Path(name).is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1
    folder = Path(name).expanduser()
    if looks_local and not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {name} does not exist")
    if folder.is_dir():
        name = str(folder)
        _check_folder(folder)
    try:
        config = PreTrainedConfig.from_pretrained(name)
    except Exception as error:
        cause = _first_line(error)
        raise CheckpointError(f"the configuration of checkpoint {name} cannot be read: {cause}") from error
    if not isinstance(config, SmolVLAConfig):
        raise CheckpointError(
            f"checkpoint {name} is a {config.type} policy; this node runs smolvla_mem and smolvla"
        )
    try:
        return config if isinstance(config, SmolVLAMemConfig) else SmolVLAMemConfig.from_stock(config)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {name}: {error}") from error


def load_checkpoint(path: str | Path, device: str = "auto", num_mem_tokens: int | None = None) -> Checkpoint:
    """Load policy and processors.

    Args:
        path: a folder, or a name on the hub.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        num_mem_tokens: 0 switches the memory off (ablation); None leaves it as trained.

    Raises:
        CheckpointError: see its message; anything wrong with the files or the device.
    """
    config = load_config(path)
    name = str(Path(str(path)).expanduser()) if Path(str(path)).expanduser().is_dir() else str(path)
    config.device = _device(device)
    if num_mem_tokens not in (None, config.num_mem_tokens):
        if num_mem_tokens != 0:
            raise CheckpointError(
                f"num_mem_tokens can only be overridden to 0 (memory off): checkpoint {name} was trained "
                f"with {config.num_mem_tokens} and has no weights for {num_mem_tokens}"
            )
        config.num_mem_tokens = 0
    if not config.image_features or not config.robot_state_feature or not config.action_feature:
        raise CheckpointError(
            f"checkpoint {name} names no cameras, no observation.state or no action in config.json"
        )
    vlm = resolve_vlm(config.vlm_model_name, name)
    try:
        policy = SmolVLAMemPolicy.from_pretrained(name, config=config)
        pre, post = make_pre_post_processors(
            config,
            pretrained_path=name,
            preprocessor_overrides={
                "device_processor": {"device": config.device},
                "tokenizer_processor": {"tokenizer_name": vlm},
            },
        )
    except Exception as error:
        raise CheckpointError(f"checkpoint {name} cannot be loaded: {_first_line(error)}") from error
    for parameter, value in policy.state_dict().items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"checkpoint {name} holds NaN or infinity in {parameter}; train it again")
    return Checkpoint(policy, pre, post)


def _check_folder(folder: Path) -> None:
    missing = [f for f in ("config.json", "model.safetensors") if not (folder / f).is_file()]
    if missing:
        pickled = [p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
        hint = f"; {pickled[0]} is a pickle and is never opened, save it as safetensors" if pickled else ""
        nested = folder / "pretrained_model"
        hint = f"; did you mean {nested}?" if (nested / "config.json").is_file() else hint
        raise CheckpointError(f"checkpoint folder {folder} has no {' and no '.join(missing)}{hint}")
    if not (folder / "policy_preprocessor.json").is_file():
        raise CheckpointError(
            f"checkpoint folder {folder} has no policy_preprocessor.json, so how to normalise is unknown; "
            "checkpoints from before LeRobot 0.4 need lerobot's migrate_policy_normalization.py"
        )
    try:
        json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is not JSON: {error}") from error


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except Exception as error:
        raise CheckpointError(f"device {name} is not usable here ({_first_line(error)}); try cpu") from error
    return name


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
