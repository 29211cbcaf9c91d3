# SPDX-License-Identifier: Apache-2.0
"""Pins what is said about latency and memory before there is any."""

import math

import numpy as np
import torch

from smolvla_mem_ros.policy.memory import Memory
from smolvla_mem_ros.runtime.metrics import LatencyWindow, MemorySummary


def memory(*rows):
    return Memory(torch.tensor([rows], dtype=torch.float32), torch.tensor([True]))


def test_percentiles_are_nan_before_the_first_and_forget_the_oldest():
    window = LatencyWindow(size=100)
    assert math.isnan(window.percentiles().p50)
    for seconds in [9.0] * 50 + [0.01 * i for i in range(100)]:
        window.add(seconds)
    percentiles = window.percentiles()
    np.testing.assert_allclose([percentiles.p50, percentiles.p95, percentiles.p99], [0.495, 0.9405, 0.9801])


def test_an_empty_memory_is_all_zero():
    summary = MemorySummary.of(None, None, (2, 3))
    assert summary.norm.tolist() == [0, 0] and summary.cosine_distance.tolist() == [0, 0]
    assert summary.tokens.shape == (2, 3)


def test_norm_and_distance_per_token():
    summary = MemorySummary.of(memory([3, 4], [1, 0]), memory([4, -3], [2, 0]), (2, 2))
    np.testing.assert_allclose(summary.norm, [5, 1])
    np.testing.assert_allclose(summary.cosine_distance, [1, 0], atol=1e-6)


def test_without_memory_tokens_there_is_nothing_to_tell():
    assert MemorySummary.of(None, None, (0, 0)).norm.size == 0
