# SPDX-License-Identifier: Apache-2.0
"""A checkpoint and its processors behind one pure function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from lerobot.policies.utils import prepare_observation_for_inference

from smolvla_mem_ros.policy.checkpoint import Checkpoint
from smolvla_mem_ros.policy.memory import Memory
from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.runtime.observation import Observation


class EngineError(RuntimeError):
    """An inference gave nothing that may move an arm."""


@dataclass(frozen=True)
class Inference:
    """Actions (T, A) float64 in the checkpoint's units, and the memory to hand in next."""

    actions: np.ndarray
    memory: Memory | None


class Engine:
    """Runs a policy. Used by one thread at a time; keeps no state between calls.

    Args:
        checkpoint: policy and processors.
        contract: already held against the checkpoint.
        seed: of the flow-matching noise. The same seed, observation, memory, episode and step give the
            same actions, whatever else was inferred before.
    """

    def __init__(self, checkpoint: Checkpoint, contract: Contract, seed: int = 0):
        self._checkpoint = checkpoint
        self._contract = contract
        self.seed = seed

    @property
    def memory_shape(self) -> tuple[int, int]:
        """(n, H); (0, 0) without memory."""
        policy = self._checkpoint.policy
        n = policy.config.num_mem_tokens
        return (n, policy.model.hidden_size) if n else (0, 0)

    def infer(self, observation: Observation, memory: Memory | None, episode_id: int, step: int) -> Inference:
        """One chunk.

        Args:
            memory: of one row; None at the start of an episode.
            episode_id, step: which inference this is; they choose the noise.

        Raises:
            EngineError: an action or the memory is not finite.
        """
        policy, config = self._checkpoint.policy, self._checkpoint.config
        device = torch.device(config.device)
        raw = {**observation.images, "observation.state": observation.state}
        batch = self._checkpoint.preprocessor(
            prepare_observation_for_inference(raw, device, observation.task)
        )
        batch = {
            k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and k.startswith("observation.")
        }
        actions, memory = policy.infer(batch, memory, self._noise(episode_id, step).to(device))
        actions = self._checkpoint.postprocessor(actions)[0].double().cpu().numpy()
        if not np.isfinite(actions).all():
            raise EngineError("the policy gave actions that are not finite; nothing was commanded")
        if memory is not None and not bool(torch.isfinite(memory.tokens).all()):
            raise EngineError("the memory is no longer finite; nothing was committed, reset it")
        return Inference(actions, memory)

    def warm_up(self) -> None:
        """Infer once on blank input, so that the first real chunk is not the slow one."""
        images = {c.key: np.zeros((480, 640, 3), np.uint8) for c in self._contract.cameras}
        state = np.zeros(len(self._contract.joints), np.float32)
        self.infer(Observation(0, {}, images, state, "warm up"), None, 0, 0)

    def _noise(self, episode_id: int, step: int) -> torch.Tensor:
        config = self._checkpoint.config
        key = np.random.SeedSequence([self.seed, episode_id, step]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(key) >> 1)
        return torch.randn(1, config.chunk_size, config.max_action_dim, generator=generator)
