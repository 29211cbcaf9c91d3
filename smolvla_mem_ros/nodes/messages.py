# SPDX-License-Identifier: Apache-2.0
"""Values of the run time to ROS messages and back."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from smolvla_mem_ros.runtime.images import ImageError, decode_image
from smolvla_mem_ros.runtime.trajectory import TrajectorySegment
from smolvla_mem_ros.units import NANOSECONDS


def to_time(nanoseconds: int) -> Time:
    return Time(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


def to_trajectory(segment: TrajectorySegment) -> JointTrajectory:
    message = JointTrajectory(joint_names=list(segment.joints))
    message.header.stamp = to_time(segment.stamp)
    for t, position, velocity in zip(segment.times, segment.positions, segment.velocities, strict=True):
        point = JointTrajectoryPoint(positions=position.tolist(), velocities=velocity.tolist())
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(round(t * NANOSECONDS), NANOSECONDS)
        message.points.append(point)
    return message


def decode_raw_image(item: tuple[type, bytes]):
    """(H, W, 3) uint8 RGB from (message type, serialised message).

    Raises:
        ImageError: the bytes are no such message, or the image cannot be used.
    """
    kind, raw = item
    try:
        message = deserialize_message(raw, kind)
    except Exception as error:
        raise ImageError(f"{len(raw)} bytes are no {kind.__name__}: {error}") from error
    return decode_image(message)
