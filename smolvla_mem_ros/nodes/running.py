# SPDX-License-Identifier: Apache-2.0
"""Running a node until it is told to stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Protocol

import rclpy
from rclpy.exceptions import InvalidParameterValueException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions


class Closable(Protocol):
    """A node that can end its work while it can still publish."""

    def close(self) -> bool:
        """End all work. False when a thread of it does not return in time."""


def run_node(make_node: Callable[[], Node], args: list[str] | None = None) -> int:
    """Spin a node on one thread until SIGINT or SIGTERM, then ``close()`` it and end with exit code 0.

    rclpy's own handlers are not used: they shut the context down before a node could say goodbye.
    """
    stopping = False

    def stop(*_) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO):
        try:
            node = make_node()
        except (InvalidParameterValueException, ParameterException) as error:
            print(f"cannot start: {error}", file=sys.stderr)
            return 1
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        code = 0
        while not stopping and code == 0:
            executor.spin_once(timeout_sec=0.1)
            code = getattr(node, "exit_code", 0)
        closed = node.close()
        executor.shutdown(timeout_sec=0)
        node.destroy_node()
    if not closed:
        # A thread deep in a long computation would hold the interpreter back for seconds.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
