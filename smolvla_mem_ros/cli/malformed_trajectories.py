# SPDX-License-Identifier: Apache-2.0
"""JointTrajectory messages that no arm must follow: each is made to break a rule of docs/so100.md."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from smolvla_mem_ros.so100.arm import JOINTS
from smolvla_mem_ros.so100.follower import MOST_POINTS

POINTS = 25
DT_NS = 33_333_333  # between two points; all are within the first second
HUGE = MOST_POINTS  # points, or names, of a message that is meant to keep the node busy

# No number, or one that no joint has.
ABSURD = (float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 1e7)

Random = np.random.Generator
Spoil = Callable[[JointTrajectory, Random], None]


def well_formed(random: Random, points: int = POINTS) -> JointTrajectory:
    """What would be followed, and seen: somewhere within the limits, at once."""
    message = JointTrajectory(joint_names=list(JOINTS))
    positions = random.uniform(-1.0, 1.0, (points, len(JOINTS)))
    velocities = random.uniform(-1.0, 1.0, (points, len(JOINTS)))
    for i, (position, velocity) in enumerate(zip(positions, velocities, strict=True)):
        point = JointTrajectoryPoint(positions=position.tolist(), velocities=velocity.tolist())
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(i * DT_NS, 10**9)
        message.points.append(point)
    return message


def malformed(kind: str, random: Random) -> JointTrajectory:
    """A message of a kind of KINDS."""
    message = well_formed(random, HUGE if kind in HOSTILE and "points" in kind else POINTS)
    KINDS[kind](message, random)
    return message


def _any_point(message: JointTrajectory, random: Random) -> JointTrajectoryPoint:
    return message.points[random.integers(len(message.points))]


def _names(names: Callable[[Random], list[str]]) -> Spoil:
    def spoil(message: JointTrajectory, random: Random) -> None:
        message.joint_names = names(random)

    return spoil


def _renamed(random: Random) -> list[str]:
    names = list(JOINTS)
    names[random.integers(len(names))] = random.choice(
        ["elbow", "", "SHOULDER_PAN", "gripper ", "ü", "x" * 50_000]
    )
    return names


def _doubled(random: Random) -> list[str]:
    names = list(JOINTS)
    first, second = random.choice(len(names), 2, replace=False)
    names[first] = names[second]
    return names


def _without_a_joint(message: JointTrajectory, random: Random) -> None:
    left_out = random.integers(len(JOINTS))
    del message.joint_names[left_out]
    for point in message.points:
        del point.positions[left_out], point.velocities[left_out]


def _length(field: str, *lengths: int) -> Spoil:
    def spoil(message: JointTrajectory, random: Random) -> None:
        setattr(_any_point(message, random), field, [0.1] * int(random.choice(lengths)))

    return spoil


def _absurd(field: str) -> Spoil:
    def spoil(message: JointTrajectory, random: Random) -> None:
        values = random.uniform(-1, 1, len(JOINTS))
        values[random.integers(len(JOINTS))] = random.choice(ABSURD)
        setattr(_any_point(message, random), field, values.tolist())

    return spoil


def _time_repeated(message: JointTrajectory, random: Random) -> None:
    i = random.integers(1, len(message.points))
    message.points[i].time_from_start = copy.copy(message.points[i - 1].time_from_start)


def _times_reversed(message: JointTrajectory, random: Random) -> None:
    times = [point.time_from_start for point in message.points]
    for point, time in zip(message.points, reversed(times), strict=True):
        point.time_from_start = time


def _time_negative(message: JointTrajectory, random: Random) -> None:
    message.points[0].time_from_start.sec = int(random.choice([-1, -1000, -(2**31)]))


def _stamp(low: int, high: int) -> Spoil:
    def spoil(message: JointTrajectory, random: Random) -> None:
        message.header.stamp.sec = int(random.integers(low, high))
        message.header.stamp.nanosec = int(random.integers(10**9))

    return spoil


def _points_last_broken(message: JointTrajectory, random: Random) -> None:
    last, before = message.points[-1], message.points[-2]
    match random.integers(3):
        case 0:
            last.positions[-1] = random.choice(ABSURD)
        case 1:
            last.time_from_start = copy.copy(before.time_from_start)
        case 2:
            last.positions = last.positions[:-1]


KINDS: dict[str, Spoil] = {
    "no joint names": _names(lambda random: []),
    "a joint renamed": _names(_renamed),
    "a joint twice": _names(_doubled),
    "a joint too many": _names(lambda random: [*JOINTS, "extra"]),
    "a joint missing": _without_a_joint,
    "no points": lambda message, random: message.points.clear(),
    "positions missing": _length("positions", 0),
    "positions of another length": _length("positions", 1, 5, 7, 100),
    "velocities of another length": _length("velocities", 1, 5, 7, 100),
    "accelerations of another length": _length("accelerations", 1, 5, 7, 100),
    "absurd position": _absurd("positions"),
    "absurd velocity": _absurd("velocities"),
    "absurd acceleration": _absurd("accelerations"),
    "a time twice": _time_repeated,
    "times going back": _times_reversed,
    "a negative time": _time_negative,
    "a stamp long past": _stamp(1, 1_000_000_000),
    "a stamp before 1970": _stamp(-(2**31), 0),
    "very many points, the last one broken": _points_last_broken,
    "very many joints": _names(lambda random: [f"joint_{i}" for i in range(HUGE)]),
}
# So large that reading one takes longer than a cycle of the arm's loop; there are fewer of them.
HOSTILE = frozenset(kind for kind in KINDS if kind.startswith("very many"))
HOSTILE_SHARE = 0.005
