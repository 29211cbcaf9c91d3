# SPDX-License-Identifier: Apache-2.0
"""Processes that live and die together: what bring-up and the demo start their nodes with."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from smolvla_mem_ros.cli import watchdog


@dataclass(frozen=True)
class Process:
    """A program to run.

    Args:
        name: stands before each line it prints.
        command: program and arguments.
        required: when it ends by itself, all others are ended too.
        environment: added to this process's own environment.
    """

    name: str
    command: tuple[str, ...]
    required: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


class ProcessGroup:
    """Runs processes, each in a session of its own, and ends them together.

    ::

        with ProcessGroup(processes, name="bringup") as group:
            while group.ended is None:
                ...

    Ending means SIGINT to all, SIGTERM to what is left after 3 s, SIGKILL 2 s later. It reaches each
    process's children too, and it happens even if this process is killed: a watchdog process holds the
    other end of a pipe. All methods are for one thread; only ``request_stop`` may be called from a
    signal handler or another thread.

    Args:
        processes: started in this order.
        name: stands before this class's own lines.
        output: where their lines go, each with the process's name before it.
    """

    def __init__(self, processes: Sequence[Process], *, name: str, output: TextIO | None = None) -> None:
        self._processes = tuple(processes)
        self._name = name
        self._output = sys.stdout if output is None else output
        self._output_lock = threading.Lock()
        self._children: dict[int, tuple[Process, subprocess.Popen]] = {}  # by process group, those left
        self._readers: list[threading.Thread] = []
        self._watchdog: subprocess.Popen | None = None
        self._stop_requests = 0
        self._wake = threading.Event()
        self._ended: str | None = None
        self.failed = False  # whether what has ended did so with an error

    @property
    def ended(self) -> str | None:
        """How a required process ended by itself, in words; None while all of them run."""
        self._reap()
        return self._ended

    @property
    def stop_requested(self) -> bool:
        return self._stop_requests > 0

    def request_stop(self) -> None:
        """Lets ``wait`` return; during ``stop``, goes on to the next signal at once."""
        self._stop_requests += 1
        self._wake.set()

    def start(self) -> None:
        """Starts all processes, or none.

        Raises:
            OSError: a program is not there or may not be run.
        """
        # Without site-packages it starts in milliseconds; in a session of its own no Ctrl-C reaches it.
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", watchdog.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            for process in self._processes:
                self._start(process)
        except BaseException:
            self.stop()
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for a stop request or a required process's end; false if ``timeout`` (s) passed before."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.stop_requested and self.ended is None:
            if deadline is not None and time.monotonic() > deadline:
                return False
            self._wake.wait(0.05)
        return True

    def stop(self) -> None:
        """Ends all processes; returns when they are gone. Does nothing when they are already."""
        asked = self._stop_requests

        def hurry() -> bool:
            nonlocal asked
            more, asked = self._stop_requests > asked, self._stop_requests
            return more

        def tell(group: int, number: int) -> None:
            name = self._children[group][0].name
            self.say(f"{name} has not ended yet, sending {signal.Signals(number).name}")

        watchdog.end_groups(list(self._children), on_step=tell, reap=self._reap, hurry=hurry)
        for reader in self._readers:
            reader.join(timeout=1.0)
        self._readers.clear()
        if self._watchdog is not None:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None

    def say(self, line: str) -> None:
        """Prints a line of the owner's among those of the processes."""
        self._print(self._name, line)

    def __enter__(self) -> ProcessGroup:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _reap(self) -> None:
        for group, (process, child) in list(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            if process.required and self._ended is None:
                self._ended, self.failed = f"{process.name} {in_words(code)}", code != 0
            if not watchdog.send(group, 0):  # its children are gone too, and the id may be used again
                del self._children[group]
                self._tell_watchdog("-", group)

    def _tell_watchdog(self, sign: str, group: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._watchdog.stdin.write(f"{sign}{group}\n")
            self._watchdog.stdin.flush()

    def _start(self, process: Process) -> None:
        child = subprocess.Popen(
            process.command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **process.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._children[child.pid] = (process, child)
        self._tell_watchdog("+", child.pid)
        reader = threading.Thread(target=self._forward, args=(process.name, child.stdout), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _forward(self, name: str, lines: TextIO) -> None:
        with lines:
            for line in lines:
                self._print(name, line.rstrip())

    def _print(self, name: str, line: str) -> None:
        # When nobody reads any more (a closed pipe), the processes must still not block on a full one.
        with self._output_lock, contextlib.suppress(BrokenPipeError, ValueError):
            self._output.write(f"[{name}] {line}\n")
            self._output.flush()


def in_words(code: int) -> str:
    """A return code as ``subprocess`` gives it, in words."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def run(processes: Sequence[Process], *, name: str) -> int:
    """Runs processes until SIGINT, SIGTERM or SIGHUP comes or a required one ends by itself.

    Args:
        processes: what to run.
        name: stands before the lines that are not from one of them.

    Returns:
        The exit code for this process: 1 when a required process failed, else 0.
    """
    group = ProcessGroup(processes, name=name)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: group.request_stop()) for number in numbers}
    try:
        with group:
            group.wait()
            if group.stop_requested:
                return 0
            group.say(f"{group.ended}; ending the others")
            return int(group.failed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
