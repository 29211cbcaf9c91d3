# SPDX-License-Identifier: Apache-2.0
"""Plays episodes of a memory task with a policy, many at a time, on the memory clock it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from smolvla_mem_ros.policy.checkpoint import Checkpoint
from smolvla_mem_ros.policy.memory import Memory
from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.tasks import get_task
from smolvla_mem_ros.sim.world import CAMERAS, World
from smolvla_mem_ros.so100.arm import JOINTS

# What is done to the memory between two inferences, to see what it is good for.
MODES = ("on", "off", "reset_every_step", "noise", "frozen")


@dataclass(frozen=True)
class Outcome:
    """How one episode ended.

    Args:
        episode: its number, which with task and seed says everything about it.
        success: by the simulator's referee.
        reward: share of the goals that were reached.
        frames: that it took.
        reason: what ended it, in words.
    """

    episode: int
    success: bool
    reward: float
    frames: int
    reason: str


class Stage:
    """Worlds to play in side by side; making them is slow, so one stage serves many evaluations."""

    def __init__(self, size: int, width: int = 64, height: int = 48) -> None:
        self.worlds = [World(width, height) for _ in range(size)]

    def close(self) -> None:
        for world in self.worlds:
            world.close()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_fits(checkpoint: Checkpoint) -> None:
    """Raises ValueError, with cause and cure, when the policy cannot play: other cameras, another arm."""
    config = checkpoint.config
    shown = {f"observation.images.{camera}" for camera in CAMERAS}
    joints = len(JOINTS)
    problems = []
    if set(config.image_features) != shown:
        problems.append(
            f"the cameras {', '.join(sorted(config.image_features))}, not {', '.join(sorted(shown))}"
        )
    if config.robot_state_feature.shape[0] != joints or config.action_feature.shape[0] != joints:
        have = f"{config.robot_state_feature.shape[0]} joints and {config.action_feature.shape[0]} actions"
        problems.append(f"{have}, not {joints} of each")
    if problems:
        raise ValueError(
            f"it was trained with {'; and '.join(problems)}; train it on what collect_demos writes"
        )


def rollout(
    checkpoint: Checkpoint,
    stage: Stage,
    task: str,
    episodes: Sequence[int],
    *,
    seed: int = 0,
    delay: int | None = None,
    cue_visible: bool = False,
    memory_mode: str = "on",
    progress: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Play ``episodes`` of ``task``; the outcomes are in their order.

    Args:
        delay, cue_visible: as for :meth:`MemoryTask.draw`.
        memory_mode: "on" as trained; "off" and "reset_every_step" give no memory to any inference (the first
            runs the model without its memory blocks, the second with them); "noise" gives Gaussian noise of
            the memory's own size; "frozen" keeps the first memory for the whole episode.
        progress: called with the number of episodes that ended since the last call.

    Raises:
        ValueError: no such task or mode, or ``delay`` is too short.
    """
    if memory_mode not in MODES:
        raise ValueError(f"there is no memory mode {memory_mode!r}; there are {', '.join(MODES)}")
    if memory_mode == "off" and checkpoint.config.num_mem_tokens:
        raise ValueError('for memory_mode "off" load the checkpoint with num_mem_tokens=0')
    outcomes: list[Outcome] = []
    for first in range(0, len(episodes), len(stage.worlds)):
        wave = list(episodes[first : first + len(stage.worlds)])
        worlds = stage.worlds[: len(wave)]
        for world, episode in zip(worlds, wave, strict=True):
            world.reset(*draw(get_task(task), seed, episode, delay=delay, cue_visible=cue_visible))
        noise = [np.random.default_rng([seed, episode, 1]) for episode in wave]
        for ended in _play(checkpoint, worlds, noise, memory_mode):
            progress(ended)
        outcomes += [_outcome(*pair) for pair in zip(wave, worlds, strict=True)]
    return outcomes


def _outcome(episode: int, world: World) -> Outcome:
    referee = world.referee
    reward = referee.done / len(referee.trial.goals)
    return Outcome(episode, bool(referee.outcome), reward, referee.frame, referee.reason)


@torch.no_grad()
def _play(
    checkpoint: Checkpoint, worlds: Sequence[World], noise: Sequence[np.random.Generator], mode: str
) -> Iterator[int]:
    """Runs all ``worlds`` to their ends; yields how many ended in each round of the memory clock."""
    config = checkpoint.config
    running = list(range(len(worlds)))
    memory: Memory | None = None  # of the running rows
    while running:
        batch = observe(checkpoint, [worlds[i] for i in running])
        shape = (config.chunk_size, config.max_action_dim)
        start = np.stack([noise[i].normal(size=shape).astype(np.float32) for i in running])
        actions, new = checkpoint.policy.infer(batch, memory, torch.from_numpy(start).to(config.device))
        actions = checkpoint.postprocessor(actions).double().cpu().numpy()
        memory = _next_memory(mode, memory, new, [noise[i] for i in running])
        for row, i in enumerate(running):
            for action in actions[row, : config.n_action_steps]:
                worlds[i].step(action)
        left = [row for row, i in enumerate(running) if worlds[i].referee.outcome is None]
        if memory is not None:
            memory = memory.rows(torch.tensor(left, dtype=torch.long, device=memory.filled.device))
        yield len(running) - len(left)
        running = [running[row] for row in left]


def observe(checkpoint: Checkpoint, worlds: Sequence[World]) -> dict[str, torch.Tensor]:
    """What ``worlds`` show now, preprocessed for ``checkpoint``; a world is a row of the batch."""
    pictures = [world.pictures() for world in worlds]
    raw = {
        f"observation.images.{camera}": torch.from_numpy(np.stack([p[camera] for p in pictures]))
        .permute(0, 3, 1, 2)
        .float()
        / 255
        for camera in CAMERAS
    }
    raw["observation.state"] = torch.from_numpy(np.stack([world.state for world in worlds]))
    raw["task"] = [world.referee.trial.instruction for world in worlds]
    batch = checkpoint.preprocessor(raw)
    return {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and k.startswith("observation.")}


def _next_memory(
    mode: str, old: Memory | None, new: Memory | None, noise: Sequence[np.random.Generator]
) -> Memory | None:
    if new is None or mode == "reset_every_step":
        return None
    if mode == "frozen":
        return new if old is None else old
    if mode == "noise":
        tokens = _noise_like(new.tokens, (1, 2), noise)
        # Keys and values differ in size, and from layer to layer.
        cache = None if new.cache is None else _noise_like(new.cache, (3, 4, 5), noise)
        return Memory(tokens, new.filled, cache)
    return new


def _noise_like(
    values: torch.Tensor, dims: tuple[int, ...], noise: Sequence[np.random.Generator]
) -> torch.Tensor:
    """Gaussian noise with the root mean square that ``values`` (B, ...) have over ``dims``."""
    size = values.pow(2).mean(dim=dims, keepdim=True).sqrt()
    drawn = np.stack([rng.normal(size=values.shape[1:]) for rng in noise])
    return torch.from_numpy(drawn).to(values) * size
