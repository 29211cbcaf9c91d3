# SPDX-License-Identifier: Apache-2.0
"""The memory as a value, and the three ways to update it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig


@dataclass(frozen=True)
class Memory:
    """What a batch of robots remembers: a value, handed to inference and handed back.

    Args:
        tokens: (B, n, H) float32, the memory tokens; meaningless in rows that are not filled.
        filled: (B,) bool, rows that remember something. False at the start of an episode.
        cache: (B, layers, 2, n, kv_heads, head_dim) float32, keys and values of the tokens that wrote it, at
            each VLM layer; None unless the model has ``read_mem_from_cache``.
    """

    tokens: Tensor
    filled: Tensor
    cache: Tensor | None = None

    @classmethod
    def empty(
        cls,
        batch: int,
        n: int,
        hidden: int,
        device: torch.device | str = "cpu",
        cache_shape: tuple[int, ...] | None = None,
    ) -> Memory:
        """Nothing remembered; ``cache_shape`` (layers, 2, n, kv_heads, head_dim) asks for a cache."""
        return cls(
            torch.zeros(batch, n, hidden, device=device),
            torch.zeros(batch, dtype=torch.bool, device=device),
            None if cache_shape is None else torch.zeros(batch, *cache_shape, device=device),
        )

    def detach(self) -> Memory:
        return self._each(Tensor.detach)

    def rows(self, index: Tensor) -> Memory:
        """The rows that ``index`` (bool mask or indices) selects."""
        return self._each(lambda mine: mine[index])

    def with_rows(self, index: Tensor, new: Memory) -> Memory:
        """This memory with the rows at ``index`` replaced by ``new``, one for one; nothing in place."""
        return self._each(lambda mine, theirs: mine.index_put((index,), theirs), new)

    def where(self, rows: Tensor, other: Memory) -> Memory:
        """This memory where ``rows`` (B,) is True, else ``other``; differentiable."""
        return self._each(
            lambda mine, theirs: torch.where(rows.view(-1, *[1] * (mine.ndim - 1)), mine, theirs), other
        )

    def cleared(self, rows: Tensor) -> Memory:
        """Nothing remembered where ``rows`` (B,) is True."""
        return self.where(~rows, self._each(torch.zeros_like))

    def _each(self, change: Callable[..., Tensor], *others: Memory) -> Memory:
        """``change`` of each field, with the same field of ``others``; without a cache it stays without."""
        values = [[getattr(memory, field.name) for memory in (self, *others)] for field in fields(self)]
        return Memory(*(None if mine is None else change(mine, *theirs) for mine, *theirs in values))


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
        self.gates = nn.Linear(2 * hidden, hidden)
        nn.init.constant_(self.gates.bias, config.mem_gate_bias)

    def forward(self, memory: Memory, written: Tensor) -> Memory:
        candidate = self.scale * self.norm(self.proj(written))
        # At a root mean square of 1: at the tokens' own scale gates learn slowly when to open.
        seen = torch.cat([memory.tokens, candidate], dim=-1) / self.scale
        gates = torch.where(memory.filled[:, None, None], torch.sigmoid(self.gates(seen)), 1.0)
        return Memory(memory.tokens + gates * (candidate - memory.tokens), torch.ones_like(memory.filled))


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
