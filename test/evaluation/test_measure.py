# SPDX-License-Identifier: Apache-2.0
"""Costs are measured as promised: runs take turns, and a peak is a peak, each time anew."""

import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from smolvla_mem_ros.evaluation import measure
from smolvla_mem_ros.evaluation.rollout import observe
from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.tasks import TASKS

MIB = 2**20


@dataclass(frozen=True)
class Toy:
    """As much of a checkpoint as is measured: weights of 3 MiB."""

    policy: torch.nn.Module
    config: SimpleNamespace


@pytest.fixture
def toy():
    policy = torch.nn.Linear(1024, 768, bias=False)
    return Toy(policy, SimpleNamespace(device="cpu"))


def allocate(mib):
    return torch.ones(mib, MIB // 4)


def test_runs_take_turns_after_their_warm_up():
    calls = []
    times = measure.inference_times([lambda: calls.append("a"), lambda: calls.append("b")], "cpu", repeats=4)
    assert calls == ["a"] * measure.WARM_UP + ["b"] * measure.WARM_UP + ["a", "b"] * 4
    assert times.shape == (2, 4)


def test_times_are_milliseconds():
    times = measure.inference_times([lambda: time.sleep(0.02)], "cpu", repeats=5)
    assert 20 <= np.median(times) < 1000


def test_a_slow_model_is_timed_as_often_as_the_budget_allows_but_a_few_times_at_least():
    times = measure.inference_times([lambda: time.sleep(0.005)], "cpu", repeats=10**6, budget=0.2)
    assert measure.FEWEST <= times.shape[1] <= 40
    assert measure.inference_times([lambda: None], "cpu", budget=0).shape == (1, measure.FEWEST)


def test_quartiles():
    assert measure.quartiles(np.arange(101.0)) == {"median": 50.0, "p25": 25.0, "p75": 75.0}


def test_peak_memory_is_the_weights_and_the_most_that_stood_at_once(toy):
    def run():
        a = allocate(4)
        b = a + 1  # 8
        del a  # 4
        c = b * 2  # 8
        _ = torch.cat([b, c])  # 16

    assert measure.peak_memory_mb(toy, run) == pytest.approx(3 + 16, abs=0.01)


def test_what_is_allocated_in_passing_counts(toy):
    def run():
        allocate(9)
        allocate(1)

    assert measure.peak_memory_mb(toy, run) == pytest.approx(3 + 9, abs=0.01)


def test_a_peak_knows_nothing_of_the_one_before_or_of_other_tensors(toy):
    before = allocate(50)
    high = measure.peak_memory_mb(toy, lambda: allocate(20))
    low = measure.peak_memory_mb(toy, lambda: allocate(2))
    assert (high, low) == (pytest.approx(23, abs=0.01), pytest.approx(5, abs=0.01))
    del before


def test_where_no_peak_is_kept_none_is_made_up(toy):
    toy.config.device = "mps"
    assert measure.peak_memory_mb(toy, lambda: None) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_allocators_peak_counts():
    policy = torch.nn.Linear(1024, 768, bias=False, device="cuda")
    toy = Toy(policy, SimpleNamespace(device="cuda"))
    peak = measure.peak_memory_mb(toy, lambda: torch.ones(MIB, device="cuda"))
    assert peak == pytest.approx(3 + 4, abs=0.01)


def test_an_inference_is_measured_with_the_memory_that_a_first_one_wrote(memory_path, stage, monkeypatch):
    checkpoint = load_checkpoint(memory_path, "cpu")
    stage.worlds[0].reset(*draw(TASKS["CueRecall2"], 0, 0))
    batch = observe(checkpoint, stage.worlds[:1])
    for with_memory in (True, False):
        run = measure.one_inference(checkpoint, batch, with_memory)
        handed = []
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.policy, "infer", lambda batch, memory: handed.append(memory))  # noqa: B023
            run()
            run()
        assert [memory is not None for memory in handed] == [with_memory] * 2
        assert not with_memory or handed[0].filled.all()


def test_a_policys_costs_are_repeatable_and_plausible(memory_path, stage):
    checkpoint = load_checkpoint(memory_path, "cpu")
    stage.worlds[0].reset(*draw(TASKS["CueRecall2"], 0, 0))
    run = measure.one_inference(checkpoint, observe(checkpoint, stage.worlds[:1]))
    count = measure.num_parameters(checkpoint)
    assert count == sum(v.numel() for v in checkpoint.policy.parameters()) > 1e6
    peaks = {measure.peak_memory_mb(checkpoint, run) for _ in range(2)}
    assert len(peaks) == 1
    assert peaks.pop() > 4 * count / MIB
