# SPDX-License-Identifier: Apache-2.0
"""The emulator's process: its link comes and goes, foreign files stay, and it never outlives its owner."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import serial
from waiting import alive, wait_until

from smolvla_mem_ros.sim.emulator import main
from smolvla_mem_ros.sim.emulator_process import EmulatorDied, EmulatorProcess
from smolvla_mem_ros.sim.scene import HOME, Scene
from smolvla_mem_ros.sim.servo_bus import PING, checksum, status
from smolvla_mem_ros.sim.world import MEMORY_SCENE
from smolvla_mem_ros.so100.arm import Calibration
from smolvla_mem_ros.so100.driver import So100Driver

CALIBRATION = Path(__file__).parents[2] / "config/calibration/so100_sim.json"
COMMAND = [sys.executable, "-m", "smolvla_mem_ros.sim.emulator", "--calibration", str(CALIBRATION)]


def ping(port, timeout=1.0):
    """What servo 1 answers, and after how long (s)."""
    body = bytes([1, 2, PING])
    with serial.Serial(str(port), 1_000_000, timeout=timeout) as line:
        start = time.monotonic()
        line.write(b"\xff\xff" + body + bytes([checksum(body)]))
        return line.read(6), time.monotonic() - start


@pytest.fixture
def port(tmp_path):
    return tmp_path / "ttySO100"


@pytest.fixture
def emulator(port):
    with EmulatorProcess(port, CALIBRATION) as emulator:
        emulator.wait_ready()
        yield emulator


def test_it_answers_on_its_link_and_shares_its_state(emulator, port):
    assert ping(port)[0] == status(1)
    snapshot = emulator.snapshot()
    assert snapshot.qpos[:6] == pytest.approx(HOME, abs=0.03)
    wait_until(lambda: emulator.snapshot().packets == 1)
    wait_until(lambda: emulator.snapshot().sequence > snapshot.sequence + 3)
    assert time.monotonic() - emulator.snapshot().time < 0.5


def test_it_simulates_the_scene_it_is_told_to(emulator, tmp_path):
    with EmulatorProcess(tmp_path / "other", CALIBRATION, f"--scene={MEMORY_SCENE}") as other:
        positions = len(other.wait_ready().qpos)
    assert positions == Scene(MEMORY_SCENE).model.nq != len(emulator.snapshot().qpos)


def test_closing_ends_it_and_removes_its_link(emulator, port):
    emulator.close()
    assert not alive(emulator.pid) and not os.path.lexists(port)
    emulator.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_started_by_hand_it_ends_cleanly_on_a_signal(port, number):
    command = [*COMMAND, "--port", port]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    try:
        assert str(port) in process.stdout.readline()
        assert ping(port)[0] == status(1)
        process.send_signal(number)
        assert process.wait(2) == 0
        assert not os.path.lexists(port)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_it_dies_with_an_owner_that_is_killed_and_leaves_nothing(port, tmp_path):
    owner = (
        "import sys, time; from smolvla_mem_ros.sim.emulator_process import EmulatorProcess\n"
        f"e = EmulatorProcess({str(port)!r}, {str(CALIBRATION)!r})\n"
        "e.wait_ready(); print(e.pid, flush=True)\n"
        "time.sleep(60)"
    )
    before = set(os.listdir("/dev/shm"))
    process = subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: not alive(pid), timeout=3)
    assert not os.path.lexists(port)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "so100" in name]


def test_a_link_left_by_a_crash_is_replaced(port):
    first = EmulatorProcess(port, CALIBRATION)
    first.wait_ready()
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: first.exit_code is not None)
    assert os.path.islink(port)
    with EmulatorProcess(port, CALIBRATION) as second:
        second.wait_ready()
        assert ping(port)[0] == status(1)
    first.close()


def test_its_death_is_reported_to_whoever_asks(emulator):
    os.kill(emulator.pid, signal.SIGKILL)
    wait_until(lambda: emulator.exit_code is not None)
    with pytest.raises(EmulatorDied, match="-9"):
        emulator.snapshot()


def test_a_file_at_the_ports_path_is_refused_and_kept(port, capfd):
    port.write_text("precious")
    assert main(["--port", str(port), "--calibration", str(CALIBRATION)]) == 2
    assert port.read_text() == "precious"
    assert "is not a link" in capfd.readouterr().err


def test_a_second_emulator_on_the_same_port_is_refused(emulator, port, capfd):
    assert main(["--port", str(port), "--calibration", str(CALIBRATION)]) == 2
    assert "another emulator" in capfd.readouterr().err
    assert ping(port)[0] == status(1)


@pytest.mark.parametrize(
    "port, calibration, says",
    [
        ("ttyX", "missing.json", "cannot read the calibration file"),
        ("no/such/folder/tty", CALIBRATION, "No such file"),
    ],
)
def test_what_it_cannot_start_with_is_named(tmp_path, capfd, port, calibration, says):
    assert main(["--port", str(tmp_path / port), "--calibration", str(tmp_path / calibration)]) == 2
    assert says in capfd.readouterr().err


@pytest.mark.parametrize(
    "content, says", [(None, "opening file"), ("<mujoco/>", "moves nothing, not shoulder_pan")]
)
def test_a_scene_that_is_missing_or_has_no_such_arm_is_refused(port, tmp_path, capfd, content, says):
    scene = tmp_path / "scene.xml"
    if content:
        scene.write_text(content)
    assert main(["--port", str(port), "--calibration", str(CALIBRATION), "--scene", str(scene)]) == 2
    assert says in capfd.readouterr().err and not os.path.lexists(port)


def test_unplugging_hangs_up_on_the_driver_and_plugging_brings_the_port_back(emulator, port):
    with serial.Serial(str(port), 1_000_000, timeout=0.5) as line:
        emulator.command("unplug")
        wait_until(lambda: not os.path.lexists(port))
        with pytest.raises(serial.SerialException):
            line.read(1)
    emulator.command("plug")
    wait_until(lambda: os.path.lexists(port))
    assert ping(port)[0] == status(1)


def test_a_stall_delays_one_answer(emulator, port):
    emulator.command("stall 0.2")
    time.sleep(0.05)
    assert 0.2 <= ping(port)[1] < 0.4
    assert ping(port)[1] < 0.1


def test_dropped_answers_never_arrive(emulator, port):
    emulator.command("drop 1")
    time.sleep(0.05)
    assert ping(port, timeout=0.2)[0] == b""


def test_latency_and_baud_slow_each_answer_down(port):
    with EmulatorProcess(port, CALIBRATION, "--latency-us", "20000", "--baud", "1200") as emulator:
        emulator.wait_ready()
        assert 0.12 <= ping(port)[1] < 0.3  # 12 bytes at 1200 baud are 100 ms


def test_reset_returns_when_the_arm_is_home(emulator):
    emulator.reset()
    assert emulator.snapshot().resets == 1
    assert emulator.snapshot().qpos[:6] == pytest.approx(HOME, abs=0.03)


def test_a_wrong_command_is_reported_and_changes_nothing(emulator, port):
    emulator.command("jump 3")
    emulator.command("plug")
    emulator.command("stall soon")
    assert ping(port)[0] == status(1)


def test_the_calibration_that_is_shipped_is_one_lerobot_reads():
    content = json.loads(CALIBRATION.read_text())
    from lerobot.motors import MotorCalibration

    assert [MotorCalibration(**entry).id for entry in content.values()] == [1, 2, 3, 4, 5, 6]


def test_goals_are_written_down_with_their_time(port, tmp_path):
    file = tmp_path / "goals.txt"
    with EmulatorProcess(port, CALIBRATION, f"--goals={file}") as emulator:
        emulator.wait_ready()
        driver = So100Driver(str(port), CALIBRATION)
        driver.connect()
        held = driver.engage()
        driver.write(held + 0.1)
        wait_until(lambda: emulator.snapshot().goal_writes == 2)
        driver.close(False)
    (_, *at_first), (when, *then) = (list(map(float, line.split())) for line in file.read_text().splitlines())
    assert time.monotonic() - 60 < when < time.monotonic()
    ticks = Calibration.load(CALIBRATION).ticks
    np.testing.assert_allclose(then, np.round(ticks.from_radians(held + 0.1)))
    assert at_first != then
