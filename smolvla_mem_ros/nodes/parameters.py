# SPDX-License-Identifier: Apache-2.0
"""Declaring parameters with a type, a description and a range."""

from __future__ import annotations

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

Value = bool | int | float | str | list


def declare(
    node: Node,
    name: str,
    default: Value,
    description: str,
    bounds: tuple[float, float] | None = None,
    read_only: bool = True,
) -> Value:
    """Declare one parameter of the type of ``default``. Returns its value.

    Args:
        bounds: least and greatest value of a number; ROS refuses any other.
        read_only: fixed once the node has started.
    """
    descriptor = ParameterDescriptor(description=description, read_only=read_only)
    if bounds and isinstance(default, int):
        descriptor.integer_range = [IntegerRange(from_value=int(bounds[0]), to_value=int(bounds[1]), step=0)]
    elif bounds:
        low, high = map(float, bounds)
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
    return node.declare_parameter(name, default, descriptor).value
