# SPDX-License-Identifier: Apache-2.0
"""Figures about a run: latency percentiles, and what the memory does."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from smolvla_mem_ros.policy.memory import Memory


@dataclass(frozen=True)
class Percentiles:
    """In seconds; NaN before the first measurement."""

    p50: float = math.nan
    p95: float = math.nan
    p99: float = math.nan


class LatencyWindow:
    """Percentiles over the latest measurements."""

    def __init__(self, size: int = 1000):
        self._seconds: deque[float] = deque(maxlen=size)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def percentiles(self) -> Percentiles:
        if not self._seconds:
            return Percentiles()
        return Percentiles(*(float(p) for p in np.percentile(self._seconds, (50, 95, 99))))


@dataclass(frozen=True)
class MemorySummary:
    """What can be seen of a memory from outside.

    Args:
        norm: (n,) Euclidean norm per token.
        cosine_distance: (n,) to the state before, 0 unchanged to 2 opposite; 0 where there was none.
        tokens: (n, H).
    """

    norm: np.ndarray
    cosine_distance: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, memory: Memory | None, previous: Memory | None, shape: tuple[int, int]) -> MemorySummary:
        """Of a memory of one row; ``shape`` is (n, H), for when there is nothing yet."""
        tokens, before = _tokens(memory, shape), _tokens(previous, shape)
        norm, norm_before = np.linalg.norm(tokens, axis=1), np.linalg.norm(before, axis=1)
        scale = norm * norm_before
        cosine = np.divide((tokens * before).sum(1), scale, out=np.ones(len(scale)), where=scale > 0)
        return cls(norm, 1 - cosine, tokens)


def _tokens(memory: Memory | None, shape: tuple[int, int]) -> np.ndarray:
    if memory is None or not bool(memory.filled[0]):
        return np.zeros(shape, np.float32)
    return memory.tokens[0].detach().cpu().numpy()
