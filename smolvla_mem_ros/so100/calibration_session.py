# SPDX-License-Identifier: Apache-2.0
"""An arm's calibration while it is being made: nothing is lost until the new one is kept."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from lerobot.robots.so_follower import SOFollower, SOFollowerRobotConfig

from smolvla_mem_ros.so100.arm import JOINTS, Calibration
from smolvla_mem_ros.so100.driver import BUS_ERRORS, ArmError, check_port, explain, free, open_bus

PATIENCE = 500.0  # ms that an answer may take
TRIES = 3  # of LeRobot's reads and writes, beyond the first


class CalibrationSession:
    """LeRobot's own calibration, with a way back. Use it with ``with``; it belongs to one thread.

    LeRobot writes into a temporary folder beside the file. ``keep`` puts the result in the file's place.
    Without it the servos get back what they held before. Either way torque is off and the port closed at
    the end, unless nothing was changed: then torque is left as it was.

    Args:
        port: serial device.
        path: LeRobot's file ``<calibration_dir>/<id>.json``.

    Attributes:
        whole: at the end, whether torque is off and the servos hold the old calibration, or the one kept.
        changed: whether anything was written to the servos.

    Raises:
        ArmError: no such port, it may not be opened, servos do not answer.
        OSError: the file's folder cannot be written.
    """

    def __init__(self, port: str, path: Path) -> None:
        self._port, self._path = port, path
        self.whole, self.changed = True, False

    def __enter__(self) -> CalibrationSession:
        check_port(self._port)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=self._path.parent, prefix=f".{self._path.stem}.")
        self._robot = SOFollower(
            SOFollowerRobotConfig(
                port=self._port, id=self._path.stem, calibration_dir=Path(self._folder.name)
            )
        )
        self._bus = self._robot.bus
        # LeRobot waits 50 ms, and its calibrate() gives up at the first answer that comes later. No motion
        # depends on it here.
        self._bus.port_handler.setPacketTimeout = self._wait_patiently
        self._kept = False
        try:
            open_bus(self._bus)
            self._serial = self._bus.port_handler.ser
            self._before = self._bus.read_calibration()
        except BUS_ERRORS as error:
            text = explain(self._bus, error)
            self._close()
            raise ArmError(text) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.changed:
            self._serial_is_free()
            self.whole = self._leave_whole()
        self._close()

    def calibrate(self) -> Calibration:
        """LeRobot's ``calibrate()``, which talks to the terminal. May be called again.

        Raises:
            ArmError: the servos do not answer any more.
            ValueError: a joint was not moved at all, or stood where a servo cannot take its middle.
        """
        self._robot.calibration = {}  # otherwise it asks whether to use what was recorded before
        self.changed = True
        with self._bus_errors():
            self._robot.calibrate()
        return Calibration.load(self._robot.calibration_fpath)

    def write(self) -> None:
        """Puts the file into the servos, torque off. Raises ArmError also when they do not take it."""
        self._robot._load_calibration(self._path)
        self.changed = True
        with self._bus_errors():
            # Torque first: it unlocks the servo's memory, and an arm that is held would jump.
            self._bus.disable_torque(num_retry=TRIES)
            self._bus.write_calibration(self._robot.calibration)
            if not self._bus.is_calibrated:
                raise ConnectionError("the servos do not keep what is written to them")
        self._kept = True

    def positions(self) -> np.ndarray:
        """(6,) ticks after the offset. Raises ArmError."""
        with self._bus_errors():
            self._serial.reset_input_buffer()
            ticks = self._bus.sync_read("Present_Position", normalize=False, num_retry=TRIES)
        return np.array([ticks[joint] for joint in JOINTS])

    def keep(self) -> Path | None:
        """Puts the new file in place; what was there is copied first. Returns the copy's path, if any."""
        backup = None
        if self._path.exists():
            backup = self._path.with_name(f"{self._path.name}.{time.strftime('%Y-%m-%d_%H%M%S')}.bak")
            shutil.copy2(self._path, backup)
        with self._robot.calibration_fpath.open() as file:
            os.fsync(file.fileno())
        os.replace(self._robot.calibration_fpath, self._path)
        self._kept = True
        return backup

    def _wait_patiently(self, _packet_length: int) -> None:
        handler = self._bus.port_handler
        handler.packet_start_time, handler.packet_timeout = handler.getCurrentTime(), PATIENCE

    def _leave_whole(self) -> bool:
        """Torque off, and the calibration from the beginning unless another was kept. Whether it worked."""
        try:
            self._bus.disable_torque(num_retry=TRIES)
            if self._kept:
                return True
            self._bus.write_calibration(self._before)
            return self._bus.is_calibrated
        except BUS_ERRORS:
            return False

    def _serial_is_free(self) -> None:
        free(self._bus)
        with contextlib.suppress(*BUS_ERRORS):
            self._serial.reset_input_buffer()

    @contextlib.contextmanager
    def _bus_errors(self):
        try:
            yield
        except BUS_ERRORS as error:
            self._serial_is_free()
            raise ArmError(explain(self._bus, error)) from error

    def _close(self) -> None:
        # Not disconnect(): it gives up before the port is closed when a servo does not answer.
        if self._bus.is_connected:
            with contextlib.suppress(*BUS_ERRORS):
                self._bus.port_handler.closePort()
            self._bus.port_handler.is_open = False
        self._folder.cleanup()
