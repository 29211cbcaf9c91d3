# SPDX-License-Identifier: Apache-2.0
"""Trajectory messages to the values of the arm's loop, and back."""

from __future__ import annotations

import time

import numpy as np
from builtin_interfaces.msg import Duration
from rclpy.clock import Clock
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from smolvla_mem_ros.so100.follower import Trajectory, TrajectoryPoint
from smolvla_mem_ros.units import NANOSECONDS


def from_trajectory(message: JointTrajectory, clock: Clock) -> Trajectory:
    """``clock`` is the one of the message's stamp; a stamp of 0 means now."""
    points = tuple(
        TrajectoryPoint(to_seconds(p.time_from_start), p.positions, p.velocities, p.accelerations)
        for p in message.points
    )
    start = None
    if message.header.stamp.sec or message.header.stamp.nanosec:
        # The loop's clock does not jump when the system's is set.
        # rclpy's Time refuses what is before 1970, which here is just long past.
        stamp = message.header.stamp.sec * NANOSECONDS + message.header.stamp.nanosec
        start = time.monotonic() - (clock.now().nanoseconds - stamp) / NANOSECONDS
    return Trajectory(tuple(message.joint_names), points, start)


def to_point(seconds: float, position: np.ndarray, velocity: np.ndarray) -> JointTrajectoryPoint:
    point = JointTrajectoryPoint(positions=position.tolist(), velocities=velocity.tolist())
    point.time_from_start.sec, point.time_from_start.nanosec = divmod(
        round(seconds * NANOSECONDS), NANOSECONDS
    )
    return point


def to_seconds(duration: Duration) -> float:
    return duration.sec + duration.nanosec / NANOSECONDS
