# SPDX-License-Identifier: Apache-2.0
"""LeRobot's SO-100 driver, unmodified, with the traps around it closed.

Everything here was read in LeRobot 0.6.1 (``SOFollower``, ``FeetechMotorsBus``) and scservo_sdk. One thread
owns a driver; nothing in it is safe to call from a second one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import serial
from lerobot.motors.encoding_utils import decode_sign_magnitude
from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.motors.feetech.tables import MODEL_ENCODING_TABLE
from lerobot.robots.so_follower import SOFollower, SOFollowerRobotConfig
from scservo_sdk import COMM_SUCCESS

from smolvla_mem_ros.so100.arm import JOINTS, LEROBOT_UNITS, Calibration, CalibrationError
from smolvla_mem_ros.so100.health import Servos, faults, servo

READ_PATIENCE = 0.4  # s, after which an arm that does not answer properly is taken for lost
QUIET = 0.015  # s without a byte after which a late answer is not expected any more
# Without it the SDK spins on an empty port while it waits for an answer.
READ_WAIT = 0.005  # s, the longest the port may block for
HOLDING_TOLERANCE = 0.1  # rad
CONNECT_TRIES = 2
WRITE_TRIES = 3
TORQUE_CHECK = 20  # writes from one look at whether the servos still hold to the next

# Registers that lie side by side.
MEASURED = (
    "Present_Position",
    "Present_Velocity",
    "Present_Load",
    "Present_Voltage",
    "Present_Temperature",
    "Status",
)

# What serial ports and the SDK raise when the device or an answer is missing, or the answer is another's.
BUS_ERRORS = (ConnectionError, OSError, serial.SerialException, RuntimeError, termios.error, IndexError)


class ArmError(Exception):
    """The arm cannot be used as it is; the text names cause and cure."""


@dataclass(frozen=True)
class ArmState:
    """What the servos measure.

    Args:
        time: s, ``time.monotonic()`` halfway between the request for the positions and their arrival.
        position: (6,) rad.
        velocity: (6,) rad/s.
        servos: what else they report.
    """

    time: float
    position: np.ndarray
    velocity: np.ndarray
    servos: Servos | None = None


def check_port(port: str) -> None:
    """Raises ArmError when there is no such serial port, or it may not be opened, or is in use."""
    try:
        mode = os.stat(port).st_mode
    except OSError:
        raise ArmError(
            f"there is no serial port {port}; plug the arm's USB cable in, or find the port's name "
            "with lerobot-find-port"
        ) from None
    if not stat.S_ISCHR(mode):
        raise ArmError(f"{port} is not a serial port; find the port's name with lerobot-find-port")
    try:
        descriptor = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except PermissionError:
        raise ArmError(
            f"this user may not open {port}; add it to the group that owns the port "
            "(sudo usermod -aG dialout $USER) and log in again"
        ) from None
    except OSError as error:
        raise ArmError(f"cannot open {port} ({error.strerror}); unplug the arm and plug it in") from None
    try:
        # Asked before anything is sent, so that a program at work on this port is not disturbed.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ArmError(f"another program is using {port}; stop it") from None
    finally:
        os.close(descriptor)


def open_bus(bus: FeetechMotorsBus) -> None:
    """Opens the bus's port, for this program alone. Raises one of BUS_ERRORS, and stays open, when servos are
    silent."""
    bus.connect()
    bus.port_handler.ser.timeout, bus.port_handler.ser.exclusive = READ_WAIT, True


def free(bus: FeetechMotorsBus) -> None:
    """After a transaction that was cut short: the SDK would say "Port is in use" to every other."""
    bus.port_handler.is_using = False


def explain(bus: FeetechMotorsBus, error: Exception) -> str:
    """What is the matter after ``error``; servos that are silent or report a fault are named."""
    if bus.is_connected:
        with contextlib.suppress(*BUS_ERRORS):
            free(bus)
            silent, problems = [], []
            for number, joint in enumerate(JOINTS):
                # LeRobot takes an answer that reports a fault for none.
                answered, bits = _ping(bus, bus.motors[joint].id)
                if answered:
                    problems += faults(number, bits)
                else:
                    silent.append(f"{bus.motors[joint].id} ({joint})")
            if silent:
                problems.append(
                    f"servo {', '.join(silent)} on {bus.port} does not answer; check the arm's power supply "
                    "and the cables from servo to servo"
                )
            if problems:
                return "; ".join(problems)
    return f"cannot talk to the arm on {bus.port}: {' '.join(str(error).split())}"


def _ping(bus: FeetechMotorsBus, servo: int) -> tuple[bool, int]:
    """Whether a servo answers one of two pings, and the bits of health.STATUS that it answers with."""
    for _ in range(2):
        _, result, bits = bus.packet_handler.ping(bus.port_handler, servo)
        if result == COMM_SUCCESS:
            return True, bits
    return False, 0


class So100Driver:
    """One arm on one serial port. ``connect`` it, ``engage`` it, then ``read`` and ``write``.

    Args:
        port: serial device.
        calibration: LeRobot's file ``<calibration_dir>/<id>.json``.

    Attributes:
        limits: (6,) and (6,) rad: the calibrated range, which the servos do not leave; known once connected.
        repeated_reads: how often an answer was late, missing or broken, and was asked for again.

    After an ArmError from ``read``, ``write``, ``engage`` or ``release`` the connection is not to be trusted:
    ``close`` it and ``connect`` again.
    """

    def __init__(self, port: str, calibration: Path) -> None:
        self._port = port
        self._path = Path(calibration).expanduser().absolute()
        self._robot: SOFollower | None = None
        self.limits = (np.full(len(JOINTS), -np.inf), np.full(len(JOINTS), np.inf))
        self.repeated_reads = 0
        self._writes = 0

    def connect(self) -> None:
        """Opens the port and checks that this arm with this calibration is there. Moves and changes nothing.

        Raises:
            ArmError: no calibration, no such port, it may not be opened, servos do not answer, or they
                hold another calibration.
        """
        try:
            calibration = Calibration.load(self._path)
        except CalibrationError as error:
            raise ArmError(f"{error}; make one with: {self._calibrate_command()}") from error
        self._ticks, self.limits = calibration.ticks, calibration.range
        self._gripper_ticks = (calibration.lower[-1], calibration.upper[-1])
        check_port(self._port)
        for tries_left in reversed(range(CONNECT_TRIES)):
            try:
                self._open()
                return
            except BUS_ERRORS as error:
                # Silent servos take long to ask.
                text = "" if tries_left else explain(self._robot.bus, error)
                self.close(False)
                if not tries_left:
                    raise ArmError(text) from error
            except ArmError:
                self.close(False)
                raise

    def engage(self) -> np.ndarray:
        """Torque on, without a jump. Returns (6,) rad, where the servos are now told to be.

        An arm that is already held (by a run before this one) is left as it is: configuring it would let go
        of it for a moment. Otherwise the goal is put to the present position before torque comes.
        """
        with self._bus_errors("switch torque on"):
            bus = self._robot.bus
            present, goal = self._raw("Present_Position"), self._raw("Goal_Position")
            close = np.abs(self._from_ticks(goal) - self._from_ticks(present)) < HOLDING_TOLERANCE
            if self._is_configured() and close.all():
                return self._from_ticks(goal)
            for _ in range(WRITE_TRIES):
                # Servos do not acknowledge this, so it is read back: an old goal would be a jump.
                bus.sync_write("Goal_Position", dict(zip(JOINTS, present, strict=True)), normalize=False)
                if (self._raw("Goal_Position") == present).all():
                    self._configure()
                    return self._from_ticks(present)
            raise ConnectionError("the servos do not take the present position as their goal")

    def _configure(self) -> None:
        """LeRobot's configure(), which gives up at the first late answer; it can be run again."""
        for left in reversed(range(WRITE_TRIES)):
            try:
                self._robot.configure()
                return
            except ConnectionError:
                if not left:
                    raise
                self._wait_for_silence()

    def release(self) -> None:
        """Torque off: the arm sinks unless something carries it."""
        with self._bus_errors("switch torque off"):
            self._robot.bus.disable_torque(num_retry=2)

    def read(self) -> ArmState:
        """What the servos measure. Raises ArmError."""
        with self._bus_errors("read the servos"):
            measured_at, raw = self._read_cleanly(self._measured)
        ticks, rates, load, voltage, temperature, status = raw
        # As LeRobot does: the gripper's position does not leave its range.
        ticks[-1] = np.clip(ticks[-1], *self._gripper_ticks)
        return ArmState(
            measured_at,
            self._from_ticks(ticks),
            self._ticks.rate_to_radians(rates),
            Servos(load / 1000, voltage / 10, temperature, status),
        )

    def write(self, position: np.ndarray) -> None:
        """Goal positions, (6,) rad; beyond the calibrated range they are clamped to it.

        Raises:
            ValueError: a position is not finite; nothing is written.
            ArmError: the port is gone, or a servo has switched its torque off by itself.
        """
        if not np.isfinite(position).all():
            raise ValueError(f"a goal position is not finite: {position}")
        with self._bus_errors("write to the servos"):
            # LeRobot cuts fractions of a tick off. Half a tick more makes that a rounding, so that writing
            # what was read does not creep.
            ticks = np.round(self._ticks.from_radians(np.clip(position, *self.limits)))
            goal = LEROBOT_UNITS.from_radians(self._from_ticks(ticks + 0.5))
            self._robot.send_action({f"{joint}.pos": float(g) for joint, g in zip(JOINTS, goal, strict=True)})
            self._writes += 1
            if self._writes % TORQUE_CHECK == 0:
                self._check_torque()

    def _check_torque(self) -> None:
        """Whoever writes goals wants the arm held. A servo whose power was gone for a moment answers as
        before, but is limp."""
        limp = [servo(number) for number in np.flatnonzero(self._raw("Torque_Enable") != 1)]
        if limp:
            raise ArmError(
                f"{', '.join(limp)} switched torque off by itself, as after a loss of power; check the arm's "
                "power supply and its cables"
            )

    def close(self, torque_off: bool) -> None:
        """Gives the port back, with torque switched off first if it can be. Safe to call at any time."""
        if self._robot is None:
            return
        # The name keeps it alive: a SOFollower that is deleted with its port open switches torque off.
        robot, self._robot = self._robot, None
        bus = robot.bus
        if bus.is_connected and torque_off:
            with contextlib.suppress(*BUS_ERRORS):
                free(bus)
                bus.disable_torque(num_retry=1)
        # Without a serial port the SDK has none to close.
        with contextlib.suppress(*BUS_ERRORS, AttributeError):
            bus.port_handler.closePort()
        bus.port_handler.is_open = False

    # Reading ------------------------------------------------------------------------------------

    @property
    def _serial(self) -> serial.Serial:
        return self._robot.bus.port_handler.ser

    def _measured(self) -> tuple[float, np.ndarray]:
        """ArmState.time, and (6, 6): MEASURED in the servos' units.

        In one exchange, where SOFollower would need six.
        """
        bus = self._robot.bus
        table = bus.model_ctrl_table[bus.motors[JOINTS[0]].model]
        (start, _), (last, size) = table[MEASURED[0]], table[MEASURED[-1]]
        reader = bus.sync_reader
        reader.clearParam()
        reader.start_address, reader.data_length = start, last + size - start
        for number in bus.ids:
            reader.addParam(number)
        asked = time.monotonic()
        if (result := reader.txRxPacket()) != COMM_SUCCESS:
            raise ConnectionError(bus.packet_handler.getTxRxResult(result))
        measured_at = (asked + time.monotonic()) / 2
        raw = [[reader.getData(number, *table[register]) for number in bus.ids] for register in MEASURED]
        signs = MODEL_ENCODING_TABLE[bus.motors[JOINTS[0]].model]
        for row, register in zip(raw, MEASURED, strict=True):
            if register in signs:
                row[:] = [decode_sign_magnitude(value, signs[register]) for value in row]
        return measured_at, np.array(raw)

    def _raw(self, register: str) -> np.ndarray:
        """(6,) a register as it stands in the servos."""
        values = self._read_cleanly(lambda: self._robot.bus.sync_read(register, normalize=False))
        return np.array([values[joint] for joint in JOINTS])

    def _read_cleanly(self, read):
        """``read()``, repeated until its answer can only be its own.

        The SDK takes any well-formed packet for the answer. When one comes late, after its request was given
        up, every read after it returns the one before. So bytes that wait before a request are thrown away,
        and after a failure the line must fall silent. The first answer then is not believed either, since
        the late one may have come just behind that request.
        """
        self._serial.reset_input_buffer()
        failure, in_doubt = None, False
        deadline = time.monotonic() + READ_PATIENCE
        while time.monotonic() < deadline:
            try:
                answer = read()
            except (ConnectionError, IndexError) as error:
                failure, in_doubt = error, True
            else:
                if not in_doubt:
                    return answer
                in_doubt = False
            self.repeated_reads += 1
            self._wait_for_silence()
        raise failure

    def _wait_for_silence(self) -> None:
        deadline = time.monotonic() + 10 * QUIET
        while time.monotonic() < deadline:
            self._serial.reset_input_buffer()
            time.sleep(QUIET)
            if not self._serial.in_waiting:
                return

    def _from_ticks(self, ticks: np.ndarray) -> np.ndarray:
        return self._ticks.to_radians(ticks)

    # Checking -----------------------------------------------------------------------------------

    def _open(self) -> None:
        # Not SOFollower.connect(): it would switch torque on before anything could be checked. These are
        # the two calls it consists of, bus.connect() and (in engage) configure().
        self._robot = SOFollower(
            SOFollowerRobotConfig(
                port=self._port,
                id=self._path.stem,
                calibration_dir=self._path.parent,
                num_read_retries=0,  # its retries would hide that late bytes may follow
            )
        )
        open_bus(self._robot.bus)
        self._check_calibration()

    def _check_calibration(self) -> None:
        differences = self._calibration_differences()
        if differences:
            # A late answer would look the same; it is gone when the line has been silent.
            self._wait_for_silence()
            differences = self._calibration_differences()
        if differences:
            more = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
            raise ArmError(
                f"the servos hold another calibration than {self._path} ({differences[0]}{more}); choose "
                "this arm's own file, or write this one into the servos (by ENTER) with: "
                + self._calibrate_command("--write")
            )

    def _calibration_differences(self) -> list[str]:
        """In words, joint by joint."""
        ours, theirs = self._robot.calibration, self._robot.bus.read_calibration()
        pairs = [(joint, self._numbers(ours[joint]), self._numbers(theirs[joint])) for joint in JOINTS]
        return [f"{joint} has {a} in the file and {b} in the servo" for joint, a, b in pairs if a != b]

    @staticmethod
    def _numbers(calibration) -> str:
        return f"offset {calibration.homing_offset} range {calibration.range_min}..{calibration.range_max}"

    def _is_configured(self) -> bool:
        """Whether torque is on everywhere and the registers hold what ``configure`` would write."""
        config = self._robot.config
        expected = {
            "Torque_Enable": 1,
            "Operating_Mode": 0,
            "P_Coefficient": config.position_p_coefficient,
            "I_Coefficient": config.position_i_coefficient,
            "D_Coefficient": config.position_d_coefficient,
        }
        return all((self._raw(register) == value).all() for register, value in expected.items())

    def _calibrate_command(self, *options: str) -> str:
        ours = (
            "ros2 run smolvla_mem_ros so100_calibrate",
            "--port",
            self._port,
            "--calibration",
            str(self._path),
        )
        return (
            f"{' '.join((*ours, *options))}, or LeRobot's own: "
            f"lerobot-calibrate --robot.type=so101_follower --robot.port={self._port} "
            f"--robot.id={self._path.stem} --robot.calibration_dir={self._path.parent}"
        )

    @contextlib.contextmanager
    def _bus_errors(self, doing: str):
        if self._robot is None:
            raise ArmError(f"cannot {doing}: the arm is not connected")
        try:
            yield
        except BUS_ERRORS as error:
            reason = "the port is gone" if not os.path.exists(self._port) else " ".join(str(error).split())
            raise ArmError(
                f"cannot {doing} on {self._port}: {reason}; check the USB cable and the power supply"
            ) from error
