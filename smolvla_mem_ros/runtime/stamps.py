# SPDX-License-Identifier: Apache-2.0
"""Stamps of messages, decoded or serialised, as nanoseconds."""

from __future__ import annotations

import struct
from typing import Any

from smolvla_mem_ros.units import NANOSECONDS


def from_time(stamp: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time or Duration, of rclpy or of rosbags."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def header_stamp(raw: bytes) -> int:
    """Nanoseconds of ``header.stamp`` of a serialised message that begins with a std_msgs/Header.

    CDR: four bytes of encapsulation, the second of which tells the byte order, then sec and nanosec.

    Raises:
        ValueError: the message is too short.
    """
    if len(raw) < 12:
        raise ValueError(f"{len(raw)} bytes are no message with a header")
    sec, nanosec = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return sec * NANOSECONDS + nanosec
