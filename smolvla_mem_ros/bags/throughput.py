# SPDX-License-Identifier: Apache-2.0
"""How fast a bag is read, decoded and evaluated, and in how much memory; no model runs."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smolvla_mem_ros.bags import measures, synthetic
from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.replay import Modes, Replay
from smolvla_mem_ros.bags.streams import IMAGES, find_topics
from smolvla_mem_ros.policy.memory import Memory
from smolvla_mem_ros.runtime.engine import Inference
from smolvla_mem_ros.runtime.images import decode_image
from smolvla_mem_ros.runtime.observation import Observation
from smolvla_mem_ros.units import NANOSECONDS

Progress = Callable[[int], None]


def read(bag: Bag, progress: Progress) -> None:
    """All messages, as bytes."""
    for message in bag.messages():
        progress(message.stamp)


def decode(bag: Bag, progress: Progress) -> None:
    """All messages to their fields, and all pictures to RGB."""
    images = {topic.name for topic in bag.topics.values() if topic.kind in IMAGES}
    for message in bag.messages():
        decoded = bag.decode(message)
        if message.topic in images:
            decode_image(decoded)
        progress(message.stamp)


def evaluate(bag: Bag, progress: Progress) -> None:
    """As evaluate_bag without its pictures, for a policy that takes no time."""
    contract = synthetic.contract()
    engine: Any = Idle()
    modes = Modes({"on": engine}, ["on"], contract)
    replay = Replay(bag, contract, find_topics(bag, contract), modes, progress=progress)
    replay.run()
    measures.score(replay.played, measures.Target(replay.reference), ["on"], contract)


class Idle:
    """An engine that stays where it is."""

    memory_shape = (4, 96)

    def __init__(self) -> None:
        self._memory = Memory(torch.ones(1, *self.memory_shape), torch.ones(1, dtype=torch.bool))

    def infer(self, observation: Observation, *_: object) -> Inference:
        return Inference(np.tile(observation.state.astype(float), (synthetic.CHUNK, 1)), self._memory)


WAYS = {"read": read, "read and decode": decode, "evaluate": evaluate}


def speed(path: Path, way: str, progress: Progress = lambda now: None) -> float:
    """Open a bag and go through all of it once: seconds of the bag in a second.

    Args:
        way: of WAYS.
        progress: called with the time (ns) that has been reached.
    """
    began = time.perf_counter()
    with Bag(path) as bag:
        assert bag.span is not None
        WAYS[way](bag, progress)
        first, last = bag.span
    return (last - first) / NANOSECONDS / (time.perf_counter() - began)


def memory(path: Path, way: str, progress: Progress = lambda now: None) -> dict[str, float | None]:
    """The same in a process of its own, whose memory nothing else has touched.

    Returns:
        ``speed``; ``baseline_mib``, what was resident before; ``peak_mib``, the most that came to it. None
        where /proc does not tell.

    Raises:
        RuntimeError: it went wrong there, in words.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, path, way), daemon=True)
    # Ctrl-C ends this process, which ends the new one; that inherits what is blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    theirs.close()
    try:
        while isinstance(told := ours.recv(), int):
            progress(told)
    except EOFError:
        process.join()
        told = f"what measures {way!r} ended with exit code {process.exitcode}"
    finally:
        process.terminate()
        process.join()
    if isinstance(told, str):
        raise RuntimeError(told)
    return told


def _work(out: Connection, path: Path, way: str) -> None:
    due = 0

    def tell(now: int) -> None:
        nonlocal due
        if now >= due:
            due = now + NANOSECONDS
            out.send(now)

    try:
        baseline = _resident("VmRSS", reset=True)
        speed_here = speed(path, way, tell)
        peak = _resident("VmHWM")
        peak = None if baseline is None or peak is None else peak - baseline
        out.send({"speed": speed_here, "baseline_mib": baseline, "peak_mib": peak})
    except Exception as error:
        out.send(f"{type(error).__name__}: {error}")


def _resident(field: str, reset: bool = False) -> float | None:
    """MiB that this process has resident ("VmRSS"), or had at most ("VmHWM") since the last ``reset``.

    Not from getrusage, in which a new process begins with what the one that started it had.
    """
    try:
        if reset:
            # Else what the imports have freed would take the first of what comes, unseen.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except (OSError, AttributeError):
        return None
    return int(found[1]) / 1024 if found else None
