# SPDX-License-Identifier: Apache-2.0
"""The emulated bus answers byte for byte as the STS3215 protocol says, whatever arrives."""

import pytest

from smolvla_mem_ros.sim import servo_bus
from smolvla_mem_ros.sim.servo import HOT, Measurement, Servo
from smolvla_mem_ros.sim.servo_bus import ServoBus, checksum, status


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
    bus.servos[1].measure(Measurement(0x0ABC))
    assert bus.feed(packet(2, servo_bus.READ, 56, 2)) == status(2, b"\xbc\x0a")
    assert bus.feed(packet(2, servo_bus.READ, 3, 2)) == status(2, (777).to_bytes(2, "little"))


def test_sync_read_answers_in_the_order_asked_and_leaves_out_the_missing(bus):
    for servo, ticks in zip(bus.servos, (100, 200, 300), strict=True):
        servo.measure(Measurement(ticks))
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
    bus.servos[0].measure(Measurement(1000))
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
    bus = ServoBus([servo], refresh=lambda: servo.measure(Measurement(servo["Present_Position"] + 1)))
    first, second = (bus.feed(packet(1, servo_bus.READ, 56, 2))[5] for _ in range(2))
    assert second == first + 1


def test_lost_answers_are_lost_with_the_given_probability():
    bus = ServoBus([Servo(1)], drop=0.25, seed=3)
    heard = sum(bool(bus.feed(packet(1, servo_bus.PING))) for _ in range(1000))
    assert 700 < heard < 800 and bus.counters.dropped == 1000 - heard


def test_broken_answers_have_a_wrong_checksum_with_the_given_probability():
    bus = ServoBus([Servo(1)], corrupt=0.25, seed=3)
    answers = [bus.feed(packet(1, servo_bus.PING)) for _ in range(1000)]
    right = answers.count(status(1))
    assert 700 < right < 800 and bus.counters.corrupted == 1000 - right
    assert all(answer[:-1] == status(1)[:-1] for answer in answers)


def test_a_mute_servo_obeys_without_an_answer(bus):
    bus.servos[0].mute = True
    assert bus.feed(packet(1, servo_bus.WRITE, 42, 0, 4)) == b""
    assert bus.servos[0]["Goal_Position"] == 1024
    assert bus.feed(packet(servo_bus.BROADCAST, servo_bus.PING)) == status(2) + status(3)


def test_answers_carry_the_servos_status(bus):
    bus.servos[1].measure(Measurement(2048, celsius=90))
    assert bus.feed(packet(2, servo_bus.PING)) == status(2, error=HOT)
    assert bus.feed(packet(2, servo_bus.READ, 65, 1)) == status(2, bytes([HOT]), HOT)
    assert bus.feed(packet(2, servo_bus.WRITE, 41, 0)) == status(2, error=HOT)
    assert bus.feed(packet(1, servo_bus.PING)) == status(1)


def test_a_servo_told_to_answer_less_answers_only_ping_and_read(bus):
    bus.feed(packet(1, servo_bus.WRITE, 8, 0))
    assert bus.feed(packet(1, servo_bus.WRITE, 41, 0)) == b""
    assert bus.feed(packet(1, servo_bus.PING)) == status(1)
    assert bus.feed(packet(1, servo_bus.READ, 41, 1)) == status(1, b"\0")


def test_a_new_id_is_acknowledged_by_the_old_one(bus):
    assert bus.feed(packet(3, servo_bus.WRITE, 5, 9)) == status(3)
    assert bus.feed(packet(3, servo_bus.PING)) == b""
    assert bus.feed(packet(9, servo_bus.PING)) == status(9)


def test_a_servo_hears_only_its_own_speed(bus):
    bus.servos[1]["Baud_Rate"] = 1
    ping = packet(servo_bus.BROADCAST, servo_bus.PING)
    assert bus.feed(ping, baud=1_000_000) == status(1) + status(3)
    assert bus.feed(ping, baud=500_000) == status(2)
    assert bus.feed(ping, baud=9600) == b""
