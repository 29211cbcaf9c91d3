# SPDX-License-Identifier: Apache-2.0
"""The memory tasks as a LeRobot environment, type ``so100_memory``, for LeRobot's own commands.

``lerobot-train`` and ``lerobot-eval`` find it by ``--env.discover_packages_path=smolvla_mem_ros.sim
--env.type=so100_memory --env.task=CueRecall2``. No other module of this package imports LeRobot here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from smolvla_mem_ros.sim import gym_env  # registers the environments, in a worker process too
from smolvla_mem_ros.sim.tasks import FPS
from smolvla_mem_ros.sim.world import CAMERAS
from smolvla_mem_ros.so100.arm import JOINTS


@EnvConfig.register_subclass(gym_env.NAMESPACE)
@dataclass
class SO100MemoryEnv(EnvConfig):
    """One memory task.

    Args:
        task: a name in TASKS.
        delay: frames between cue and go; null draws it each episode.
        cue_visible: the cue stays lit, so that no memory is needed.
        episode_length: frames after which an episode is cut off; null leaves that to the referee.
        observation_width, observation_height: pixels of a picture.

    Raises:
        ValueError: there is no such task.
    """

    task: str | None = "CueRecall2"
    fps: int = FPS
    delay: int | None = None
    cue_visible: bool = False
    episode_length: int | None = None
    observation_width: int = 64
    observation_height: int = 48
    # Filled in below: the keys of LeRobot's datasets where its evaluation allows them, so that recorded
    # episodes have pictures.
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = (self.observation_height, self.observation_width, 3)
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (len(JOINTS),)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (len(JOINTS),)),
            **{f"{OBS_IMAGES}.{camera}": PolicyFeature(FeatureType.VISUAL, size) for camera in CAMERAS},
        }
        self.features_map = {key: OBS_STATE if key == "agent_pos" else key for key in self.features}
        _ = self.gym_id

    @property
    def package_name(self) -> str:
        return gym_env.__name__

    @property
    def gym_id(self) -> str:
        return gym_env.gym_id(self.task)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        kwargs = {
            "delay": self.delay,
            "cue_visible": self.cue_visible,
            "width": self.observation_width,
            "height": self.observation_height,
        }
        # gymnasium takes this one itself, and cuts episodes off.
        return kwargs | ({"max_episode_steps": self.episode_length} if self.episode_length else {})
