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
        ValueError: a memory field is out of its range or asks for what this version cannot do.
    """

    # Memory tokens per segment; 0 is stock SmolVLA, bit for bit.
    num_mem_tokens: int = 4
    # True: the memory is written by a block of its own after the state token, as in RMT (Bulatov et al.,
    # 2022). False: the outputs of the read block are the new memory.
    mem_at_end: bool = True
    # LM-RMT's extra path: memory rows also attend to the previous segment's write keys and values.
    read_mem_from_cache: bool = False
    # rmt: M' = write output.  gated: M' = M + g * (Norm(W h) - M).  ema: M' = M + rate * (h - M).
    mem_update: str = "gated"
    mem_ema_rate: float = 0.1
    # RMS of a memory token before the factor sqrt(hidden size) that SmolVLA gives image and language tokens.
    mem_token_scale: float = 0.2
    # Segments unrolled in one training sample, and the frames between them (None: n_action_steps).
    mem_segments: int = 3
    mem_stride: int | None = None
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
        if not 0 < self.mem_token_scale < math.inf:
            problems.append(f"mem_token_scale={self.mem_token_scale} must be positive and finite")
        if self.mem_segments < 1:
            problems.append(f"mem_segments={self.mem_segments} must be 1 or more")
        if self.mem_stride is not None and self.mem_stride < 1:
            problems.append(f"mem_stride={self.mem_stride} must be 1 or more, or null for n_action_steps")
        if self.mem_backprop_depth is not None and self.mem_backprop_depth < 0:
            depth = self.mem_backprop_depth
            problems.append(f"mem_backprop_depth={depth} must be 0 or more, or null for all")
        if self.read_mem_from_cache:
            problems.append("read_mem_from_cache=true is not available in this version; set it to false")
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
