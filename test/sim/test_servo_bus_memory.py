# SPDX-License-Identifier: Apache-2.0
"""A servo keeps what was written with the lock open, and protects itself by its own registers."""

import pytest

from smolvla_mem_ros.sim.servo import (
    CALIBRATE,
    HOT,
    OVERLOAD,
    REGISTERS,
    SIGN_BIT,
    VOLTAGE,
    Measurement,
    Servo,
    decode,
    encode,
)


def write(servo, name, value):
    """As the bus does."""
    address, size = REGISTERS[name]
    servo.write(address, encode(name, value).to_bytes(size, "little"))


@pytest.fixture
def servo():
    return Servo(1)


def test_registers_and_their_signs_are_those_of_lerobots_own_table():
    from lerobot.motors.feetech.tables import MODEL_CONTROL_TABLE, MODEL_ENCODING_TABLE

    assert {name.strip(): at for name, at in MODEL_CONTROL_TABLE["sts3215"].items()} == REGISTERS
    signs = {n: bit for n, bit in MODEL_ENCODING_TABLE["sts3215"].items() if n in REGISTERS}
    assert signs == SIGN_BIT


@pytest.mark.parametrize(
    "name, value", [("Homing_Offset", -2047), ("Present_Velocity", -300), ("Present_Load", 512)]
)
def test_signed_registers_hold_sign_and_magnitude(servo, name, value):
    servo[name] = value
    assert servo[name] == value
    assert decode(name, encode(name, value)) == value
    assert encode("Homing_Offset", -1) == 0x801


def test_a_homing_offset_beyond_its_range_saturates(servo):
    servo["Homing_Offset"] = -3000
    assert servo["Homing_Offset"] == -2047


@pytest.mark.parametrize("lock, kept", [(1, 0), (0, -85)])
def test_without_power_only_what_was_written_with_the_lock_open_is_kept(servo, lock, kept):
    write(servo, "Lock", lock)
    write(servo, "Homing_Offset", -85)
    assert servo["Homing_Offset"] == -85
    servo.power_cycle()
    assert servo["Homing_Offset"] == kept


def test_power_comes_back_with_torque_off_the_lock_closed_and_the_torque_limit_that_was_saved(servo):
    for name, value in [("Lock", 0), ("Max_Torque_Limit", 500), ("Torque_Enable", 1), ("Acceleration", 254)]:
        write(servo, name, value)
    assert servo["Torque_Limit"] == 1000
    servo.power_cycle()
    assert (servo["Torque_Enable"], servo["Lock"], servo["Acceleration"]) == (0, 1, 0)
    assert servo["Torque_Limit"] == 500 and servo.torque == 0


@pytest.mark.parametrize("name", ["Model_Number", "Firmware_Major_Version", "Status", "Present_Current"])
def test_what_is_measured_or_built_in_cannot_be_written(servo, name):
    before = servo[name]
    write(servo, name, before + 1)
    assert servo[name] == before


@pytest.mark.parametrize("encoder, offset", [(1000, -1048), (4000, 1952), (4200, -1944), (-100, 1948)])
def test_torque_128_makes_the_present_position_the_middle_for_good(servo, encoder, offset):
    servo.measure(Measurement(encoder))
    write(servo, "Torque_Enable", CALIBRATE)
    assert (servo["Present_Position"], servo["Homing_Offset"]) == (2048, offset)
    assert servo["Torque_Enable"] == 0
    servo.power_cycle()
    assert servo["Present_Position"] == 2048


def test_homing_offset_shifts_what_is_read_and_limits_bound_the_goal(servo):
    servo["Homing_Offset"] = -85
    servo.measure(Measurement(1000))
    assert servo["Present_Position"] == 1085
    servo["Min_Position_Limit"], servo["Max_Position_Limit"] = 800, 3000
    servo["Goal_Position"] = 100
    assert servo.goal == 800 - 85
    servo["Goal_Position"] = 2000
    assert servo.goal == 2000 - 85


def test_positions_stay_within_a_turn_unless_the_phase_says_otherwise(servo):
    servo.measure(Measurement(4100))
    assert servo["Present_Position"] == 4
    servo["Goal_Position"] = 10
    assert servo.goal == 4106
    servo["Phase"] |= 0x10
    servo.measure(Measurement(4100))
    assert servo["Present_Position"] == 4100


@pytest.mark.parametrize(
    "feels, unloads_on, bit",
    [
        ({"celsius": 71}, HOT, HOT),
        ({"volts": 3.9}, VOLTAGE, VOLTAGE),
        ({"volts": 8.1}, VOLTAGE, VOLTAGE),
    ],
)
def test_heat_and_voltage_trip_the_status_and_let_go_if_the_servo_is_told_to(servo, feels, unloads_on, bit):
    write(servo, "Torque_Enable", 1)
    write(servo, "Unloading_Condition", 0)
    servo.measure(Measurement(2048, **feels))
    assert servo["Status"] == bit and servo.torque == 1
    write(servo, "Unloading_Condition", unloads_on)
    assert servo.torque == 0
    servo.measure(Measurement(2048))
    assert servo["Status"] == 0 and servo.torque == 1


def test_too_much_load_for_too_long_weakens_the_servo_until_torque_is_switched_off(servo):
    write(servo, "Torque_Enable", 1)
    for _ in range(19):
        servo.measure(Measurement(2048, load=-0.9), seconds=0.1)
    assert servo["Status"] == 0
    servo.measure(Measurement(2048, load=-0.9), seconds=0.2)
    servo.measure(Measurement(2048), seconds=0.1)
    assert servo["Status"] == OVERLOAD and servo.torque == 0.2
    write(servo, "Torque_Enable", 0)
    write(servo, "Torque_Enable", 1)
    assert servo["Status"] == 0 and servo.torque == 1
