# SPDX-License-Identifier: Apache-2.0
"""Running a node until it is told to stop."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import rclpy
from rclpy.exceptions import InvalidParameterValueException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_wakeup: int | None = None  # readable once a signal has come to run_node


def stop_asked() -> bool:
    """Whether a signal to stop has come to :func:`run_node`. Any thread may ask.

    Python's own handlers wait for the main thread, which may be in rclpy for a tenth of a second.
    """
    return _wakeup is not None and bool(select.select([_wakeup], [], [], 0)[0])


@contextmanager
def ended_at_once_by_signals() -> Iterator[None]:
    """For long work before which nothing was commanded: a signal does not wait for its end.

    Does nothing outside :func:`run_node`.
    """
    if _wakeup is None:
        yield
        return
    for number in _SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))
    try:
        yield
    finally:
        for number in _SIGNALS:
            signal.signal(number, _noted)


def _noted(*_: object) -> None:
    """Python writes to the wakeup descriptor only for a signal that has a handler."""


def run_node(make_node: Callable[[], Node], args: list[str] | None = None) -> NoReturn:
    """Spin a node on one thread until SIGINT or SIGTERM, then ``close()`` it; ends the process.

    A node ends with exit code 0; by itself when it is ``finished``, or with what it puts into ``exit_code``.
    rclpy's own handlers are not used: they shut the context down before a node could say goodbye.
    """
    global _wakeup
    _wakeup, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing)
    for number in _SIGNALS:
        signal.signal(number, _noted)
    code = 0
    with rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO):
        try:
            node = make_node()
        except (InvalidParameterValueException, ParameterException) as error:
            print(f"cannot start: {error}", file=sys.stderr)
            sys.exit(1)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop_asked() and code == 0 and not getattr(node, "finished", False):
            executor.spin_once(timeout_sec=0.1)
            code = getattr(node, "exit_code", 0)
        node.close()
        code = code or getattr(node, "exit_code", 0)
        executor.shutdown(timeout_sec=0)
        node.destroy_node()
    # Everything is closed; unloading torch, or waiting for an inference, would take seconds more.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
