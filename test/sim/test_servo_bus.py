# SPDX-License-Identifier: Apache-2.0
"""The emulated bus answers byte for byte as the STS3215 protocol says, whatever arrives."""

import pytest

from smolvla_mem_ros.sim import servo_bus
from smolvla_mem_ros.sim.servo_bus import REGISTERS, Servo, ServoBus, checksum, decode, encode, status


def packet(number, instruction, *parameters):
    body = bytes([number, len(parameters) + 2, instruction, *parameters])
    return b"\xff\xff" + body + bytes([checksum(body)])


@pytest.fixture
def bus():
    return ServoBus([Servo(i) for i in (1, 2, 3)])


def test_ping_is_answered_by_the_servo_addressed_and_by_all_to_a_broadcast(bus):
    assert bus.feed(bytes.fromhex("ffff0102 01fb")) == bytes.fromhex("ffff0102 00fc")
    assert bus.feed(packet(9, servo_bus.PING)) == b""
    assert bus.feed(packet(servo_bus.BROADCAST, servo_bus.PING)) == status(1) + status(2) + status(3)


def test_read_returns_little_endian_registers(bus):
    bus.servos[1].set_present(0x0ABC)
    assert bus.feed(packet(2, servo_bus.READ, 56, 2)) == status(2, b"\xbc\x0a")
    assert bus.feed(packet(2, servo_bus.READ, 3, 2)) == status(2, (777).to_bytes(2, "little"))


def test_sync_read_answers_in_the_order_asked_and_leaves_out_the_missing(bus):
    for servo, ticks in zip(bus.servos, (100, 200, 300), strict=True):
        servo.set_present(ticks)
    answer = bus.feed(packet(0xFE, servo_bus.SYNC_READ, 56, 2, 3, 7, 1))
    assert answer == status(3, (300).to_bytes(2, "little")) + status(1, (100).to_bytes(2, "little"))


def test_sync_write_sets_every_servo_without_an_answer(bus):
    assert bus.feed(packet(0xFE, servo_bus.SYNC_WRITE, 42, 2, 1, 0x10, 0x00, 3, 0x20, 0x01)) == b""
    assert [s["Goal_Position"] for s in bus.servos] == [0x10, 2048, 0x120]
    assert bus.counters.goal_writes == 1


def test_only_writes_that_touch_the_goal_count_as_goal_writes(bus):
    bus.feed(packet(1, servo_bus.WRITE, 40, 1))
    bus.feed(packet(1, servo_bus.WRITE, 44, 0, 0))
    assert bus.counters.goal_writes == 0
    bus.feed(packet(1, servo_bus.WRITE, 41, 254, 0, 8))
    assert bus.counters.goal_writes == 1


def test_registered_write_waits_for_action(bus):
    assert bus.feed(packet(1, servo_bus.REG_WRITE, 42, 0, 4)) == status(1)
    assert bus.servos[0]["Goal_Position"] == 2048
    assert bus.feed(packet(0xFE, servo_bus.ACTION)) == b""
    assert bus.servos[0]["Goal_Position"] == 1024
    bus.servos[0]["Goal_Position"] = 7
    bus.feed(packet(0xFE, servo_bus.ACTION))
    assert bus.servos[0]["Goal_Position"] == 7, "an action is carried out once"


def test_measured_values_cannot_be_written(bus):
    bus.servos[0].set_present(1000)
    bus.feed(packet(1, servo_bus.WRITE, 56, 0, 0))
    assert bus.servos[0]["Present_Position"] == 1000


def test_a_packet_may_come_in_pieces_and_behind_noise(bus):
    whole = b"\x00\xff\x13" + packet(1, servo_bus.PING) + packet(2, servo_bus.PING)
    answers = [bus.feed(whole[k : k + 1]) for k in range(len(whole))]
    assert b"".join(answers) == status(1) + status(2)
    assert answers[-1] == status(2)


def test_a_packet_with_a_wrong_checksum_is_ignored_and_the_next_one_found(bus):
    broken = packet(1, servo_bus.WRITE, 42, 0, 4)[:-1] + b"\x00"
    assert bus.feed(broken + packet(2, servo_bus.PING)) == status(2)
    assert bus.servos[0]["Goal_Position"] == 2048
    assert bus.counters.bad_checksums == 1


JUNK = [bytes(range(256)), b"\xff" * 50, packet(1, servo_bus.READ), packet(1, 0x77)]


@pytest.mark.parametrize("junk", JUNK)
def test_junk_does_not_stop_the_bus(bus, junk):
    bus.feed(junk)
    assert bus.feed(b"\x00" * 300 + packet(3, servo_bus.PING)).endswith(status(3))


def test_registers_are_refreshed_before_each_instruction():
    servo = Servo(1)
    bus = ServoBus([servo], refresh=lambda: servo.set_present(servo["Present_Position"] + 1))
    first, second = (bus.feed(packet(1, servo_bus.READ, 56, 2))[5] for _ in range(2))
    assert second == first + 1


def test_homing_offset_shifts_what_is_read_and_limits_bound_the_goal():
    servo = Servo(1)
    servo["Homing_Offset"] = -85
    servo.set_present(1000)
    assert servo["Present_Position"] == 1085
    servo["Min_Position_Limit"], servo["Max_Position_Limit"] = 800, 3000
    servo["Goal_Position"] = 100
    assert servo.goal == 800 - 85
    servo["Goal_Position"] = 2000
    assert servo.goal == 2000 - 85


SIGNED = [("Homing_Offset", -2047), ("Present_Velocity", -300), ("Present_Load", 512)]


@pytest.mark.parametrize("name, value", SIGNED)
def test_signed_registers_hold_sign_and_magnitude(name, value):
    servo = Servo(1)
    servo[name] = value
    assert servo[name] == value
    assert decode(name, encode(name, value)) == value
    assert encode("Homing_Offset", -1) == 0x801


def test_lost_answers_are_lost_with_the_given_probability():
    bus = ServoBus([Servo(1)], drop=0.25, seed=3)
    heard = sum(bool(bus.feed(packet(1, servo_bus.PING))) for _ in range(1000))
    assert 700 < heard < 800 and bus.counters.dropped == 1000 - heard


def test_addresses_agree_with_lerobots_own_table():
    from lerobot.motors.feetech.tables import MODEL_CONTROL_TABLE, MODEL_ENCODING_TABLE

    table = MODEL_CONTROL_TABLE["sts3215"]
    assert {name: table[name] for name in REGISTERS} == REGISTERS
    signs = MODEL_ENCODING_TABLE["sts3215"]
    assert signs.keys() >= servo_bus.SIGN_BIT.keys() - {"Present_Load"}
    assert {name: signs.get(name, bit) for name, bit in servo_bus.SIGN_BIT.items()} == servo_bus.SIGN_BIT
