# SPDX-License-Identifier: Apache-2.0
"""Trajectories that somebody waits for: whether they are followed well enough, and how they end.

The rules are those of ros2_controllers' joint_trajectory_controller (Kilted) for its action: the path's
tolerances hold until the last point, the goal's from then on. Time for the goal is counted from the moment at
which the command has got there, which limits of velocity may put off.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Protocol

import numpy as np

from smolvla_mem_ros.so100.arm import JOINTS
from smolvla_mem_ros.so100.driver import ArmState
from smolvla_mem_ros.so100.follower import Sample, Trajectory

ERASED = -1.0  # what control_msgs/JointTolerance has for "no limit"
UNITS = {"position": "rad", "velocity": "rad/s"}


class Code(IntEnum):
    """The error codes of control_msgs/FollowJointTrajectory that are used here."""

    SUCCESSFUL = 0
    INVALID_GOAL = -1
    PATH_TOLERANCE_VIOLATED = -4
    GOAL_TOLERANCE_VIOLATED = -5


@dataclass(frozen=True)
class Ending:
    """How a goal ended. JTC's code for one that was canceled is SUCCESSFUL too, and INVALID_GOAL for one that
    something else put an end to."""

    text: str
    code: Code = Code.INVALID_GOAL
    canceled: bool = False


class JointTolerance(Protocol):
    """control_msgs/JointTolerance. 0 leaves a default as it is, -1 takes it away."""

    name: str
    position: float  # rad
    velocity: float  # rad/s
    acceleration: float  # rad/s^2; not measured here, so it is not looked at


@dataclass(frozen=True)
class Tolerances:
    """How far the measured joints may be from the trajectory; infinite for any distance.

    Args:
        path: position and velocity, (6,) rad and (6,) rad/s, until the last point.
        goal: the same from then on.
        goal_time: s after the command has got to the last point, by which the goal's must be kept.
    """

    path: dict[str, np.ndarray]
    goal: dict[str, np.ndarray]
    goal_time: float

    @classmethod
    def from_parameters(
        cls, path: Iterable[float], goal: Iterable[float], stopped_velocity: float, goal_time: float
    ) -> Tolerances:
        """As JTC's ``constraints`` have them: 0 for none, positions in the order of JOINTS."""
        none = np.full(len(JOINTS), np.inf)
        return cls(
            path={"position": _or_none(path), "velocity": none},
            goal={"position": _or_none(goal), "velocity": _or_none([stopped_velocity] * len(JOINTS))},
            goal_time=goal_time or np.inf,
        )

    def changed(
        self, path: Iterable[JointTolerance], goal: Iterable[JointTolerance], goal_time: float
    ) -> Tolerances:
        """These, with what a goal asks for instead. ``goal_time`` is in s, with the same special values.

        Raises:
            ValueError: an unknown joint, or a value that means nothing. JTC would go by its defaults.
        """
        return replace(
            self,
            path=_changed(self.path, path, "path_tolerance"),
            goal=_changed(self.goal, goal, "goal_tolerance"),
            goal_time=_resolved(self.goal_time, goal_time, "goal_time_tolerance"),
        )


def _or_none(values: Iterable[float]) -> np.ndarray:
    values = np.array(list(values), float)
    return np.where(values > 0, values, np.inf)


def _changed(
    defaults: dict[str, np.ndarray], asked: Iterable[JointTolerance], name: str
) -> dict[str, np.ndarray]:
    changed = {kind: values.copy() for kind, values in defaults.items()}
    for joint in asked:
        if joint.name not in JOINTS:
            raise ValueError(f"{name} names an unknown joint {joint.name}")
        column = JOINTS.index(joint.name)
        for kind, values in changed.items():
            values[column] = _resolved(
                values[column], getattr(joint, kind), f"{name} of {joint.name}'s {kind}"
            )
    return changed


def _resolved(default: float, asked: float, name: str) -> float:
    if asked == 0:
        return default
    if asked == ERASED:
        return np.inf
    if not asked > 0:  # false for NaN
        raise ValueError(f"{name} is {asked:g}; above zero is a tolerance, 0 the default, -1 none")
    return asked


@dataclass(frozen=True)
class Progress:
    """Where the joints were to be and where they were, at one moment.

    Args:
        time: s from the trajectory's start.
        desired, desired_velocity: (6,) rad and rad/s, of the trajectory.
        actual, actual_velocity: (6,) rad and rad/s, measured.
    """

    time: float
    desired: np.ndarray
    desired_velocity: np.ndarray
    actual: np.ndarray
    actual_velocity: np.ndarray


@dataclass(eq=False)
class Goal:
    """A trajectory that somebody waits for. The loop's thread alone changes it; any may read it.

    Attributes:
        ended: gets its Ending.
        begun: s, the trajectory's start, once it is accepted.
        progress: as of the latest cycle; None before it has begun.
    """

    trajectory: Trajectory
    tolerances: Tolerances
    ended: Future[Ending] = field(default_factory=Future, init=False)
    progress: Progress | None = field(default=None, init=False)
    begun: float = field(default=np.nan, init=False)
    _arrived: float | None = field(default=None, init=False)  # s, when the command had got to the last point

    def judge(self, told: Sample, state: ArmState) -> Ending | None:
        """Whether it has ended in this cycle.

        Args:
            told: what the joints had been told last when ``state`` was measured.
        """
        self.progress = Progress(
            state.time - self.begun, told.wanted, told.wanted_velocity, state.position, state.velocity
        )
        errors = {
            "position": told.wanted - state.position,
            "velocity": told.wanted_velocity - state.velocity,
        }
        if told.moving:
            broken = _broken(errors, self.tolerances.path)
            return Ending(f"left its path: {broken}", Code.PATH_TOLERANCE_VIOLATED) if broken else None
        self._arrived = state.time if self._arrived is None else self._arrived
        broken = _broken(errors, self.tolerances.goal)
        if not broken:
            return Ending("goal reached", Code.SUCCESSFUL)
        if state.time - self._arrived > self.tolerances.goal_time:
            within = f"within {self.tolerances.goal_time:g} s"
            return Ending(f"not at its goal {within}: {broken}", Code.GOAL_TOLERANCE_VIOLATED)
        return None


def _broken(errors: dict[str, np.ndarray], tolerances: dict[str, np.ndarray]) -> str:
    """Which joint is off by how much, or nothing."""
    return ", ".join(
        f"{joint} is off by {abs(error):.3g} {UNITS[kind]} (tolerance {tolerance:g})"
        for kind in UNITS
        for joint, error, tolerance in zip(JOINTS, errors[kind], tolerances[kind], strict=True)
        if abs(error) > tolerance
    )
