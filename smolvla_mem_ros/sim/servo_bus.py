# SPDX-License-Identifier: Apache-2.0
"""The bus of STS3215 servos as its other end sees it: bytes in, bytes out (Feetech's protocol 0).

Written after Feetech's STS memory table and what LeRobot's driver sends. What moves the servos is not
here: a plant is asked to bring the registers up to date before each instruction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
BROADCAST = 0xFE
HEADER = b"\xff\xff"
MEMORY = 96  # bytes

# name: (address, bytes)
REGISTERS = {
    "Firmware_Major_Version": (0, 1),
    "Firmware_Minor_Version": (1, 1),
    "Model_Number": (3, 2),
    "ID": (5, 1),
    "Baud_Rate": (6, 1),
    "Return_Delay_Time": (7, 1),
    "Min_Position_Limit": (9, 2),
    "Max_Position_Limit": (11, 2),
    "Max_Torque_Limit": (16, 2),
    "Phase": (18, 1),
    "P_Coefficient": (21, 1),
    "D_Coefficient": (22, 1),
    "I_Coefficient": (23, 1),
    "Homing_Offset": (31, 2),
    "Operating_Mode": (33, 1),
    "Torque_Enable": (40, 1),
    "Acceleration": (41, 1),
    "Goal_Position": (42, 2),
    "Torque_Limit": (48, 2),
    "Lock": (55, 1),
    "Present_Position": (56, 2),
    "Present_Velocity": (58, 2),
    "Present_Load": (60, 2),
    "Present_Voltage": (62, 1),
    "Present_Temperature": (63, 1),
    "Moving": (66, 1),
}
# Numbers with a sign are magnitude and sign; the bit that holds the sign.
SIGN_BIT = {
    "Homing_Offset": 11,
    "Goal_Position": 15,
    "Present_Position": 15,
    "Present_Velocity": 15,
    "Present_Load": 10,
}
# As the servo leaves the factory, torque off.
FACTORY = {
    "Firmware_Major_Version": 3,
    "Firmware_Minor_Version": 10,
    "Model_Number": 777,
    "Return_Delay_Time": 250,
    "Max_Position_Limit": 4095,
    "Max_Torque_Limit": 1000,
    "Phase": 0x0C,
    "P_Coefficient": 32,
    "D_Coefficient": 32,
    "Torque_Limit": 1000,
    "Lock": 1,
    "Present_Voltage": 74,  # 0.1 V
    "Present_Temperature": 30,  # degrees Celsius
}
READ_ONLY = range(56, 71)  # Present_Position to Present_Current


def encode(name: str, value: int) -> int:
    """A register's value as it stands in memory; beyond the register's range it saturates."""
    if name in SIGN_BIT:
        bit = SIGN_BIT[name]
        return min(abs(value), (1 << bit) - 1) | ((value < 0) << bit)
    return max(0, min(value, (1 << 8 * REGISTERS[name][1]) - 1))


def decode(name: str, raw: int) -> int:
    """The reverse of ``encode``."""
    if name in SIGN_BIT:
        bit = SIGN_BIT[name]
        magnitude = raw & ((1 << bit) - 1)
        return -magnitude if raw >> bit & 1 else magnitude
    return raw


class Servo:
    """One servo's memory."""

    def __init__(self, number: int) -> None:
        self.memory = bytearray(MEMORY)
        self.waiting: tuple[int, bytes] | None = None  # a registered write that ACTION will carry out
        self["ID"] = number
        for name, value in FACTORY.items():
            self[name] = value
        self.set_present(2048)
        self["Goal_Position"] = 2048

    def __getitem__(self, name: str) -> int:
        address, size = REGISTERS[name]
        return decode(name, int.from_bytes(self.memory[address : address + size], "little"))

    def __setitem__(self, name: str, value: int) -> None:
        address, size = REGISTERS[name]
        self.memory[address : address + size] = encode(name, int(value)).to_bytes(size, "little")

    @property
    def goal(self) -> int:
        """Where the servo drives to, in its encoder's own ticks: it keeps within its position limits."""
        low, high = self["Min_Position_Limit"], self["Max_Position_Limit"]
        goal = self["Goal_Position"]
        if low or high:
            goal = min(max(goal, low), high)
        return goal + self["Homing_Offset"]

    def set_present(self, ticks: float, ticks_per_second: float = 0.0, load: float = 0.0) -> None:
        """Measured values: the encoder's own ticks (before the homing offset), velocity, load -1 to 1."""
        self["Present_Position"] = round(ticks) - self["Homing_Offset"]
        self["Present_Velocity"] = round(ticks_per_second)
        self["Present_Load"] = round(1000 * load)
        self["Moving"] = abs(ticks_per_second) > 1

    def write(self, address: int, data: bytes) -> None:
        """What a WRITE does; measured values do not change by it."""
        for at, byte in enumerate(data, start=address):
            if at < MEMORY and at not in READ_ONLY:
                self.memory[at] = byte


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


@dataclass
class ServoBus:
    """Servos that share a wire.

    Args:
        servos: each with an id of its own.
        refresh: called before each instruction, to bring the measured values up to date.
        drop: probability that an answer is lost.
        seed: for the answers that are lost.
    """

    servos: Iterable[Servo]
    refresh: Callable[[], None] = lambda: None
    drop: float = 0.0
    seed: int = 0
    counters: BusCounters = field(default_factory=BusCounters)

    def __post_init__(self) -> None:
        self.servos = list(self.servos)
        self._random = random.Random(self.seed)
        self._input = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Bytes that came in, whole packets or parts of them; returns what the servos answer."""
        self._input += data
        answers = b""
        while (packet := self._next_packet()) is not None:
            answers += self._handle(packet[0], packet[2], packet[3:])
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

    def _handle(self, number: int, instruction: int, parameters: bytes) -> bytes:
        self.counters.packets += 1
        self.refresh()
        addressed = [s for s in self.servos if number in (BROADCAST, s["ID"])]
        if instruction == PING:
            return b"".join(self._answer(s) for s in addressed)
        if instruction == READ and len(parameters) == 2 and number != BROADCAST:
            return b"".join(self._answer(s, *parameters) for s in addressed)
        if instruction in (WRITE, REG_WRITE) and len(parameters) > 1:
            ids = [s["ID"] for s in addressed]
            for servo in addressed:
                if instruction == REG_WRITE:
                    servo.waiting = (parameters[0], parameters[1:])
                else:
                    self._write([servo], parameters[0], [parameters[1:]])
            if number == BROADCAST:
                return b""
            return b"".join(self._send(status(i)) for i in ids)
        if instruction == ACTION:
            for servo in addressed:
                if servo.waiting is not None:
                    address, data = servo.waiting
                    servo.waiting = None
                    self._write([servo], address, [data])
        elif instruction == SYNC_READ and len(parameters) > 2:
            by_id = {s["ID"]: s for s in self.servos}
            return b"".join(self._answer(by_id[i], *parameters[:2]) for i in parameters[2:] if i in by_id)
        elif instruction == SYNC_WRITE and len(parameters) > 2:
            address, size = parameters[:2]
            by_id = {s["ID"]: s for s in self.servos}
            rows = [parameters[k : k + 1 + size] for k in range(2, len(parameters), size + 1)]
            rows = [row for row in rows if row[0] in by_id and len(row) == size + 1]
            self._write([by_id[row[0]] for row in rows], address, [row[1:] for row in rows])
        return b""

    def _write(self, servos: list[Servo], address: int, data: list[bytes]) -> None:
        goal, size = REGISTERS["Goal_Position"]
        if any(address < goal + size and address + len(d) > goal for d in data):
            self.counters.goal_writes += 1
        for servo, d in zip(servos, data, strict=True):
            servo.write(address, d)

    def _answer(self, servo: Servo, address: int = 0, size: int = 0) -> bytes:
        return self._send(status(servo["ID"], bytes(servo.memory[address : address + size])))

    def _send(self, packet: bytes) -> bytes:
        if self.drop and self._random.random() < self.drop:
            self.counters.dropped += 1
            return b""
        return packet
