# SPDX-License-Identifier: Apache-2.0
"""Chunks of actions to joint trajectories in ROS units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.units import NANOSECONDS

# Seconds in which a hold brings the arm to rest.
STOP_TIME = 0.15


@dataclass(frozen=True)
class Chunk:
    """Actions of one inference.

    Args:
        stamp: nanoseconds; action k is meant for ``stamp + k * dt``.
        actions: (T, A) in the checkpoint's units.
        dt: seconds between two actions.
        epoch: of the episode it was inferred in.
    """

    stamp: int
    actions: np.ndarray
    dt: float
    epoch: int


@dataclass(frozen=True)
class TrajectorySegment:
    """A stretch of motion.

    Args:
        stamp: nanoseconds, time zero of ``times``.
        joints: names, D of them.
        times: (T,) seconds, strictly increasing.
        positions: (T, D) radians, or what else the contract says of the topics' units.
        velocities: (T, D) the same per second.
    """

    stamp: int
    joints: tuple[str, ...]
    times: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray

    @property
    def end(self) -> int:
        """Nanoseconds, the time of the last point."""
        return self.stamp + round(self.times[-1] * NANOSECONDS)


def to_segment(chunk: Chunk, contract: Contract) -> TrajectorySegment:
    """Convert to the topics' units and add velocities."""
    positions = contract.units.to_radians(np.asarray(chunk.actions, dtype=float)) / contract.radians_per_unit
    times = np.arange(len(positions)) * chunk.dt
    return TrajectorySegment(chunk.stamp, contract.joints, times, positions, velocities(positions, chunk.dt))


def velocities(positions: np.ndarray, dt: float) -> np.ndarray:
    """(T, D) by differences of second order; positions (T, D) stand ``dt`` s apart.

    The last is zero: joint_trajectory_controller refuses a trajectory that ends in motion.
    """
    found = np.zeros_like(positions)
    if len(positions) > 1:
        # At the first point too: a chunk that is taken over there must not differ from the one before.
        found = np.gradient(positions, dt, axis=0, edge_order=min(2, len(positions) - 1))
        found[-1] = 0.0
    return found


def hold(segment: TrajectorySegment, now: int) -> TrajectorySegment | None:
    """A segment of one point that stops the motion of ``segment`` where it is at ``now`` (ns).

    None when the motion is over already.
    """
    if now >= segment.end:
        return None
    t = max(0.0, (now - segment.stamp) / NANOSECONDS)
    columns = range(segment.positions.shape[1])
    position = np.array([np.interp(t, segment.times, segment.positions[:, j]) for j in columns])
    velocity = np.array([np.interp(t, segment.times, segment.velocities[:, j]) for j in columns])
    if now < segment.stamp:
        velocity[:] = 0.0
    # Even deceleration covers half of what the present velocity would.
    target = position + velocity * STOP_TIME / 2
    return TrajectorySegment(
        now, segment.joints, np.array([STOP_TIME]), target[None], np.zeros_like(target)[None]
    )
