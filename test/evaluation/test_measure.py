# SPDX-License-Identifier: Apache-2.0
"""Costs are measured as promised: runs take turns, and a peak is a peak, each time anew."""

import time

import numpy as np
import pytest
import torch

from smolvla_mem_ros.evaluation import measure
from smolvla_mem_ros.evaluation.rollout import observe
from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.tasks import TASKS

MIB = 2**20


@pytest.fixture
def toy():
    """Weights of 3 MiB."""
    return torch.nn.Linear(1024, 768, bias=False)


@pytest.fixture(params=["cpu", *["cuda"] * torch.cuda.is_available()])
def device(request):
    """Each that this machine has: the peak is the same wherever a record is kept."""
    return request.param


def allocate(mib, device="cpu"):
    return torch.ones(mib, MIB // 4, device=device)


def test_runs_take_turns_after_their_warm_up():
    calls = []
    times = measure.times_in_turn([lambda: calls.append("a"), lambda: calls.append("b")], "cpu", repeats=4)
    assert calls == ["a"] * measure.WARM_UP + ["b"] * measure.WARM_UP + ["a", "b"] * 4
    assert times.shape == (2, 4)


def test_times_are_milliseconds():
    times = measure.times_in_turn([lambda: time.sleep(0.02)], "cpu", repeats=5)
    assert 20 <= np.median(times) < 1000


def test_a_slow_model_is_timed_as_often_as_the_budget_allows_but_a_few_times_at_least():
    times = measure.times_in_turn([lambda: time.sleep(0.005)], "cpu", repeats=10**6, budget=0.2)
    assert measure.FEWEST <= times.shape[1] <= 40
    assert measure.times_in_turn([lambda: None], "cpu", budget=0).shape == (1, measure.FEWEST)


def test_quartiles():
    assert measure.quartiles(np.arange(101.0)) == {"median": 50.0, "p25": 25.0, "p75": 75.0}


def test_peak_memory_is_the_weights_and_the_most_that_stood_at_once(toy, device):
    def run():
        a = allocate(4, device)
        b = a + 1  # 8
        del a  # 4
        c = b * 2  # 8
        _ = torch.cat([b, c])  # 16

    assert measure.peak_memory_mb(toy.to(device), device, run) == pytest.approx(3 + 16, abs=0.01)


def test_what_is_allocated_in_passing_counts(toy, device):
    def run():
        allocate(9, device)
        allocate(1, device)

    assert measure.peak_memory_mb(toy.to(device), device, run) == pytest.approx(3 + 9, abs=0.01)


def test_the_optimizers_state_counts_in_training(toy):
    optimizer = torch.optim.AdamW(toy.parameters())

    def step():
        toy.weight.grad = torch.ones_like(toy.weight)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    # Weights and both moments, then the gradient; how the update works inside is torch's affair.
    peak = measure.peak_memory_mb(toy, "cpu", step, optimizer)
    assert 9 + 3 <= peak < 9 + 3 + 10
    assert peak - measure.peak_memory_mb(toy, "cpu", step) == pytest.approx(6, abs=0.01)


def test_a_peak_knows_nothing_of_the_one_before_or_of_other_tensors(toy, device):
    toy, before = toy.to(device), allocate(50, device)
    high = measure.peak_memory_mb(toy, device, lambda: allocate(20, device))
    low = measure.peak_memory_mb(toy, device, lambda: allocate(2, device))
    assert (high, low) == (pytest.approx(23, abs=0.01), pytest.approx(5, abs=0.01))
    del before


def test_where_no_peak_is_kept_none_is_made_up(toy):
    assert measure.peak_memory_mb(toy, "mps", lambda: None) is None


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
    count = measure.num_parameters(checkpoint.policy)
    assert count == sum(v.numel() for v in checkpoint.policy.parameters()) > 1e6
    peaks = {measure.peak_memory_mb(checkpoint.policy, "cpu", run) for _ in range(2)}
    assert len(peaks) == 1
    assert peaks.pop() > 4 * count / MIB
