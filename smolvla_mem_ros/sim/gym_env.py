# SPDX-License-Identifier: Apache-2.0
"""The memory tasks as gymnasium environments, ``so100_memory/<Task>-v0`` for each of TASKS.

Importing this module registers them: ``gymnasium.make("so100_memory/CueRecall2-v0")``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict

from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.tasks import DELAYS, FPS, TASKS, TIME_LIMIT, get_task
from smolvla_mem_ros.sim.world import CAMERAS, World
from smolvla_mem_ros.so100.arm import JOINTS, LEROBOT_UNITS

NAMESPACE = "so100_memory"
SHOWN = 40  # frames, within which the last cue of every task ends


def gym_id(task: str) -> str:
    """The environment's id. Raises ValueError when there is no such task."""
    get_task(task)
    return f"{NAMESPACE}/{task}-v0"


class MemoryTaskEnv(gym.Env):
    """One arm in one memory task.

    ``reset(seed=s)`` plays episode 0 of seed s, each ``reset()`` after it the next: the episodes that
    ``sim.demos.draw`` numbers the same. ``reset(options={"episode": k})`` plays episode k.

    The reward of a step is the share of the goals that it reached, so an episode's sum is 1 exactly when it
    succeeded. It is terminated when the referee ends it, and never truncated: the referee has a time limit.

    Args:
        task: a name in TASKS.
        delay, cue_visible: as for :meth:`MemoryTask.draw`.
        width, height: pixels of a picture.
        render_mode: "rgb_array", what the front camera sees, or None.

    Raises:
        ValueError: there is no such task, or it cannot be played with these options.

    Attributes:
        task: its name.
        task_description: what the policy is told.
        world: what it plays in, for a scripted policy that knows more than the observation.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}

    def __init__(
        self,
        task: str,
        delay: int | None = None,
        cue_visible: bool = False,
        width: int = 64,
        height: int = 48,
        render_mode: str | None = "rgb_array",
    ) -> None:
        self.task, self.task_description = task, get_task(task).instruction
        self.render_mode = render_mode
        self._options = {"delay": delay, "cue_visible": cue_visible}
        draw(get_task(task), 0, 0, **self._options)  # complain now, not at the first reset
        # No episode takes longer; LeRobot's evaluation asks for it under this name.
        self._max_episode_steps = SHOWN + (DELAYS[1] if delay is None else delay) + 2 * TIME_LIMIT
        self.world = World(width, height)
        low, high = self.world.scene.model.actuator_ctrlrange.T
        self.action_space = Box(
            LEROBOT_UNITS.from_radians(low).astype(np.float32),
            LEROBOT_UNITS.from_radians(high).astype(np.float32),
        )
        pictures = {camera: Box(0, 255, (height, width, 3), np.uint8) for camera in CAMERAS}
        self.observation_space = Dict(
            {"pixels": Dict(pictures), "agent_pos": Box(-360.0, 360.0, (len(JOINTS),), np.float32)}
        )
        self._episode = 0
        self._picture: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        episode = (options or {}).get("episode", 0 if seed is not None else self._episode)
        self._episode = episode + 1
        self.world.reset(*draw(get_task(self.task), self.np_random_seed, episode, **self._options))
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """``action`` (6,) in LeRobot's units; what is out of the joints' range is clipped."""
        referee = self.world.referee
        before = referee.done
        self.world.step(np.asarray(action, dtype=float))
        reward = (referee.done - before) / len(referee.trial.goals)
        return self._observe(), reward, referee.outcome is not None, False, self._info()

    def render(self) -> np.ndarray | None:
        """(height, width, 3) uint8, the latest picture of the front camera."""
        return None if self.render_mode is None else self._picture.copy()

    def close(self) -> None:
        self.world.close()

    def _observe(self) -> dict:
        pictures = self.world.pictures()
        self._picture = pictures["front"]
        return {"pixels": pictures, "agent_pos": self.world.state}

    def _info(self) -> dict:
        referee = self.world.referee
        return {"is_success": bool(referee.outcome), "reason": referee.reason}


for _task in TASKS:
    gym.register(
        gym_id(_task),
        entry_point=f"{__name__}:{MemoryTaskEnv.__name__}",
        kwargs={"task": _task},
        nondeterministic=False,
    )
