# SPDX-License-Identifier: Apache-2.0
"""LeRobot's own motor bus, unmodified, finds in the emulator what it expects of a bus of real servos.

The expectations are those of LeRobot's tests of it (tests/motors/test_feetech.py), and what its scripts for
setting motors up and calibrating them do.
"""

import os
import sys
import threading

import pytest
import scservo_sdk as scs
from lerobot.motors import Motor, MotorCalibration, MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.motors.feetech.tables import STS_SMS_SERIES_CONTROL_TABLE as TABLE

from smolvla_mem_ros.sim.emulator_process import EmulatorProcess
from smolvla_mem_ros.sim.servo import EPROM, READ_ONLY
from smolvla_mem_ros.so100.arm import JOINTS

IDS = {joint: number for number, joint in enumerate(JOINTS, start=1)}
MODEL = 777  # STS3215


def motors(ids=IDS):
    return {joint: Motor(number, "sts3215", MotorNormMode.DEGREES) for joint, number in ids.items()}


@pytest.fixture
def port(tmp_path):
    return str(tmp_path / "ttySO100")


@pytest.fixture
def emulator(port):
    with EmulatorProcess(port, None, "--plant=first_order") as emulator:
        emulator.wait_ready()
        yield emulator


@pytest.fixture
def connect(emulator, port):
    """Makes a bus that is closed at the end."""
    buses = []

    def connect(handshake=False, ids=IDS, **arguments):
        buses.append(FeetechMotorsBus(port, motors(ids), **arguments))
        buses[-1].connect(handshake)
        return buses[-1]

    yield connect
    for bus in buses:
        if bus.is_connected:
            bus.disconnect(disable_torque=False)


@pytest.fixture
def bus(connect):
    return connect()


@pytest.fixture
def calibration():
    rows = [(-709, 43, 1335), (-2006, 27, 3608), (1624, 145, 3999), (0, 0, 4095), (2047, 1, 2), (-1, 5, 6)]
    return {joint: MotorCalibration(i, 0, *row) for (joint, i), row in zip(IDS.items(), rows, strict=True)}


def test_the_handshake_finds_every_motor(connect):
    assert connect(handshake=True).is_connected


def test_the_handshake_names_a_motor_that_is_missing(connect, emulator):
    emulator.tell("mute wrist_flex")
    with pytest.raises(RuntimeError, match=r"Missing motor IDs:\s+- 4 \(expected model: 777\)"):
        connect(handshake=True)


def test_ping_returns_the_model_by_name_and_by_id(bus):
    assert [bus.ping(joint) for joint in JOINTS] == [MODEL] * 6
    assert bus.ping(6) == MODEL and bus.ping(7) is None


def test_broadcast_ping_returns_every_motor(bus):
    assert bus.broadcast_ping() == dict.fromkeys(IDS.values(), MODEL)


def test_a_scan_finds_the_motors_at_their_speed_only(emulator, port, monkeypatch):
    monkeypatch.setattr(FeetechMotorsBus, "available_baudrates", [250_000, 1_000_000])
    assert FeetechMotorsBus.scan_port(port) == {1_000_000: list(IDS.values())}


def test_each_register_reads_back_what_was_written_unless_it_is_read_only(bus):
    # Without those that make the servo deaf, or move.
    names = [name for name in TABLE if name not in ("ID", "Baud_Rate", "Torque_Enable")]
    wanted, got = {}, {}
    for name in names:
        before = bus.read(name, "gripper", normalize=False)
        bus.write(name, "gripper", before + 1, normalize=False)
        wanted[name] = before + (TABLE[name][0] not in READ_ONLY)
        got[name] = bus.read(name, "gripper", normalize=False)
    assert got == wanted


def test_signed_registers_keep_their_sign(bus):
    for name in ("Homing_Offset", "Goal_Position", "Goal_Velocity"):
        bus.write(name, "elbow_flex", -1234, normalize=False)
        assert bus.read(name, "elbow_flex", normalize=False) == -1234


def test_registers_are_read_alone_and_together_whatever_their_size(bus):
    for address, size in [(0, 1), (10, 2), (42, 4)]:
        alone = {number: bus._read(address, size, number)[0] for number in (1, 2, 3)}
        assert bus._sync_read(address, size, [1, 2, 3]) == (alone, scs.COMM_SUCCESS)


def test_sync_write_reaches_each_motor_and_sync_read_sees_it(bus):
    goals = {joint: 1500 + 100 * number for joint, number in IDS.items()}
    bus.sync_write("Goal_Position", goals, normalize=False)
    assert bus.sync_read("Goal_Position", normalize=False) == goals


def test_a_registered_write_waits_for_the_action(bus):
    handler, port = bus.packet_handler, bus.port_handler
    address, _ = TABLE["Goal_Position"]
    for number in (1, 2):
        assert handler.regWriteTxRx(port, number, address, 2, [0, 4]) == (scs.COMM_SUCCESS, 0)
    assert bus.read("Goal_Position", "shoulder_pan", normalize=False) == 2048
    assert handler.action(port, scs.BROADCAST_ID) == scs.COMM_SUCCESS
    assert bus.read("Goal_Position", "shoulder_lift", normalize=False) == 1024


def test_an_error_of_the_servo_is_raised_in_words(bus, emulator):
    emulator.tell("sag 3")
    with pytest.raises(RuntimeError, match="Input voltage error"):
        bus.read("Torque_Enable", "gripper")
    with pytest.raises(RuntimeError, match="Input voltage error"):
        bus.write("Torque_Enable", "gripper", 0)
    emulator.tell("sag 7.4")
    emulator.tell("overheat gripper 90")
    with pytest.raises(RuntimeError, match="Overheat error"):
        bus.read("Torque_Enable", "gripper")
    assert bus.sync_read("Present_Temperature")["gripper"] == 90


def test_a_lost_answer_is_a_connection_error_and_a_broken_one_too(bus, emulator):
    emulator.tell("drop 1")
    with pytest.raises(ConnectionError, match="There is no status packet"):
        bus.read("Torque_Enable", "gripper")
    emulator.tell("drop 0")
    emulator.tell("corrupt 1")
    with pytest.raises(ConnectionError, match="Incorrect status packet"):
        bus.read("Torque_Enable", "gripper")


def test_retries_get_over_answers_that_are_lost_or_broken(bus, emulator):
    emulator.tell("drop 0.1")
    emulator.tell("corrupt 0.1")
    assert [bus.read("ID", "elbow_flex", num_retry=10) for _ in range(20)] == [3] * 20


def test_configuring_sets_what_lerobot_wants_and_clears_the_multi_turn_bit(bus):
    for joint in JOINTS:
        bus.write("Phase", joint, 0x1C)
    bus.configure_motors()
    wanted = {"Return_Delay_Time": 0, "Maximum_Acceleration": 254, "Acceleration": 254, "Phase": 0x0C}
    for name, value in wanted.items():
        assert bus.sync_read(name) == dict.fromkeys(JOINTS, value)


def test_a_calibration_is_written_and_recognised(bus, calibration):
    assert not bus.is_calibrated
    bus.write_calibration(calibration)
    assert bus.is_calibrated and bus.read_calibration() == calibration


@pytest.mark.parametrize("unlocked", [True, False])
def test_a_calibration_outlives_the_power_only_if_the_lock_was_open(bus, emulator, calibration, unlocked):
    if unlocked:
        bus.disable_torque()
    bus.write_calibration(calibration)
    emulator.tell("power_cycle")
    assert bus.is_calibrated is unlocked


def test_resetting_the_calibration_leaves_the_whole_turn(bus):
    bus.reset_calibration()
    assert bus.calibration == {}
    whole = {joint: MotorCalibration(number, 0, 0, 0, 4095) for joint, number in IDS.items()}
    assert bus.read_calibration() == whole


def test_half_turn_homings_put_every_motor_to_2047(connect, port, emulator):
    emulator.close()
    with EmulatorProcess(port, None, "--plant=first_order", "--model=so101") as other:
        other.wait_ready()
        bus = connect()
        bus.disable_torque()
        offsets = bus.set_half_turn_homings()
        assert bus.sync_read("Homing_Offset") == offsets
        assert bus.sync_read("Present_Position", normalize=False) == dict.fromkeys(JOINTS, 2047)


def test_torque_128_calibrates_the_middle(bus):
    bus.reset_calibration()
    bus.write("Torque_Enable", "gripper", 128)
    assert bus.read("Present_Position", "gripper", normalize=False) == 2048
    assert bus.read("Homing_Offset", "gripper") == pytest.approx((1934 + 3185) / 2 - 2048, abs=1)


def test_ranges_of_motion_are_recorded_until_enter(bus, emulator, monkeypatch):
    # Servos that are let go only now are the hand that moves the arm while LeRobot watches.
    emulator.tell("stuck all")
    start = bus.sync_read("Present_Position", normalize=False)
    bus.sync_write("Goal_Position", {joint: start[joint] + 300 for joint in JOINTS}, normalize=False)
    bus.enable_torque()
    reads, writes = os.pipe()
    with os.fdopen(reads) as keyboard, os.fdopen(writes, "w") as enter:
        monkeypatch.setattr(sys, "stdin", keyboard)
        hand = threading.Timer(0.3, lambda: emulator.command("free all"))
        finger = threading.Timer(2.0, lambda: print(file=enter, flush=True))
        hand.start()
        finger.start()
        low, high = bus.record_ranges_of_motion(display_values=False)
        hand.join()
        finger.join()
    assert low == start
    assert high == pytest.approx({joint: start[joint] + 300 for joint in JOINTS}, abs=2)


def test_torque_and_lock_go_together(bus):
    bus.enable_torque()
    assert bus.sync_read("Torque_Enable") == bus.sync_read("Lock") == dict.fromkeys(JOINTS, 1)
    with bus.torque_disabled():
        assert bus.sync_read("Torque_Enable") == bus.sync_read("Lock") == dict.fromkeys(JOINTS, 0)
    assert bus.sync_read("Torque_Enable") == bus.sync_read("Lock") == dict.fromkeys(JOINTS, 1)
    bus.disable_torque("gripper")
    assert bus.sync_read("Torque_Enable") == {**dict.fromkeys(JOINTS, 1), "gripper": 0}


def test_disconnecting_switches_torque_off(connect):
    bus = connect()
    bus.enable_torque()
    bus.disconnect()
    assert connect().sync_read("Torque_Enable") == dict.fromkeys(JOINTS, 0)


def test_setting_a_motor_up_finds_it_and_gives_it_its_id_and_speed_for_good(connect, emulator):
    factory_fresh = connect(ids={"shoulder_pan": 1})
    factory_fresh.disable_torque()
    factory_fresh.write("Baud_Rate", "shoulder_pan", 1)
    factory_fresh.disconnect(disable_torque=False)
    emulator.tell("mute all")
    emulator.tell("unmute 1")  # one motor at a time is on the wire
    bus = connect(ids={"gripper": 9})
    assert bus._find_single_motor("gripper") == (500_000, 1)
    bus.setup_motor("gripper")
    emulator.tell("power_cycle")
    assert bus.broadcast_ping() == {9: MODEL} and bus.get_baudrate() == 1_000_000


def test_the_permanent_memory_ends_where_lerobots_table_says():
    names = list(TABLE)
    assert TABLE[names[names.index("Torque_Enable")]][0] == EPROM
