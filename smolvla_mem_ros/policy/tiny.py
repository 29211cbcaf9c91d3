# SPDX-License-Identifier: Apache-2.0
"""A tiny SmolVLA made on the spot: the real architecture, tokenizer and processors, 1 M parameters.

It needs no download, so demo and tests run anywhere. It has seen no image worth the name: after a brief
training it sways gently about the home pose.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig
from smolvla_mem_ros.policy.modeling_smolvla_mem import SmolVLAMemPolicy
from smolvla_mem_ros.policy.processor_smolvla_mem import make_smolvla_mem_pre_post_processors

# Name of the backbone folder inside a checkpoint.
BACKBONE = "backbone"
CAMERAS = ("observation.images.front", "observation.images.wrist")

_TEXT = dict(model_type="llama", rms_norm_eps=1e-5, rope_theta=100000, hidden_act="silu", pad_token_id=2)
_TINY = dict(
    text_config=dict(
        **_TEXT, hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=3,
        num_key_value_heads=1, head_dim=32, vocab_size=512, max_position_embeddings=1024,
    ),
    vision_config=dict(
        hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=3, image_size=96,
        patch_size=16, hidden_act="gelu_pytorch_tanh",
    ),
    scale_factor=2, image_token_id=5, pad_token_id=2,
)  # fmt: skip
# The published sizes of SmolVLM2-500M, for benchmarks and parameter counts with random weights.
_FULL = dict(
    text_config=dict(
        **_TEXT, hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15,
        num_key_value_heads=5, head_dim=64, vocab_size=49280, max_position_embeddings=8192,
    ),
    vision_config=dict(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=512,
        patch_size=16, hidden_act="gelu_pytorch_tanh",
    ),
    scale_factor=4, image_token_id=49190, pad_token_id=2,
)  # fmt: skip
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<fake_token_around_image>", "<image>",
            "<global-img>", "<end_of_utterance>")  # fmt: skip
_SENTENCES = (
    "sway gently",
    "press the pad of the colour that the lamp showed",
    "press one of three pads, of the colour that the lamp showed",
    "wait for the flash, then press the pad of its colour",
    "press the button and return to where you began",
    "press two pads in the order of the flashes",
    "find the pad of the colour that the lamp showed",
)


def make_backbone(folder: str | Path, full_size: bool = False) -> Path:
    """Write a SmolVLM-shaped backbone to ``folder``: configuration, tokenizer, processor; no weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = SmolVLMConfig(**(_FULL if full_size else _TINY))
    config.architectures = ["SmolVLMForConditionalGeneration"]
    config.save_pretrained(folder)

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=list(_SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|im_end|>",
        eos_token="<end_of_utterance>",
        bos_token="<|im_start|>",
        unk_token="<unk>",
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )
    video = SmolVLMVideoProcessor(
        video_sampling={"fps": 1, "max_frames": 8, "video_size": {"longest_edge": 512}}
    )
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(), tokenizer=fast, video_processor=video, image_seq_len=64
    ).save_pretrained(folder)
    return folder


def tiny_config(
    backbone: str | Path, cameras: Sequence[str] = CAMERAS, joints: int = 6, **changes
) -> SmolVLAMemConfig:
    """Configuration of the tiny model; ``changes`` are fields of :class:`SmolVLAMemConfig`."""
    visual = {key: PolicyFeature(FeatureType.VISUAL, (3, 480, 640)) for key in cameras}
    values = dict(
        input_features={**visual, "observation.state": PolicyFeature(FeatureType.STATE, (joints,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (joints,))},
        vlm_model_name=str(backbone), load_vlm_weights=False, device="cpu", push_to_hub=False,
        resize_imgs_with_padding=(96, 96), num_vlm_layers=4, max_state_dim=joints, max_action_dim=joints,
        chunk_size=20, n_action_steps=10, freeze_vision_encoder=False, train_expert_only=False,
        expert_width_multiplier=1.0,
    )  # fmt: skip
    return SmolVLAMemConfig(**{**values, **changes})


def make_tiny_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    steps: int = 200,
    home: Sequence[float] = (-22, -34, 21, 63, -108, 30),
    spread: Sequence[float] = (25, 10, 10, 12, 20, 12),
    progress: Callable[[int, int, float], None] | None = None,
    **changes,
) -> Path:
    """Write a self-contained checkpoint (weights, processors with statistics, backbone) to ``folder``.

    Args:
        folder: replaced when it already is such a checkpoint, refused when it is anything else.
        seed: of the weights and the brief training.
        steps: training steps on a gentle sway; 0 leaves the weights random.
        home, spread: mean and standard deviation of each joint, in degrees and, for the gripper, 0-100;
            by default the simulated arm starts on the circle about this mean.
        progress: called with (step, steps, loss).
        changes: fields of the configuration, such as ``num_mem_tokens``.

    Raises:
        ValueError: ``folder`` holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / BACKBONE).is_dir():
        raise ValueError(f"{folder} is not empty and not a tiny checkpoint; name another folder")
    building = folder.with_name(folder.name + ".partial")
    shutil.rmtree(building, ignore_errors=True)
    backbone = make_backbone(building / BACKBONE)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = tiny_config(backbone, joints=len(home), **changes)
        policy = SmolVLAMemPolicy(config)
        _train_sway(policy, steps, np.random.default_rng(seed), progress)

    moments = {
        "mean": torch.tensor(home, dtype=torch.float32),
        "std": torch.tensor(spread, dtype=torch.float32),
    }
    pre, post = make_smolvla_mem_pre_post_processors(
        config, {"observation.state": moments, "action": moments}
    )
    # Relative names, so that the folder can be moved.
    config.vlm_model_name = BACKBONE
    for step in pre.steps:
        if hasattr(step, "tokenizer_name"):
            step.tokenizer_name = BACKBONE
    policy.save_pretrained(building)
    pre.save_pretrained(building)
    post.save_pretrained(building)
    (building / "tiny.json").write_text(json.dumps({"seed": seed, "steps": steps}) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    return folder


def _train_sway(policy: SmolVLAMemPolicy, steps: int, rng: np.random.Generator, progress) -> None:
    """Teach a chunk that leaves the present pose smoothly and joins a circle about the home pose.

    A joint and its neighbour share a circle: the state then says where on it the arm is.
    """
    config = policy.config
    parameters = [p for p in policy.get_optim_params() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(steps, 2))
    joints, batch = config.action_feature.shape[0], 8
    observed = np.array([max(i, -60) for i in config.observation_delta_indices])
    acted = np.array(config.action_delta_indices)
    turn, growth = 2 * np.pi / 150, 1 / 30  # per frame
    policy.train()
    for step in range(steps):
        phase = rng.uniform(0, 2 * np.pi, (batch, 1, 1))
        # Distance to the circle at the oldest frame.
        gap = rng.uniform(-0.3, 0.6, (batch, 1, 1))
        quarter = (np.arange(joints) % 2 * np.pi / 2)[None, None]

        def pose(frames, phase=phase, gap=gap, quarter=quarter):
            frames = frames[None, :, None]
            radius = 1 - gap * np.exp(-growth * (frames - observed.min()))
            return radius * np.cos(phase + turn * frames + quarter)

        state = pose(observed) + rng.normal(0, 0.08, (batch, len(observed), joints))
        sample = {
            "observation.state": torch.as_tensor(state, dtype=torch.float32),
            "action": torch.as_tensor(pose(acted), dtype=torch.float32),
            "observation.language.tokens": torch.as_tensor(rng.integers(8, 300, (batch, 6))),
            "observation.language.attention_mask": torch.ones(batch, 6, dtype=torch.bool),
        }
        for key in config.image_features:
            colour, contrast = rng.uniform(0, 1, (2, batch, len(observed), 3, 1, 1))
            image = colour + contrast * rng.uniform(-0.5, 0.5, (batch, len(observed), 3, 6, 6))
            image = torch.as_tensor(image.clip(0, 1), dtype=torch.float32)
            sample[key] = image.repeat_interleave(16, -1).repeat_interleave(16, -2)
        if not config.num_mem_tokens:
            sample = {
                k: v[:, 0] if k.startswith("observation.") and v.ndim in (3, 5) else v
                for k, v in sample.items()
            }
        loss, _ = policy(sample)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, steps, loss.item())
    policy.eval()
