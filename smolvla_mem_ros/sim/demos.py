# SPDX-License-Identifier: Apache-2.0
"""Demonstrations of the memory tasks, played by the scripted expert."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from smolvla_mem_ros.sim.expert import Expert
from smolvla_mem_ros.sim.tasks import MemoryTask, Trial
from smolvla_mem_ros.sim.world import World

# Standard deviation of the disturbance of each joint, in LeRobot's units, and how much of it stays from frame
# to frame. The arm is pushed off its path while the recorded action stays on it: that is what teaches a
# policy to come back (DART, Laskey et al., 2017).
NOISE, NOISE_KEPT = 0.7, 0.7


@dataclass(frozen=True)
class Frame:
    """What was seen, where the arm was, and what the expert told it to do then.

    Args:
        images: camera -> (height, width, 3) uint8.
        state, action: (6,) float32 in LeRobot's units.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray


def play(world: World, trial: Trial, rng: np.random.Generator) -> Iterator[Frame]:
    """The frames of one episode; afterwards ``world.referee.outcome`` tells whether it succeeded."""
    world.reset(trial, rng)
    expert = Expert(world.scene, world.referee)
    noise = np.zeros(6)
    while world.referee.outcome is None:
        action = expert.act()
        yield Frame(world.pictures(), world.state, action.astype(np.float32))
        noise = NOISE_KEPT * noise + rng.normal(0, NOISE, 6)
        world.step(action + noise)


def episode_rng(seed: int, task: str, episode: int) -> np.random.Generator:
    """The random numbers of one episode, the same whatever else was played before it."""
    return np.random.default_rng([seed, episode, *task.encode()])


def draw(task: MemoryTask, seed: int, episode: int, **options) -> tuple[Trial, np.random.Generator]:
    """Episode number ``episode``: its trial, and the random numbers for the rest of it."""
    rng = episode_rng(seed, type(task).__name__, episode)
    return task.draw(rng, **options), rng
