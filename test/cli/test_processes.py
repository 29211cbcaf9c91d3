# SPDX-License-Identifier: Apache-2.0
"""Pins that processes started together end together: no orphan, no hang, the right exit code."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from waiting import alive

from smolvla_mem_ros.cli.processes import Process, ProcessGroup

# What the children do, each after saying "ready PID".
READY = "import os, signal, subprocess, sys, time\nprint('ready', os.getpid(), flush=True)\n"
POLITE = f"""
import signal, sys
signal.signal(signal.SIGINT, lambda *_: (print('bye', flush=True), sys.exit(0)))
{READY}
while True: time.sleep(0.1)
"""
STUBBORN = f"""
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
{READY}
while True: time.sleep(0.1)
"""
CRASHING = READY + "time.sleep(0.5); sys.exit(3)"
# Leaves a child of its own behind, one that no signal of a parent's death reaches.
LEAVING = (
    READY + "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
    "print('ready', child.pid, flush=True); sys.exit(0)"
)
CHILDREN = {"polite": POLITE, "stubborn": STUBBORN, "crashing": CRASHING, "leaving": LEAVING}

OWNER = """
import json, sys
from smolvla_mem_ros.cli.processes import Process, run
processes = [Process(name, tuple(command), required) for name, command, required in json.loads(sys.argv[1])]
sys.exit(run(processes, name='owner'))
"""


def process(kind, *, name=None, required=True):
    return Process(name or kind, (sys.executable, "-S", "-c", CHILDREN[kind]), required)


class Owner:
    """``run`` in a process of its own, which the test can signal and kill."""

    def __init__(self, *processes: Process) -> None:
        self.lines: list[str] = []
        self.pids: list[int] = []
        described = json.dumps([(each.name, each.command, each.required) for each in processes])
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, described],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read_until_ready(self, count: int) -> None:
        while len(self.pids) < count:
            line = self.process.stdout.readline()
            assert line, self.lines
            self.lines.append(line.rstrip())
            if "ready" in line:
                self.pids.append(int(line.split()[-1]))

    def finish(self, timeout: float) -> int:
        rest, _ = self.process.communicate(timeout=timeout)
        self.lines += rest.splitlines()
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in (self.process.pid, *self.pids):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.stdout.close()
        self.process.wait()


def wait_until_gone(pids, timeout):
    deadline = time.monotonic() + timeout
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [pid for pid in pids if alive(pid)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_politely_with_exit_code_0(number):
    with Owner(process("polite", name="first"), process("polite", name="second")) as owner:
        owner.read_until_ready(2)
        begin = time.monotonic()
        owner.process.send_signal(number)
        assert owner.finish(timeout=3) == 0
        assert time.monotonic() - begin < 3
        assert not any(map(alive, owner.pids))
        assert {"[first] bye", "[second] bye"} <= set(owner.lines)


def test_a_stubborn_process_is_killed_and_named():
    with Owner(process("stubborn"), process("polite")) as owner:
        owner.read_until_ready(2)
        begin = time.monotonic()
        owner.process.send_signal(signal.SIGINT)
        assert owner.finish(timeout=8) == 0
        assert 4.5 < time.monotonic() - begin < 7
        assert not any(map(alive, owner.pids))
        assert "[polite] bye" in owner.lines
        own = [line for line in owner.lines if line.startswith("[owner]")]
        assert own == [
            f"[owner] stubborn has not ended yet, sending {name}" for name in ("SIGTERM", "SIGKILL")
        ]


def test_asking_again_does_not_wait_for_a_stubborn_process():
    with Owner(process("stubborn")) as owner:
        owner.read_until_ready(1)
        begin = time.monotonic()
        for _ in range(3):
            owner.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert owner.finish(timeout=3) == 0
        assert time.monotonic() - begin < 2
        assert not any(map(alive, owner.pids))


def test_the_end_of_a_required_process_ends_the_others_with_exit_code_1():
    with Owner(process("polite"), process("crashing")) as owner:
        owner.read_until_ready(2)
        assert owner.finish(timeout=4) == 1
        assert not any(map(alive, owner.pids))
        own = [line for line in owner.lines if line.startswith("[owner]")]
        assert own == ["[owner] crashing ended with exit code 3; ending the others"]


def test_the_end_of_an_optional_process_ends_nothing():
    with Owner(process("polite"), process("crashing", required=False)) as owner:
        owner.read_until_ready(2)
        crashing = next(int(line.split()[-1]) for line in owner.lines if line.startswith("[crashing]"))
        assert wait_until_gone([crashing], timeout=5) == []
        time.sleep(0.3)
        assert owner.process.poll() is None
        owner.process.send_signal(signal.SIGINT)
        assert owner.finish(timeout=3) == 0


def test_a_process_killed_by_a_signal_is_told_in_words():
    with Owner(process("polite")) as owner:
        owner.read_until_ready(1)
        os.kill(owner.pids[0], signal.SIGSEGV)
        assert owner.finish(timeout=3) == 1
        assert "[owner] polite was ended by SIGSEGV; ending the others" in owner.lines


def test_what_a_process_left_behind_is_ended_too():
    with Owner(process("leaving")) as owner:
        owner.read_until_ready(2)
        assert owner.finish(timeout=4) == 0
        assert not any(map(alive, owner.pids))


def test_no_orphan_when_the_owner_is_killed():
    with Owner(process("polite"), process("leaving", required=False)) as owner:
        owner.read_until_ready(3)
        assert sum(map(alive, owner.pids)) >= 2
        owner.process.kill()
        assert wait_until_gone(owner.pids, timeout=4) == []


def test_a_stubborn_process_does_not_outlive_a_killed_owner():
    with Owner(process("stubborn")) as owner:
        owner.read_until_ready(1)
        owner.process.kill()
        assert wait_until_gone(owner.pids, timeout=8) == []


def test_nothing_is_left_when_one_of_them_cannot_start():
    output = io.StringIO()
    group = ProcessGroup([process("polite"), Process("none", ("/nonexistent",))], name="owner", output=output)
    with pytest.raises(FileNotFoundError):
        group.start()
    ready = [line for line in output.getvalue().splitlines() if "ready" in line]
    assert not any(alive(int(line.split()[-1])) for line in ready)
    group.stop()  # a second time does nothing


def test_lines_that_are_not_text_are_still_shown():
    code = "import sys; sys.stdout.buffer.write(b'good\\n\\xff bad\\n')"
    output = io.StringIO()
    with ProcessGroup(
        [Process("raw", (sys.executable, "-S", "-c", code))], name="owner", output=output
    ) as group:
        assert group.wait(timeout=5)
    assert output.getvalue().splitlines() == ["[raw] good", "[raw] � bad"]


def test_wait_gives_up_after_its_timeout():
    with ProcessGroup([process("polite")], name="owner", output=io.StringIO()) as group:
        assert not group.wait(timeout=0.2)
        assert group.ended is None
