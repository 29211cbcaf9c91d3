# SPDX-License-Identifier: Apache-2.0
"""A person calibrates an arm on a terminal: LeRobot's own calibrate(), and servos that are moved by hand."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest

from smolvla_mem_ros.cli.so100_calibrate import main
from smolvla_mem_ros.so100.arm import JOINTS, Calibration
from smolvla_mem_ros.so100.calibration_check import NOMINAL_SPAN, check_calibration
from smolvla_mem_ros.so100.driver import check_port

SHIPPED = Path(__file__).parents[2] / "config/calibration/so100_sim.json"
# The child calls nothing that other threads of this process could hold a lock of.
pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")

TIMEOUT = 60.0  # s
CTRL_C = "\x03"
MIDDLE = 1000  # the encoders' ticks where arm_in_hands.py starts
BODY = (1, 2, 3, 4)  # servos whose range is recorded, besides the gripper's
SPAN = {number: span * 4095 / 360 for number, span in enumerate(NOMINAL_SPAN["so100"], start=1)}


class Arm:
    """arm_in_hands.py as a process."""

    def __init__(self, port, *numbers):
        command = [sys.executable, str(Path(__file__).with_name("arm_in_hands.py")), str(port), *numbers]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def move(self, number, ticks):
        assert self.ask(f"move {number} {ticks}") == "there"

    def put(self, number, ticks):
        assert self.ask(f"put {number} {ticks}") == "there"

    def sweep(self, number, share=1.0):
        """From the middle to both ends of the joint and back."""
        for end in (-SPAN[number] / 2, SPAN[number] / 2, 0):
            self.move(number, MIDDLE + share * end)

    def sweep_all(self):
        for number in (*BODY, 6):
            self.sweep(number)

    def memory(self):
        return json.loads(self.ask("show"))

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


class Terminal:
    """so100_calibrate as a process on a pseudo-terminal of its own, with a keyboard and a screen.

    Forked: the program's imports take seconds, and are done here already.
    """

    def __init__(self, *arguments):
        self._pid, self._fd = os.forkpty()
        if self._pid == 0:
            run_as_a_process([str(argument) for argument in arguments])
        self._text, self._seen, self._code = "", 0, None
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        while True:
            try:
                data = os.read(self._fd, 4096)
            except OSError:  # the last one at the other end has gone
                return
            if not data:
                return
            self._text += data.decode(errors="replace").replace("\r", "")

    def see(self, text):
        """Waits until ``text`` comes up, after what was seen before. Returns what came until then."""
        deadline = time.monotonic() + TIMEOUT
        while (at := self._text.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"'{text}' is not in:\n{self._text[self._seen :][-3000:]}"
            assert self._reader.is_alive() or text in self._text[self._seen :], self._text[-3000:]
            time.sleep(0.01)
        before, self._seen = self._text[self._seen : at], at + len(text)
        return before

    def type(self, text="\n"):
        os.write(self._fd, text.encode())

    def end(self):
        """(exit code, what came up since the last ``see``)"""
        self._reader.join(TIMEOUT)
        assert not self._reader.is_alive(), self._text[-3000:]
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._code, self._text[self._seen :]

    def close(self):
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self.end()
        os.close(self._fd)


def run_as_a_process(arguments):
    """``main`` on the terminal at 0, 1 and 2, where pytest has put its own in Python's place."""
    code = 99
    with (
        open(0) as sys.stdin,
        open(1, "w", buffering=1) as sys.stdout,
        open(2, "w", buffering=1) as sys.stderr,
    ):
        try:
            code = main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)


@pytest.fixture
def port(tmp_path):
    return tmp_path / "ttySO100"


@pytest.fixture
def arm(port):
    arm = Arm(port)
    yield arm
    arm.close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "arms" / "left.json"


@pytest.fixture
def start(arm, port, file):
    """``start(options...)``: the program at its first question."""
    terminals = []

    def start(*options):
        terminals.append(Terminal("--port", port, "--calibration", file, *options))
        terminals[-1].see("press ENTER: torque goes off")
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def begin_recording(terminal):
    terminal.type()
    record_again(terminal)


def record_again(terminal):
    terminal.see("middle of its range of motion and press ENTER")
    terminal.type()
    terminal.see("NAME")


def record_and_close(terminal, arm):
    """Up to the joints that are moved one by one."""
    begin_recording(terminal)
    arm.sweep_all()
    terminal.type()
    terminal.see("Close the gripper wholly")
    arm.put(6, MIDDLE - SPAN[6] / 2)
    terminal.type()


def factory(memory):
    return all((s["offset"], s["min"], s["max"], s["torque"]) == (0, 0, 4095, 0) for s in memory.values())


def keep_old_file(file):
    file.parent.mkdir()
    file.write_text(SHIPPED.read_text())


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_calibration_from_the_first_step_to_the_file(start, arm, file):
    arm.ask("hold")
    terminal = start()
    record_and_close(terminal, arm)
    for number, joint in enumerate(JOINTS, start=1):
        terminal.see(f"({joint})")
        arm.put(number, MIDDLE + 300)
        terminal.see("seen")
    code, text = terminal.end()

    assert code == 0, text
    assert "looks good" in text and f"calibration:={file}" in text
    calibration = Calibration.load(file)
    assert check_calibration(calibration) == []
    assert set(calibration.offset) == {MIDDLE - 2047}
    for joint, row in json.loads(file.read_text()).items():
        held = arm.memory()[str(row["id"])]
        assert (row["homing_offset"], row["range_min"], row["range_max"]) == (
            held["offset"],
            held["min"],
            held["max"],
        ), joint
        assert held["torque"] == 0
    assert left_in(file.parent) == ["left.json"]


def test_a_file_that_is_replaced_is_kept_under_a_dated_name(start, arm, file):
    keep_old_file(file)
    terminal = start("--no-motion_check")
    begin_recording(terminal)
    arm.sweep_all()
    terminal.type()
    assert terminal.end()[0] == 0
    new, backup = left_in(file.parent)
    assert new == "left.json" and re.fullmatch(r"left\.json\.\d{4}-\d\d-\d\d_\d{6}\.bak", backup)
    assert (file.parent / backup).read_text() == SHIPPED.read_text() != file.read_text()


def test_ctrl_c_while_recording_leaves_file_and_servos_as_they_were_with_torque_off(start, arm, port, file):
    keep_old_file(file)
    arm.ask("hold")
    terminal = start()
    begin_recording(terminal)
    arm.sweep(1)
    terminal.type(CTRL_C)
    code, text = terminal.end()

    assert code == 130
    assert "Torque is off, the servos hold what they held before" in text and "Traceback" not in text
    assert factory(arm.memory())
    assert file.read_text() == SHIPPED.read_text() and left_in(file.parent) == ["left.json"]
    check_port(str(port))


def test_ctrl_c_at_the_first_question_does_not_drop_an_arm_that_is_held(start, arm, file):
    arm.ask("hold")
    terminal = start()
    terminal.type(CTRL_C)
    code, text = terminal.end()
    assert code == 130 and "Nothing was changed: torque is as it was, no file was written" in text
    assert {servo["torque"] for servo in arm.memory().values()} == {1}
    assert left_in(file.parent) == []


def test_after_a_mistake_it_starts_again_and_a_doubtful_result_is_kept_only_on_demand(start, arm, file):
    terminal = start("--no-motion_check")
    begin_recording(terminal)
    terminal.type()  # at once: nothing was moved
    terminal.see("problem: Some motors have the same min and max values")
    terminal.see("type keep")
    terminal.type()
    record_again(terminal)
    for number in (1, 2, 3, 6):
        arm.sweep(number)
    arm.sweep(4, share=0.5)
    terminal.type()
    terminal.see("problem: wrist_flex has a range of 106 degrees and should have about 212")
    terminal.see("type keep")
    assert not file.exists()
    terminal.type("keep\n")
    assert terminal.end()[0] == 0 and file.exists()


def test_swapped_servos_show_when_a_joint_is_moved_by_its_name(start, arm, file):
    terminal = start("--timeout", "2")
    record_and_close(terminal, arm)
    for number, joint in zip((1, 2, 4, 3, 5, 6), JOINTS, strict=True):
        terminal.see(f"({joint})")
        arm.put(number, MIDDLE + 500)
    terminal.see("problem: wrist_flex moved when elbow_flex was moved by hand: the ids of servos 4 and 3")
    terminal.see("type keep")
    terminal.type(CTRL_C)
    assert terminal.end()[0] == 130
    assert not file.exists() and factory(arm.memory())


def test_an_arm_that_goes_away_is_an_error_and_the_old_file_stays(start, arm, file):
    keep_old_file(file)
    terminal = start()
    begin_recording(terminal)
    arm.process.kill()
    code, text = terminal.end()
    assert code == 1 and "Traceback" not in text
    assert "servos could not be set back" in text and f"{file} is as it was" in text
    assert file.read_text() == SHIPPED.read_text() and left_in(file.parent) == ["left.json"]


def test_a_silent_servo_is_named_before_anything_is_asked(port, file):
    arm = Arm(port, *"12345")
    terminal = Terminal("--port", port, "--calibration", file)
    code, text = terminal.end()
    terminal.close()
    arm.close()
    assert code == 1 and "servo 6 (gripper)" in text and "Nothing was changed" in text


def test_a_file_is_written_into_the_servos_and_then_the_check_finds_them_equal(
    start, arm, port, file, capsys, restored_signals
):
    keep_old_file(file)
    assert main(["--check", "--port", str(port), "--calibration", str(file)]) == 1
    assert "problem: the servos hold another calibration" in capsys.readouterr().out
    arm.ask("hold")
    terminal = start("--write")
    terminal.type()
    assert terminal.end()[0] == 0
    assert main(["--check", "--port", str(port), "--calibration", str(file)]) == 0
    assert "hold this calibration" in capsys.readouterr().out
    assert {servo["torque"] for servo in arm.memory().values()} == {0}


@pytest.fixture
def restored_signals():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def test_without_the_port_the_file_alone_is_checked(capsys, tmp_path, restored_signals):
    assert main(["--check", "--port", str(tmp_path / "none"), "--calibration", str(SHIPPED)]) == 0
    out = capsys.readouterr().out
    assert "the servos were not looked at: there is no serial port" in out and "no problems found" in out
    broken = tmp_path / "broken.json"
    content = json.loads(SHIPPED.read_text())
    content["elbow_flex"] |= {"range_min": 2000, "range_max": 2100}
    broken.write_text(json.dumps(content))
    assert main(["--check", "--calibration", str(broken)]) == 1
    assert "elbow_flex has a range of 9 degrees" in capsys.readouterr().out


def test_it_asks_for_a_terminal_a_port_and_a_name_that_lerobot_finds(capsys, monkeypatch, restored_signals):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["--port", "/dev/null"]) == 1
    assert "at a terminal" in capsys.readouterr().err
    for arguments, text in (([], "--port is needed"), (["--check", "--calibration", "a"], ".json")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert text in capsys.readouterr().err
