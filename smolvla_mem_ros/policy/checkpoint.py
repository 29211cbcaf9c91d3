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
        raise CheckpointError(
            f"checkpoint folder {name} does not exist; name another, or write one there with "
            "make_tiny_checkpoint"
        )
    if folder.is_dir():
        name = str(folder)
        _check_folder(folder)
    try:
        config = PreTrainedConfig.from_pretrained(name)
    except Exception as error:
        if folder.is_dir():
            raise CheckpointError(
                f"the configuration of checkpoint {name} cannot be read: {_cause(error)}; correct config.json"
            ) from error
        raise CheckpointError(
            f"checkpoint {name} is no folder here, and the hub does not give it ({_cause(error)}); check the "
            "name and the connection"
        ) from error
    if not isinstance(config, SmolVLAConfig):
        raise CheckpointError(_wrong_type(name, config.type))
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
            f"checkpoint {name} names no cameras, no observation.state or no action in config.json; "
            "use one that was trained with all three"
        )
    vlm = resolve_vlm(config.vlm_model_name, name)
    # The checkpoint holds all weights; those of the backbone alone would be fetched to be overwritten.
    config.load_vlm_weights = False
    try:
        policy = SmolVLAMemPolicy.from_pretrained(name, config=config, strict=True)
        pre, post = make_pre_post_processors(
            config,
            pretrained_path=name,
            preprocessor_overrides={
                "device_processor": {"device": config.device},
                "tokenizer_processor": {"tokenizer_name": vlm},
            },
        )
    except Exception as error:
        cure = "copy it again, whole, or train it again"
        if not Path(vlm).is_dir():
            cure = f"its backbone {vlm} is no folder here, so it must be on the hub or in the hub's cache"
        raise CheckpointError(f"checkpoint {name} cannot be loaded: {_cause(error)}; {cure}") from error
    for parameter, value in policy.state_dict().items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"checkpoint {name} holds NaN or infinity in {parameter}; train it again")
    return Checkpoint(policy, pre, post)


def _check_folder(folder: Path) -> None:
    missing = [f for f in ("config.json", "model.safetensors") if not (folder / f).is_file()]
    if missing:
        pickled = [p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
        hint = "a checkpoint is the folder pretrained_model that lerobot-train writes"
        if pickled:
            hint = f"{pickled[0]} is a pickle and is never opened, save it as safetensors"
        if (folder / "pretrained_model" / "config.json").is_file():
            hint = f"did you mean {folder / 'pretrained_model'}?"
        raise CheckpointError(f"checkpoint folder {folder} has no {' and no '.join(missing)}; {hint}")
    if not (folder / "policy_preprocessor.json").is_file():
        raise CheckpointError(
            f"checkpoint folder {folder} has no policy_preprocessor.json, so how to normalise is unknown; "
            "checkpoints from before LeRobot 0.4 need lerobot's migrate_policy_normalization.py"
        )
    try:
        policy_type = json.loads((folder / "config.json").read_text())["type"]
    except (ValueError, TypeError, KeyError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{folder / 'config.json'} is not the configuration of a policy ({cause}); copy it again"
        ) from error
    if policy_type not in ("smolvla", "smolvla_mem"):
        raise CheckpointError(_wrong_type(folder, policy_type))


def _wrong_type(name: str | Path, policy_type: str) -> str:
    return f"checkpoint {name} holds a policy of type {policy_type}; use one of type smolvla_mem or smolvla"


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except Exception as error:
        raise CheckpointError(f"device {name} is not usable here ({_cause(error)}); try cpu") from error
    return name


def _cause(error: Exception) -> str:
    """What went wrong, on one line, with what the configuration itself objected to."""
    text = str(error) or type(error).__name__
    if isinstance(error.__cause__, ValueError):
        text += f" ({error.__cause__})"
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) < 300 else text[:300] + " ..."
