# SPDX-License-Identifier: Apache-2.0
"""Configuration of SmolVLA with recurrent memory tokens, a LeRobot policy plugin.

Reached from LeRobot's command line with
``--policy.type=smolvla_mem --policy.discover_packages_path=smolvla_mem_ros.policy``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from lerobot.configs import PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

MEMORY_UPDATES = ("rmt", "gated", "ema")

# A delta so far back that LeRobot's dataset clamps it to the first frame of the episode.
_FIRST_FRAME = -(10**6)


@PreTrainedConfig.register_subclass("smolvla_mem")
@dataclass
class SmolVLAMemConfig(SmolVLAConfig):
    """Stock SmolVLA's fields, and those of the memory.

    Raises:
        ValueError: a memory field is out of its range.
    """

    # Memory tokens per segment; 0 is stock SmolVLA, bit for bit.
    num_mem_tokens: int = 4
    # True: the memory is written by a block of its own after the state token, as in RMT (Bulatov et al.,
    # 2022). False: the outputs of the read block are the new memory.
    mem_at_end: bool = True
    # LM-RMT's extra path: memory rows, and only they, also attend at every VLM layer to the keys and values
    # that the previous segment's write tokens had there.
    read_mem_from_cache: bool = False
    # rmt: M' = write output.  gated: M' = M + g * (Norm(W h) - M).  ema: M' = M + rate * (h - M).
    mem_update: str = "gated"
    mem_ema_rate: float = 0.1
    # Where the gates begin: sigmoid(-1) takes 27 % of what is written. With less, what comes after the first
    # write is fainter and learned later. Only a training that starts without memory weights uses it.
    mem_gate_bias: float = -1.0
    # RMS of a memory token before the factor sqrt(hidden size) that SmolVLA gives image and language tokens.
    mem_token_scale: float = 0.2
    # Gaussian noise on the memory between segments, in training only, relative to mem_token_scale; each
    # sample draws how much, up to this. What is remembered must then be restored by every write, and so it
    # lasts longer than it was trained for.
    mem_noise: float = 0.2
    # Up to so many writes more of one frame, at a random place of each training batch, as if the robot stood
    # still there: what is remembered lasts longer than a sample, for little more time.
    mem_pause: int = 0
    # Segments unrolled in one training sample, and the frames between them (None: n_action_steps).
    mem_segments: int = 3
    mem_stride: int | None = None
    # Optimizer steps over which the unrolled segments grow to mem_segments; 0: all from the start.
    mem_curriculum_steps: int = 0
    # Segment boundaries that the gradient crosses; 0 detaches at each, None crosses all.
    mem_backprop_depth: int | None = None
    # Every training sample also carries the first frame of its episode (write only, no action loss).
    mem_anchor: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if self.num_mem_tokens < 0:
            problems.append(f"num_mem_tokens={self.num_mem_tokens} must be 0 (stock SmolVLA) or more")
        if self.mem_update not in MEMORY_UPDATES:
            problems.append(f"mem_update={self.mem_update!r} must be one of {', '.join(MEMORY_UPDATES)}")
        if not 0 < self.mem_ema_rate <= 1:
            problems.append(f"mem_ema_rate={self.mem_ema_rate} must lie in (0, 1]")
        if not -math.inf < self.mem_gate_bias < math.inf:
            problems.append(f"mem_gate_bias={self.mem_gate_bias} must be finite")
        if not 0 < self.mem_token_scale < math.inf:
            problems.append(f"mem_token_scale={self.mem_token_scale} must be positive and finite")
        if not 0 <= self.mem_noise < math.inf:
            problems.append(f"mem_noise={self.mem_noise} must be 0 (none) or more, and finite")
        if self.mem_pause < 0:
            problems.append(f"mem_pause={self.mem_pause} must be 0 (none) or more")
        if self.mem_segments < 1:
            problems.append(f"mem_segments={self.mem_segments} must be 1 or more")
        if self.mem_stride is not None and self.mem_stride < 1:
            problems.append(f"mem_stride={self.mem_stride} must be 1 or more, or null for n_action_steps")
        if self.mem_curriculum_steps < 0:
            problems.append(f"mem_curriculum_steps={self.mem_curriculum_steps} must be 0 (none) or more")
        if self.mem_backprop_depth is not None and self.mem_backprop_depth < 0:
            depth = self.mem_backprop_depth
            problems.append(f"mem_backprop_depth={depth} must be 0 or more, or null for all")
        if problems:
            raise ValueError("smolvla_mem configuration: " + "; ".join(problems))

    @classmethod
    def from_stock(cls, config: SmolVLAConfig, **changes) -> SmolVLAMemConfig:
        """The same model without memory (unless ``changes`` say otherwise)."""
        values = {f.name: getattr(config, f.name) for f in fields(config) if f.init}
        return cls(**{**values, "num_mem_tokens": 0, **changes})

    @property
    def stride(self) -> int:
        """Frames between two segments."""
        return self.mem_stride or self.n_action_steps

    def segments_at(self, step: int) -> int:
        """Segments unrolled after ``step`` optimizer steps: equal stages, all from the last on."""
        if step >= self.mem_curriculum_steps:
            return self.mem_segments
        # The fewest of which one reads what another wrote; the anchor writes too.
        fewest = min(1 if self.mem_anchor else 2, self.mem_segments)
        return fewest + step * (self.mem_segments - fewest) // self.mem_curriculum_steps

    @property
    def segment_delta_indices(self) -> list[int]:
        """Frame offsets of the unrolled segments, oldest first; the last is 0."""
        return [-(self.mem_segments - 1 - s) * self.stride for s in range(self.mem_segments)]

    @property
    def observation_delta_indices(self) -> list[int]:
        if not self.num_mem_tokens:
            return super().observation_delta_indices
        return [_FIRST_FRAME] * self.mem_anchor + self.segment_delta_indices

    @property
    def action_delta_indices(self) -> list[int]:
        """One frame more than the segments use at the old end.

        Its padding flag alone is read: it tells whether the oldest segment is the episode's first frame.
        """
        if not self.num_mem_tokens:
            return super().action_delta_indices
        return list(range(self.segment_delta_indices[0] - 1, self.chunk_size))
