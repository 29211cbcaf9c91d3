# SPDX-License-Identifier: Apache-2.0
"""What running a policy costs: time, memory, parameters."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from smolvla_mem_ros.policy.checkpoint import Checkpoint

WARM_UP = 3
FEWEST = 5  # timings, however slow the model is

MIB = 2**20


def one_inference(
    checkpoint: Checkpoint, batch: dict[str, torch.Tensor], with_memory: bool = True
) -> Callable[[], None]:
    """A function that infers one chunk, from the preprocessed ``batch``, as in the midst of an episode.

    Args:
        with_memory: hand in the memory that a first inference wrote, where the model has one.
    """
    memory = checkpoint.policy.infer(batch)[1] if with_memory else None

    def run() -> None:
        checkpoint.policy.infer(batch, memory)

    return run


def times_in_turn(
    runs: Sequence[Callable[[], None]],
    device: str,
    repeats: int = 50,
    budget: float = 60.0,
    progress: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Milliseconds, (len(runs), repeats) or fewer columns when ``budget`` seconds are used up.

    The runs take turns, so that whatever else the machine does hits them alike.
    """
    for run in runs:
        for _ in range(WARM_UP):
            run()
    times = []
    end = time.monotonic() + budget
    while len(times) < repeats and (len(times) < FEWEST or time.monotonic() < end):
        times.append([_time(run, device) for run in runs])
        progress()
    return 1e3 * np.array(times).T


def _time(run: Callable[[], None], device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    """Wait for what was queued; a CPU queues nothing."""
    kind = torch.device(device).type
    if kind in ("cuda", "mps"):
        getattr(torch, kind).synchronize()


def quartiles(measured: Sequence[float] | np.ndarray) -> dict[str, float]:
    """``median``, ``p25``, ``p75`` of (N,)."""
    values = np.percentile(measured, (50, 25, 75))
    return dict(zip(("median", "p25", "p75"), values.tolist(), strict=True))


def num_parameters(policy: nn.Module) -> int:
    return sum(p.numel() for p in policy.parameters())


def peak_memory_mb(
    policy: nn.Module, device: str, run: Callable[[], None], optimizer: torch.optim.Optimizer | None = None
) -> float | None:
    """MiB that it needs: weights, the optimizer's state, and the most that tensors take besides in ``run``.

    What else is on the device does not count, and each call starts anew. On CUDA the figures are the
    allocator's; on a CPU those that torch's profiler records of its allocator, exact and repeatable where
    the resident size of the process is neither. None for devices that keep no such record (mps).
    """
    states = optimizer.state.values() if optimizer else ()
    held = [*policy.parameters(), *policy.buffers(), *(t for s in states for t in s.values())]
    weights = sum(t.nbytes for t in held if isinstance(t, torch.Tensor))
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        working = torch.cuda.max_memory_allocated(device) - before
    elif device.type == "cpu":
        working = _cpu_peak(run)
    else:
        return None
    return (weights + working) / MIB


def _cpu_peak(run: Callable[[], None]) -> int:
    """Bytes, the most that was allocated by torch at once during ``run``, over what was before."""
    # Without this it complains, on standard error, that a machine without a GPU has none.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recording:
        run()
    # The public averages know what each operator allocated, not what stood beside it at the same time.
    events = recording.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return int(max(np.cumsum(sizes), default=0))
