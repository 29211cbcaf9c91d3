# SPDX-License-Identifier: Apache-2.0
"""One STS3215 servo: its memory, what is kept without power, and how it protects itself.

Written after Feetech's STS memory table. Only position mode is here: whatever ``Operating_Mode`` says, the
servo drives to its goal position.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

TICKS = 4096  # of the encoder, per turn
MIDDLE = 2048  # what the position is made to be by writing CALIBRATE to Torque_Enable
CALIBRATE = 128
MULTI_TURN = 0x10  # bit of Phase: positions beyond one turn are told as they are
NOMINAL_VOLTAGE = 7.4
STALL_CURRENT = 2.4 / 0.0065  # in the register's unit of 6.5 mA

# Bits of Status, of a status packet's error byte, and of Unloading_Condition.
VOLTAGE, HOT, OVERLOAD = 1, 4, 32

# name: (address, bytes)
REGISTERS = {
    "Firmware_Major_Version": (0, 1),
    "Firmware_Minor_Version": (1, 1),
    "Model_Number": (3, 2),
    "ID": (5, 1),
    "Baud_Rate": (6, 1),
    "Return_Delay_Time": (7, 1),
    "Response_Status_Level": (8, 1),
    "Min_Position_Limit": (9, 2),
    "Max_Position_Limit": (11, 2),
    "Max_Temperature_Limit": (13, 1),
    "Max_Voltage_Limit": (14, 1),
    "Min_Voltage_Limit": (15, 1),
    "Max_Torque_Limit": (16, 2),
    "Phase": (18, 1),
    "Unloading_Condition": (19, 1),
    "LED_Alarm_Condition": (20, 1),
    "P_Coefficient": (21, 1),
    "D_Coefficient": (22, 1),
    "I_Coefficient": (23, 1),
    "Minimum_Startup_Force": (24, 2),
    "CW_Dead_Zone": (26, 1),
    "CCW_Dead_Zone": (27, 1),
    "Protection_Current": (28, 2),
    "Angular_Resolution": (30, 1),
    "Homing_Offset": (31, 2),
    "Operating_Mode": (33, 1),
    "Protective_Torque": (34, 1),
    "Protection_Time": (35, 1),
    "Overload_Torque": (36, 1),
    "Velocity_closed_loop_P_proportional_coefficient": (37, 1),
    "Over_Current_Protection_Time": (38, 1),
    "Velocity_closed_loop_I_integral_coefficient": (39, 1),
    "Torque_Enable": (40, 1),
    "Acceleration": (41, 1),
    "Goal_Position": (42, 2),
    "Goal_Time": (44, 2),
    "Goal_Velocity": (46, 2),
    "Torque_Limit": (48, 2),
    "Lock": (55, 1),
    "Present_Position": (56, 2),
    "Present_Velocity": (58, 2),
    "Present_Load": (60, 2),
    "Present_Voltage": (62, 1),
    "Present_Temperature": (63, 1),
    "Status": (65, 1),
    "Moving": (66, 1),
    "Present_Current": (69, 2),
    "Goal_Position_2": (71, 2),
    "Moving_Velocity": (80, 1),
    "Moving_Velocity_Threshold": (80, 1),
    "DTs": (81, 1),
    "Velocity_Unit_factor": (82, 1),
    "Hts": (83, 1),
    "Maximum_Velocity_Limit": (84, 1),
    "Maximum_Acceleration": (85, 1),
    "Acceleration_Multiplier": (86, 1),
}
MEMORY = 96  # bytes
EPROM = 40  # bytes at the start of the memory that can be kept without power
READ_ONLY = {*range(0, 5), *range(56, 73)}  # versions; Present_Position to Goal_Position_2
FEEDBACK = struct.Struct("<HHHBBxBBxxHH")  # Present_Position to Goal_Position_2; written at each exchange

# Numbers with a sign are magnitude and sign; the bit that holds the sign.
SIGN_BIT = {
    "Homing_Offset": 11,
    "Goal_Position": 15,
    "Goal_Velocity": 15,
    "Present_Position": 15,
    "Present_Velocity": 15,
    "Present_Load": 10,
}

# As the servo leaves the factory. Registers that are not named are 0.
FACTORY = {
    "Firmware_Major_Version": 3,
    "Firmware_Minor_Version": 10,
    "Model_Number": 777,
    "Return_Delay_Time": 250,
    "Response_Status_Level": 1,
    "Max_Position_Limit": TICKS - 1,
    "Max_Temperature_Limit": 70,  # degrees Celsius
    "Max_Voltage_Limit": 80,  # 0.1 V
    "Min_Voltage_Limit": 40,
    "Max_Torque_Limit": 1000,  # 0.1 %
    "Phase": 0x0C,
    "Unloading_Condition": 0x2C,  # heat, current and load; not voltage
    "LED_Alarm_Condition": 0x2F,
    "P_Coefficient": 32,
    "D_Coefficient": 32,
    "Minimum_Startup_Force": 16,
    "CW_Dead_Zone": 1,
    "CCW_Dead_Zone": 1,
    "Protection_Current": 500,
    "Angular_Resolution": 1,
    "Protective_Torque": 20,  # %
    "Protection_Time": 200,  # 10 ms
    "Overload_Torque": 80,  # %
    "Velocity_closed_loop_P_proportional_coefficient": 10,
    "Over_Current_Protection_Time": 200,
    "Velocity_closed_loop_I_integral_coefficient": 10,
}
# The memory without a kept copy, each time power comes; the last four are the factory's tuning.
POWER_ON = {
    "Goal_Position": MIDDLE,
    "Lock": 1,
    "Moving_Velocity_Threshold": 10,
    "DTs": 10,
    "Velocity_Unit_factor": 50,
    "Acceleration_Multiplier": 1,
}
# Bits per second by Baud_Rate, as Feetech's table says (LeRobot has other speeds for 5, 6 and 7).
BAUD_RATES = (1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400)


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


@dataclass(frozen=True)
class Measurement:
    """What a servo feels.

    Args:
        ticks: position in the encoder's own ticks, before the homing offset; may be beyond one turn.
        rate: ticks/s.
        load: -1 to 1, share of the largest torque.
        volts: supply.
        celsius: temperature.
    """

    ticks: float
    rate: float = 0.0
    load: float = 0.0
    volts: float = NOMINAL_VOLTAGE
    celsius: float = 30.0


class Servo:
    """One servo; its registers are items by LeRobot's names, with their sign.

    Set an item for what the factory or the bench has put in for good; ``write`` is what the bus does.

    Attributes:
        waiting: a registered write, (address, data), that ACTION will carry out; or None.
        mute: a fault; it hears and obeys, but its answers do not arrive.
        stuck: a fault; its output does not turn, whatever it is told.
        supply: V on its power line.
        forced_celsius: a fault; its temperature, or None while it is what its load makes it.
    """

    def __init__(self, number: int) -> None:
        self.memory = bytearray(MEMORY)
        self._kept = bytearray(EPROM)
        self._strained = 0.0  # s of too much load
        self._measured = Measurement(MIDDLE)
        self.mute = self.stuck = False
        self.supply = NOMINAL_VOLTAGE
        self.forced_celsius: float | None = None
        for name, value in {"ID": number, **FACTORY}.items():
            self[name] = value
        self.power_cycle()

    def __getitem__(self, name: str) -> int:
        address, size = REGISTERS[name]
        return decode(name, int.from_bytes(self.memory[address : address + size], "little"))

    def __setitem__(self, name: str, value: int) -> None:
        address, size = REGISTERS[name]
        self.memory[address : address + size] = encode(name, int(value)).to_bytes(size, "little")
        if address < EPROM:
            self._kept[address : address + size] = self.memory[address : address + size]

    def power_cycle(self) -> None:
        """Power goes and comes: torque off, and only what was written with the lock open is still there."""
        self.memory[:] = self._kept + bytes(MEMORY - EPROM)
        for name, value in POWER_ON.items():
            self[name] = value
        self["Torque_Limit"] = self["Max_Torque_Limit"]
        self.waiting: tuple[int, bytes] | None = None
        self._strained = 0.0
        self.measure(self._measured)

    def write(self, address: int, data: bytes) -> None:
        """What a WRITE does. Measured values do not change by it.

        With Lock at 1 a write below EPROM counts until power goes; with Lock at 0 it is kept.
        """
        torque = self["Torque_Enable"]
        for at, byte in enumerate(data, start=address):
            if at < MEMORY and at not in READ_ONLY:
                self.memory[at] = byte
                if at < EPROM and self["Lock"] == 0:
                    self._kept[at] = byte
        if address > REGISTERS["Torque_Enable"][0]:
            return  # goals, many a second: nothing measured depends on them
        if self["Torque_Enable"] == CALIBRATE:
            self["Torque_Enable"] = torque
            self["Homing_Offset"] = self._encoder % TICKS - MIDDLE
        if self["Torque_Enable"] == 0:
            self["Status"] &= ~OVERLOAD
            self._strained = 0.0
        self.measure(self._measured)

    def measure(self, measured: Measurement, seconds: float = 0.0) -> None:
        """Takes over what it feels now, ``seconds`` after the last time, and protects itself."""
        self._measured = measured
        load, volts, celsius = abs(measured.load), round(10 * measured.volts), round(measured.celsius)
        self._strained = self._strained + seconds if 100 * load > self["Overload_Torque"] else 0.0
        status = self["Status"] & OVERLOAD  # stays until torque is switched off
        if self._strained > 0.01 * self["Protection_Time"]:
            status |= OVERLOAD
        if not self["Min_Voltage_Limit"] <= volts <= self["Max_Voltage_Limit"]:
            status |= VOLTAGE
        if celsius > self["Max_Temperature_Limit"]:
            status |= HOT
        FEEDBACK.pack_into(
            self.memory,
            REGISTERS["Present_Position"][0],
            encode("Present_Position", self._position),
            encode("Present_Velocity", round(measured.rate)),
            encode("Present_Load", round(1000 * measured.load)),
            encode("Present_Voltage", volts),
            encode("Present_Temperature", celsius),
            status,
            abs(measured.rate) > 1,
            round(STALL_CURRENT * load),
            encode("Goal_Position", self["Goal_Position"]),
        )

    @property
    def torque(self) -> float:
        """0 to 1, the share of its torque that the servo may use now."""
        if self["Torque_Enable"] != 1:
            return 0.0
        tripped = self["Status"] & self["Unloading_Condition"]
        if tripped & (VOLTAGE | HOT):
            return 0.0
        limit = self["Torque_Limit"] / 1000
        return min(limit, self["Protective_Torque"] / 100) if tripped & OVERLOAD else limit

    @property
    def goal(self) -> int:
        """Where the servo drives to, in the encoder's own ticks: it keeps within its position limits."""
        low, high = self["Min_Position_Limit"], self["Max_Position_Limit"]
        goal = self["Goal_Position"]
        if low or high:
            goal = min(max(goal, low), high)
        return self._encoder + goal - self._position

    @property
    def baud(self) -> int:
        """Bits per second that it listens at; 0 for a Baud_Rate that does not exist."""
        rate = self["Baud_Rate"]
        return BAUD_RATES[rate] if rate < len(BAUD_RATES) else 0

    @property
    def _encoder(self) -> int:
        return round(self._measured.ticks)

    @property
    def _position(self) -> int:
        position = self._encoder - self["Homing_Offset"]
        return position if self["Phase"] & MULTI_TURN else position % TICKS
