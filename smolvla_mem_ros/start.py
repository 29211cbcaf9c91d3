# SPDX-License-Identifier: Apache-2.0
"""Starts a program of this package: ``python -m smolvla_mem_ros.start nodes.policy_node --ros-args ...``.

The imports of a node or tool (torch, LeRobot, MuJoCo) take seconds. Here a signal ends the process
quietly from the first moment.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import NoReturn

_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def start(module: str) -> NoReturn:
    """Import ``smolvla_mem_ros.<module>`` and end with what its ``main()`` returns."""
    for number in _HANDLERS:
        signal.signal(number, lambda *_: os._exit(0))
    main = importlib.import_module(f"smolvla_mem_ros.{module}").main
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)
    sys.exit(main())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m smolvla_mem_ros.start nodes.policy_node|cli.bringup|... [ARGUMENT...]")
    start(sys.argv.pop(1))
