# SPDX-License-Identifier: Apache-2.0
"""The bus of STS3215 servos as its other end sees it: bytes in, bytes out (Feetech's protocol 0).

Written after Feetech's protocol manual and what LeRobot's driver sends. What moves the servos is not here:
a plant is asked to bring the registers up to date before each instruction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from smolvla_mem_ros.sim.servo import REGISTERS, Servo

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
BROADCAST = 0xFE
HEADER = b"\xff\xff"


def status(number: int, parameters: bytes = b"", error: int = 0) -> bytes:
    """A servo's answer."""
    body = bytes([number, len(parameters) + 2, error]) + parameters
    return HEADER + body + bytes([checksum(body)])


def checksum(body: bytes) -> int:
    """Of everything between the header and the checksum."""
    return ~sum(body) & 0xFF


@dataclass
class BusCounters:
    packets: int = 0
    goal_writes: int = 0  # packets that wrote goal positions
    bad_checksums: int = 0
    dropped: int = 0
    corrupted: int = 0


@dataclass
class ServoBus:
    """Servos that share a wire.

    Args:
        servos: each with an id of its own.
        refresh: called before each instruction, to bring the measured values up to date.
        drop: probability that an answer is lost.
        corrupt: probability that an answer's checksum is wrong.
        seed: for the answers that are lost or wrong.
        on_goals: called after each packet that wrote goal positions.
    """

    servos: Iterable[Servo]
    refresh: Callable[[], None] = lambda: None
    drop: float = 0.0
    corrupt: float = 0.0
    seed: int = 0
    counters: BusCounters = field(default_factory=BusCounters)
    on_goals: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.servos = list(self.servos)
        self._random = random.Random(self.seed)
        self._input = bytearray()

    def feed(self, data: bytes, baud: int = 0) -> bytes:
        """Bytes that came in, whole packets or parts of them; returns what the servos answer.

        A servo that listens at another speed than ``baud`` (bits/s; 0: whatever it is) hears nothing.
        """
        self._input += data
        answers = b""
        while (packet := self._next_packet()) is not None:
            servos = [s for s in self.servos if baud in (0, s.baud)]
            answers += self._handle(servos, packet[0], packet[2], packet[3:])
        return answers

    def _next_packet(self) -> bytes | None:
        """The next whole packet without header and checksum; None until one is there."""
        buffer = self._input
        while True:
            start = buffer.find(HEADER)
            if start < 0:
                del buffer[: len(buffer) - buffer.endswith(b"\xff")]
                return None
            del buffer[:start]
            if len(buffer) < 4:
                return None
            number, length = buffer[2], buffer[3]
            if number == 0xFF or length < 2:
                del buffer[0]
            elif len(buffer) < length + 4:
                return None
            elif checksum(buffer[2 : length + 3]) != buffer[length + 3]:
                self.counters.bad_checksums += 1
                del buffer[:2]
            else:
                packet = bytes(buffer[2 : length + 3])
                del buffer[: length + 4]
                return packet

    def _handle(self, servos: list[Servo], number: int, instruction: int, parameters: bytes) -> bytes:
        self.counters.packets += 1
        self.refresh()
        addressed = [s for s in servos if number in (BROADCAST, s["ID"])]
        if instruction == PING:
            return b"".join(self._answer(s) for s in addressed)
        if instruction == READ and len(parameters) == 2 and number != BROADCAST:
            return b"".join(self._answer(s, *parameters) for s in addressed)
        if instruction in (WRITE, REG_WRITE) and len(parameters) > 1:
            ids = [s["ID"] for s in addressed]  # a write that changes its ID is acknowledged by the old one
            for servo in addressed:
                if instruction == REG_WRITE:
                    servo.waiting = (parameters[0], parameters[1:])
                else:
                    self._write([servo], parameters[0], [parameters[1:]])
            return b"" if number == BROADCAST else self._acknowledge(addressed, ids)
        if instruction == ACTION:
            ids = [s["ID"] for s in addressed]
            for servo in addressed:
                if servo.waiting is not None:
                    address, data = servo.waiting
                    servo.waiting = None
                    self._write([servo], address, [data])
            return b"" if number == BROADCAST else self._acknowledge(addressed, ids)
        if instruction == SYNC_READ and len(parameters) > 2:
            by_id = {s["ID"]: s for s in servos}
            return b"".join(self._answer(by_id[i], *parameters[:2]) for i in parameters[2:] if i in by_id)
        if instruction == SYNC_WRITE and len(parameters) > 2:
            address, size = parameters[:2]
            by_id = {s["ID"]: s for s in servos}
            rows = [parameters[k : k + 1 + size] for k in range(2, len(parameters), size + 1)]
            rows = [row for row in rows if row[0] in by_id and len(row) == size + 1]
            self._write([by_id[row[0]] for row in rows], address, [row[1:] for row in rows])
        return b""

    def _write(self, servos: list[Servo], address: int, data: list[bytes]) -> None:
        goal, size = REGISTERS["Goal_Position"]
        is_goal = any(address < goal + size and address + len(d) > goal for d in data)
        for servo, d in zip(servos, data, strict=True):
            servo.write(address, d)
        if is_goal:
            self.counters.goal_writes += 1
            self.on_goals()

    def _acknowledge(self, servos: list[Servo], ids: list[int]) -> bytes:
        rows = [(s, i) for s, i in zip(servos, ids, strict=True) if s["Response_Status_Level"]]
        return b"".join(self._send(s, status(i, error=s["Status"])) for s, i in rows)

    def _answer(self, servo: Servo, address: int = 0, size: int = 0) -> bytes:
        data = bytes(servo.memory[address : address + size])
        return self._send(servo, status(servo["ID"], data, servo["Status"]))

    def _send(self, servo: Servo, packet: bytes) -> bytes:
        if servo.mute or (self.drop and self._random.random() < self.drop):
            self.counters.dropped += 1
            return b""
        if self.corrupt and self._random.random() < self.corrupt:
            self.counters.corrupted += 1
            return packet[:-1] + bytes([packet[-1] ^ 0xFF])
        return packet
