# SPDX-License-Identifier: Apache-2.0
"""Faults come by command line and by command, for the servos that were named; nonsense is one clear line."""

import os
import re

import pytest
import serial

from smolvla_mem_ros.sim.commands import COMMANDS, Command
from smolvla_mem_ros.sim.emulator import main
from smolvla_mem_ros.sim.emulator_process import EmulatorProcess
from smolvla_mem_ros.sim.servo import HOT, REGISTERS, VOLTAGE
from smolvla_mem_ros.sim.servo_bus import HEADER, PING, READ, WRITE, checksum, status


class Wire:
    """A program at the other end of the bus that only knows bytes."""

    def __init__(self, port):
        self._line = serial.Serial(str(port), 1_000_000, timeout=0.5)

    def exchange(self, number, instruction, *parameters, size=6):
        self._line.reset_input_buffer()
        body = bytes([number, len(parameters) + 2, instruction, *parameters])
        self._line.write(HEADER + body + bytes([checksum(body)]))
        return self._line.read(size)

    def read(self, number, name):
        address, size = REGISTERS[name]
        return int.from_bytes(self.exchange(number, READ, address, size, size=6 + size)[5:-1], "little")

    def write(self, number, name, value):
        address, size = REGISTERS[name]
        return self.exchange(number, WRITE, address, *value.to_bytes(size, "little"))

    def close(self):
        self._line.close()


@pytest.fixture
def port(tmp_path):
    return tmp_path / "ttySO100"


@pytest.fixture
def start(port):
    """Starts an emulator with options, and gives it and a wire to it."""
    opened = []

    def start(*options):
        opened.append(EmulatorProcess(port, None, "--plant=first_order", *options))
        opened[0].wait_ready()
        if os.path.lexists(port):
            opened.insert(0, Wire(port))
        return opened[-1], opened[0]

    yield start
    for thing in opened:
        thing.close()


@pytest.fixture(params=["at the start", "while it runs"])
def with_fault(request, start):
    """Brings a fault about in both ways."""

    def with_fault(line):
        name, *words = line.split()
        if request.param == "at the start":
            return start(f"--{name}", *words)
        emulator, wire = start()
        emulator.tell(line)
        return emulator, wire

    return with_fault


def test_lost_answers(with_fault):
    _, wire = with_fault("drop 1")
    assert wire.exchange(1, PING) == b""


def test_broken_answers(with_fault):
    _, wire = with_fault("corrupt 1")
    right = status(1)
    assert wire.exchange(1, PING) == right[:-1] + bytes([right[-1] ^ 0xFF])


def test_a_mute_servo_and_its_return(with_fault):
    emulator, wire = with_fault("mute shoulder_lift")
    assert (wire.exchange(1, PING), wire.exchange(2, PING)) == (status(1), b"")
    emulator.tell("unmute 2")
    assert wire.exchange(2, PING) == status(2)


def test_a_stuck_servo_and_its_return(with_fault):
    emulator, wire = with_fault("stuck 3")
    for number in (3, 4):
        wire.write(number, "Goal_Position", 2300)
        wire.write(number, "Torque_Enable", 1)
    emulator.tell("drop 0")  # time passes
    arrived = [wire.read(4, "Present_Position") for _ in range(300)]
    assert arrived[-1] > 2100 and abs(wire.read(3, "Present_Position") - 2048) < 2
    emulator.tell("free elbow_flex")
    moved = [wire.read(3, "Present_Position") for _ in range(300)]
    assert moved[-1] > 2100


def test_an_overheated_servo_and_its_return(with_fault):
    emulator, wire = with_fault("overheat 5 85")
    assert wire.read(5, "Present_Temperature") == 85
    assert (wire.exchange(5, PING), wire.exchange(4, PING)) == (status(5, error=HOT), status(4))
    emulator.tell("cool all")
    assert wire.exchange(5, PING) == status(5)


def test_a_low_supply(with_fault):
    _, wire = with_fault("sag 3.5")
    assert [wire.read(number, "Present_Voltage") for number in (1, 6)] == [35, 35]
    assert wire.exchange(1, PING) == status(1, error=VOLTAGE)


def test_a_port_that_is_unplugged_from_the_start_can_be_plugged_in(start, port):
    emulator, _ = start("--unplug")
    assert not os.path.lexists(port)
    emulator.tell("plug")
    wire = Wire(port)
    assert wire.exchange(1, PING) == status(1)
    wire.close()


def test_power_lost_for_a_moment(start):
    emulator, wire = start()
    wire.write(2, "Torque_Enable", 1)
    wire.write(2, "P_Coefficient", 16)
    wire.write(3, "Lock", 0)
    wire.write(3, "P_Coefficient", 16)
    emulator.tell("power_cycle")
    assert wire.read(2, "Torque_Enable") == 0
    assert (wire.read(2, "P_Coefficient"), wire.read(3, "P_Coefficient")) == (32, 16)


def test_servos_hear_nothing_at_another_speed(start, port):
    _, wire = start()
    wire._line.baudrate = 500_000
    assert wire.exchange(1, PING) == b""
    wire._line.baudrate = 1_000_000
    assert wire.exchange(1, PING) == status(1)


def test_each_model_has_its_own_calibration(start):
    _, wire = start("--model=so101")
    assert wire.read(2, "Homing_Offset") == 1013


@pytest.mark.parametrize("word, servos", [("3", (2,)), ("elbow_flex", (2,)), ("all", tuple(range(6)))])
def test_a_servo_is_named_by_id_or_joint_or_all(word, servos):
    assert Command.parse(["overheat", word, "80"]) == Command("overheat", servos, 80.0)


@pytest.mark.parametrize(
    "line, says",
    [
        ("", "there is no command ''"),
        ("jump 3", "there is no command 'jump', only reset, unplug"),
        ("drop", "drop takes P, not ''"),
        ("plug in", "plug takes nothing, not 'in'"),
        ("drop 1.5", "drop needs a probability from 0 to 1, not '1.5'"),
        ("sag nan", "sag needs volts from 0 to 25, not 'nan'"),
        ("stall soon", "stall needs seconds from 0 to 60, not 'soon'"),
        ("stuck 7", "there is no servo '7'; SERVO is an id (1-6)"),
    ],
)
def test_a_command_that_makes_no_sense_is_explained(line, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Command.parse(line.split())


@pytest.mark.parametrize(
    "options, says",
    [
        (["--drop", "2"], "a probability"),
        (["--overheat", "3", "hot"], "degrees Celsius"),
        (["--overheat", "3"], "expected 2 arguments"),
        (["--mute", "wrist"], "there is no servo 'wrist'"),
        (["--model", "so99"], "so99"),
        (["--plant", "first_order", "--scene", "x.xml"], "--scene needs --plant mujoco"),
        (["--latency-us", "-1"], "from 0"),
        (["--calibration", "missing.json"], "cannot read the calibration file"),
    ],
)
def test_a_wrong_option_is_one_line(port, capfd, options, says):
    try:
        code = main(["--port", str(port), *options])
    except SystemExit as end:
        code = end.code
    message = capfd.readouterr().err
    assert code == 2 and says in message and message.count("\n") == 1
    assert not os.path.lexists(port)


def test_help_tells_every_command(capfd):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capfd.readouterr().out
    for name, (words, meaning) in COMMANDS.items():
        assert re.search(rf"^  {f'{name} {words}'.strip()} +{re.escape(meaning)}$", text, re.MULTILINE)
