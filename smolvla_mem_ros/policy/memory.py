# SPDX-License-Identifier: Apache-2.0
"""The memory as a value, and the three ways to update it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig


@dataclass(frozen=True)
class Memory:
    """What a batch of robots remembers: a value, handed to inference and handed back.

    Args:
        tokens: (B, n, H) float32, the memory tokens; meaningless in rows that are not filled.
        filled: (B,) bool, rows that remember something. False at the start of an episode.
    """

    tokens: Tensor
    filled: Tensor

    @classmethod
    def empty(cls, batch: int, n: int, hidden: int, device: torch.device | str = "cpu") -> Memory:
        return cls(
            torch.zeros(batch, n, hidden, device=device),
            torch.zeros(batch, dtype=torch.bool, device=device),
        )

    def detach(self) -> Memory:
        return Memory(self.tokens.detach(), self.filled)

    def rows(self, index: Tensor) -> Memory:
        """The rows that ``index`` (bool mask or indices) selects."""
        return Memory(self.tokens[index], self.filled[index])

    def with_rows(self, index: Tensor, new: Memory) -> Memory:
        """This memory with the rows at ``index`` replaced by ``new``, one for one; nothing in place."""
        tokens, filled = self.tokens.clone(), self.filled.clone()
        tokens[index], filled[index] = new.tokens, new.filled
        return Memory(tokens, filled)

    def where(self, rows: Tensor, other: Memory) -> Memory:
        """This memory where ``rows`` (B,) is True, else ``other``; differentiable."""
        return Memory(
            torch.where(rows[:, None, None], self.tokens, other.tokens),
            torch.where(rows, self.filled, other.filled),
        )

    def cleared(self, rows: Tensor) -> Memory:
        """Nothing remembered where ``rows`` (B,) is True."""
        return self.where(~rows, Memory(torch.zeros_like(self.tokens), torch.zeros_like(self.filled)))


def normalised(x: Tensor, scale: float) -> Tensor:
    """Tokens (..., H) brought to root mean square ``scale``."""
    return scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class RMTUpdate(nn.Module):
    """M' = write output, at a fixed scale (RMT: Bulatov et al., 2022). No parameters."""

    def __init__(self, config: SmolVLAMemConfig, hidden: int):
        super().__init__()
        self.scale = config.mem_token_scale

    def forward(self, memory: Memory, written: Tensor) -> Memory:
        """``written`` (B, n, H): hidden states of the write block after the VLM's final norm."""
        return Memory(normalised(written, self.scale), torch.ones_like(memory.filled))


class GatedUpdate(nn.Module):
    """M' = M + g * (Norm(W h) - M) with a learned gate per channel; a first write is taken whole.

    ``3 H^2 + 4 H`` parameters, whatever n is.
    """

    def __init__(self, config: SmolVLAMemConfig, hidden: int):
        super().__init__()
        self.scale = config.mem_token_scale
        self.proj = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.gate = nn.Linear(2 * hidden, hidden)
        # Start by keeping about three quarters of what is known.
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, memory: Memory, written: Tensor) -> Memory:
        candidate = self.scale * self.norm(self.proj(written))
        gate = torch.sigmoid(self.gate(torch.cat([memory.tokens, candidate], dim=-1)))
        gate = torch.where(memory.filled[:, None, None], gate, 1.0)
        return Memory(memory.tokens + gate * (candidate - memory.tokens), torch.ones_like(memory.filled))


class EMAUpdate(nn.Module):
    """M' = M + rate * (h - M) with a fixed rate; a first write is taken whole. No parameters."""

    def __init__(self, config: SmolVLAMemConfig, hidden: int):
        super().__init__()
        self.scale, self.rate = config.mem_token_scale, config.mem_ema_rate

    def forward(self, memory: Memory, written: Tensor) -> Memory:
        rate = torch.where(memory.filled, self.rate, 1.0)[:, None, None]
        tokens = memory.tokens + rate * (normalised(written, self.scale) - memory.tokens)
        return Memory(tokens, torch.ones_like(memory.filled))


_UPDATES = {"rmt": RMTUpdate, "gated": GatedUpdate, "ema": EMAUpdate}


def make_memory_update(config: SmolVLAMemConfig, hidden: int) -> nn.Module:
    """The module for ``config.mem_update``: (Memory, written (B, n, H)) -> Memory."""
    return _UPDATES[config.mem_update](config, hidden)
