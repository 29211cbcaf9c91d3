# SPDX-License-Identifier: Apache-2.0
"""An SO-100 or SO-101 on a pseudo-terminal: servo bus in front, physics behind, in a process of its own.

The servo library at the other end waits busily for answers, so an emulator in its process would starve.
This process owns the physics; cameras are rendered elsewhere from the state it shares.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import pty
import selectors
import signal
import socket
import stat
import struct
import sys
import time
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np

from smolvla_mem_ros.share import share_path
from smolvla_mem_ros.sim import commands
from smolvla_mem_ros.sim.commands import Command
from smolvla_mem_ros.sim.servo import Servo
from smolvla_mem_ros.sim.servo_bus import ServoBus
from smolvla_mem_ros.sim.shared_state import SharedState, Snapshot
from smolvla_mem_ros.so100.arm import Calibration, CalibrationError

TICK = 0.005  # s; the physics moves and is shared at least this often, also without bus traffic
BITS_PER_BYTE = 10  # on a serial line: start, eight, stop

TCGETS2, TERMIOS2 = 0x802C542A, struct.Struct("=4IB19s2I")  # Linux: also tells unusual speeds

MODELS = ("so100", "so101")  # each with its calibration: how far joints turn, and how servos are mounted

HELP = f"""\
examples:
  python -m smolvla_mem_ros.sim.emulator --port /tmp/ttySO100
  python -m smolvla_mem_ros.sim.emulator --port /tmp/ttySO101 --model so101 --plant first_order
  python -m smolvla_mem_ros.sim.emulator --port /tmp/ttySO100 --drop 0.01 --stuck elbow_flex --overheat 3 80

{commands.SERVO_HELP}
With --control it reads one command a line from standard input, and ends when that closes:
{commands.HELP}
"""


class Plant(Protocol):
    """What moves the servos.

    Attributes:
        resets: how often it was put back.
        qpos: all joint positions, the arm's first; rad.
    """

    resets: int
    qpos: np.ndarray

    def advance(self) -> None:
        """Moves up to the clock and updates the servos' registers."""

    def reset(self) -> None:
        """Back to the start; the arm too, unless torque holds it."""


class PortInUse(Exception):
    """The path for the serial device is taken; says by what."""


class SerialLink:
    """A pseudo-terminal that programs open through a symbolic link.

    A link that a crashed emulator left is replaced. Closing removes the link.

    Raises:
        PortInUse: ``path`` is a file or device of its own, or another emulator's link.
        OSError: its folder is not there or may not be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(os.path.abspath(path))
        # A name in the kernel that goes with the process: unlike a link, it never outlives its owner.
        self._claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._claim.bind("\0smolvla_mem_ros.emulator." + hashlib.sha1(bytes(self._path)).hexdigest())
        except OSError as error:
            raise PortInUse(f"another emulator already offers {path}; stop it or take another") from error
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISLNK(os.lstat(self._path).st_mode):
                raise PortInUse(f"{path} exists and is not a link; choose a path that is free")
        self._ends: tuple[int, int] | None = None
        self.plug()

    @property
    def fd(self) -> int | None:
        """The emulator's end; None while unplugged."""
        return self._ends[0] if self._ends else None

    def plug(self) -> None:
        if self._ends is None:
            self._ends = pty.openpty()
            for end in self._ends:
                tty.setraw(end)
            os.set_blocking(self._ends[0], False)
            new = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            new.unlink(missing_ok=True)
            new.symlink_to(self.device)
            os.replace(new, self._path)

    def unplug(self) -> None:
        if self._ends is not None:
            with contextlib.suppress(OSError):
                if os.readlink(self._path) == self.device:
                    self._path.unlink()
            for end in self._ends:
                os.close(end)
            self._ends = None

    @property
    def device(self) -> str:
        return os.ttyname(self._ends[1])

    @property
    def baud(self) -> int:
        """Bits per second that the program at the other end has set its port to."""
        return TERMIOS2.unpack(fcntl.ioctl(self._ends[1], TCGETS2, bytes(TERMIOS2.size)))[-1]

    def close(self) -> None:
        self.unplug()
        self._claim.close()


class Emulator:
    """Answers on the link, moves the plant with the clock, shares the state, obeys commands.

    Args:
        link: where the bus is offered.
        bus: its ``refresh`` must be the plant's ``advance``.
        plant: what the servos move.
        shared: where the state goes, or None.
        latency: s, before each answer.
        baud: bits per second on the wire; 0 for an infinitely fast one.
    """

    def __init__(
        self,
        link: SerialLink,
        bus: ServoBus,
        plant: Plant,
        shared: SharedState | None = None,
        latency: float = 0.0,
        baud: int = 0,
    ) -> None:
        self._link, self._bus, self._plant, self._shared = link, bus, plant, shared
        self._latency, self._baud = latency, baud
        self._stall = 0.0
        self._sequence = 0
        self._shared_at = float("-inf")
        self._commands = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(link.fd, selectors.EVENT_READ, self._serve)

    def run(self, control: bool) -> None:
        """Runs until a signal's exception, or with ``control`` until standard input closes."""
        if control:
            self._selector.register(0, selectors.EVENT_READ, self._obey)
        while True:
            self._plant.advance()
            self._share()
            for key, _ in self._selector.select(TICK):
                if not key.data():
                    return

    def _serve(self) -> bool:
        if self._link.fd is None:  # a command that came together with the data has unplugged it
            return True
        try:
            data = os.read(self._link.fd, 4096)
        except BlockingIOError:  # ... and plugged it in again
            return True
        answers = self._bus.feed(data, self._link.baud)
        delay = self._latency + self._stall
        if self._baud:
            delay += (len(data) + len(answers)) * BITS_PER_BYTE / self._baud
        self._stall = 0.0
        if delay:
            time.sleep(delay)
        if answers:
            with contextlib.suppress(BlockingIOError):  # nobody reads: lost, as on a wire
                os.write(self._link.fd, answers)
        return True

    def _obey(self) -> bool:
        data = os.read(0, 4096)
        self._commands += data
        *lines, self._commands = self._commands.split(b"\n")
        for line in lines:
            try:
                self.command(Command.parse(line.decode(errors="replace").split()))
            except ValueError as error:
                print(f"emulator: {error}", file=sys.stderr)
        return bool(data)

    def command(self, command: Command) -> None:
        """Raises ValueError when it cannot be done now."""
        servos = [self._bus.servos[i] for i in command.servos]
        match command.name:
            case "reset":
                self._plant.reset()
                self._shared_at = float("-inf")
            case "unplug" if self._link.fd is not None:
                self._selector.unregister(self._link.fd)
                self._link.unplug()
            case "plug" if self._link.fd is None:
                self._link.plug()
                self._selector.register(self._link.fd, selectors.EVENT_READ, self._serve)
            case "stall":
                self._stall = command.value
            case "drop":
                self._bus.drop = command.value
            case "corrupt":
                self._bus.corrupt = command.value
            case "mute" | "unmute":
                for servo in servos:
                    servo.mute = command.name == "mute"
            case "stuck" | "free":
                for servo in servos:
                    servo.stuck = command.name == "stuck"
            case "overheat" | "cool":
                for servo in servos:
                    servo.forced_celsius = command.value
            case "sag":
                for servo in self._bus.servos:
                    servo.supply = command.value
            case "power_cycle":
                for servo in self._bus.servos:
                    servo.power_cycle()
            case _:
                raise ValueError(f"cannot do '{command.name}' now")

    def _share(self) -> None:
        now = time.monotonic()
        if self._shared is None or now - self._shared_at < TICK / 2:
            return
        self._shared_at = now
        self._sequence += 1
        counters = self._bus.counters
        counts = (counters.goal_writes, counters.packets, self._plant.resets)
        self._shared.write(Snapshot(self._sequence, now, *counts, self._plant.qpos))


def make_servos(calibration: Calibration, calibrated: bool = True) -> list[Servo]:
    """Six servos; with ``calibrated`` they hold the calibration in their memory, else factory values."""
    servos = [Servo(i) for i in range(1, 1 + len(calibration.offset))]
    if calibrated:
        rows = zip(servos, calibration.offset, calibration.lower, calibration.upper, strict=True)
        for servo, offset, low, high in rows:
            servo["Homing_Offset"] = offset
            servo["Min_Position_Limit"] = low
            servo["Max_Position_Limit"] = high
    return servos


def make_plant(
    kind: str, scene: Path | None, calibration: Calibration, servos: Sequence[Servo], seed: int | None
) -> Plant:
    """Raises ValueError when the file ``scene`` cannot be simulated."""
    if kind == "first_order":
        from smolvla_mem_ros.sim.first_order_plant import FirstOrderPlant

        return FirstOrderPlant(calibration, servos, time.monotonic)
    # Imported late: MuJoCo takes longer to load than everything else here.
    from smolvla_mem_ros.sim.arm_plant import ArmPlant
    from smolvla_mem_ros.sim.scene import TABLETOP, Scene

    return ArmPlant(Scene(scene or TABLETOP), calibration, servos, time.monotonic, seed)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"emulator: {message} (see --help)\n")


def at_least_zero(word: str) -> float:
    """An argument that is a number, 0 or more."""
    try:
        return commands.parse_number(word, 0, float("inf"), "it must be")
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from error


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m smolvla_mem_ros.sim.emulator",
        description=__doc__.splitlines()[0],
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=Path, required=True, help="path of the link that programs open")
    parser.add_argument("--model", choices=MODELS, default="so100", help="which arm (default: so100)")
    parser.add_argument("--calibration", type=Path, help="LeRobot's calibration file (default: the model's)")
    parser.add_argument(
        "--plant",
        choices=("mujoco", "first_order"),
        default="mujoco",
        help="what the servos move: the arm among things, or each joint for itself, without a scene, light",
    )
    parser.add_argument("--scene", type=Path, help="MuJoCo file (default: the tabletop's)")
    parser.add_argument(
        "--latency-us", type=at_least_zero, default=0, help="before an answer (USB: 200-1000)"
    )
    parser.add_argument(
        "--baud", type=at_least_zero, default=0, help="pace of the wire, really 1000000; 0: no limit"
    )
    parser.add_argument("--seed", type=int, help="where blocks lie, and which answers are lost or wrong")
    parser.add_argument("--uncalibrated", action="store_true", help="the servos' memory is the factory's")
    parser.add_argument("--state-fd", type=int, help="inherited file descriptor to share the state through")
    parser.add_argument("--goals", type=Path, help="file that gets a line for each goal: time (s), six ticks")
    parser.add_argument("--control", action="store_true", help="obey standard input; end when it closes")
    commands.add_options(parser.add_argument_group("faults from the start"))
    options = parser.parse_args(arguments)
    if options.scene and options.plant != "mujoco":
        parser.error(f"--scene needs --plant mujoco, not {options.plant}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 after a signal or the end of the control input, 2 when it cannot start."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Under control, Ctrl-C in the terminal is the owner's business, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN if options.control else lambda *_: sys.exit(0))
    try:
        faults = commands.from_options(options)
        path = options.calibration or share_path(f"config/calibration/{options.model}_sim.json")
        calibration = Calibration.load(path)
        servos = make_servos(calibration, not options.uncalibrated)
        plant = make_plant(options.plant, options.scene, calibration, servos, options.seed)
        goals = options.goals.open("w") if options.goals else None
        link = SerialLink(options.port)
    except (CalibrationError, PortInUse, ValueError) as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"emulator: cannot offer {options.port} ({error.strerror or error})", file=sys.stderr)
        return 2
    try:
        bus = ServoBus(servos, plant.advance, seed=options.seed or 0)
        shared = None if options.state_fd is None else SharedState(options.state_fd)
        if goals is not None:
            bus.on_goals = lambda: print(time.monotonic(), *(s["Goal_Position"] for s in servos), file=goals)
        emulator = Emulator(link, bus, plant, shared, options.latency_us * 1e-6, options.baud)
        name = options.model.upper().replace("SO", "SO-")
        print(f"emulator: an {name} is at {options.port} ({link.device})", flush=True)
        for fault in faults:
            emulator.command(fault)
        emulator.run(options.control)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        link.close()
        if goals is not None:
            goals.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
