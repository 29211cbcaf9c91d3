# SPDX-License-Identifier: Apache-2.0
"""The emulator as a child process: start it, command it, read its state, end it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

from smolvla_mem_ros.sim.shared_state import SharedState, Snapshot


class EmulatorDied(Exception):
    """The emulator's process has ended by itself."""


class EmulatorProcess:
    """Runs :mod:`smolvla_mem_ros.sim.emulator`; it ends when this object is closed or this process dies.

    Args:
        port: the link that programs open.
        calibration: LeRobot's calibration file; None for that of the emulator's ``--model``.
        options: further command-line arguments of the emulator.
    """

    def __init__(self, port: Path, calibration: Path | None, *options: str) -> None:
        self._state = SharedState.create()
        fd = self._state.fd
        command = [sys.executable, "-m", "smolvla_mem_ros.sim.emulator", "--control", f"--state-fd={fd}"]
        command += [f"--port={port}", *options]
        if calibration is not None:
            command.append(f"--calibration={calibration}")
        # Its standard input is the lifeline: the pipe closes with this process, however that ends.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[fd], bufsize=0
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def snapshot(self) -> Snapshot | None:
        """The simulation's newest state; None before it is ready. Raises EmulatorDied."""
        if self.exit_code is not None:
            raise EmulatorDied(f"the servo-bus emulator ended with exit code {self.exit_code}")
        return self._state.read()

    def wait_ready(self, timeout: float = 20.0) -> Snapshot:
        """Waits until the arm answers on its port. Raises EmulatorDied, TimeoutError."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if (snapshot := self.snapshot()) is not None:
                return snapshot
            time.sleep(0.01)
        raise TimeoutError(f"the servo-bus emulator is not ready after {timeout:g} s")

    def command(self, line: str) -> None:
        """One line, such as ``drop 0.1`` or ``overheat elbow_flex 80``; the emulator reports a wrong one on
        standard error. All of them stand in :data:`smolvla_mem_ros.sim.commands.COMMANDS`.

        Raises:
            EmulatorDied: it does not listen any more.
        """
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError as error:
            raise EmulatorDied("the servo-bus emulator does not listen any more") from error

    def tell(self, line: str, timeout: float = 5.0) -> None:
        """As ``command``, and returns when it is done. Raises EmulatorDied, TimeoutError."""
        self.command(line)
        # The next state but one was shared after a look at what it had been told.
        done = self.wait_ready().sequence + 2
        deadline = time.monotonic() + timeout
        while self.wait_ready().sequence < done:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the servo-bus emulator has not done '{line}' within {timeout:g} s")
            time.sleep(0.002)

    def reset(self, timeout: float = 2.0) -> None:
        """As the emulator's command; returns when it is done. Raises EmulatorDied, TimeoutError."""
        before = self.wait_ready().resets
        self.command("reset")
        deadline = time.monotonic() + timeout
        while self.wait_ready().resets == before:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the servo-bus emulator has not reset the scene within {timeout:g} s")
            time.sleep(0.002)

    def close(self) -> None:
        """Ends the emulator, by force if it does not end by itself. Safe to call twice."""
        if self._process.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._state.close()

    def __enter__(self) -> EmulatorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
