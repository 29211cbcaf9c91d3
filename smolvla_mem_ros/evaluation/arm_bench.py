# SPDX-License-Identifier: Apache-2.0
"""An arm to measure with: the emulator's process, LeRobot's driver with a record of its writes, the loop."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smolvla_mem_ros.share import share_path
from smolvla_mem_ros.sim.emulator_process import EmulatorProcess
from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig, Calibration
from smolvla_mem_ros.so100.driver import ArmState, So100Driver
from smolvla_mem_ros.so100.loop import ArmLoop

RATE = 100.0  # Hz
READY = 20.0  # s
CALIBRATION = "config/calibration/so100_sim.json"
# A wire of 1 Mbaud behind a USB adapter that takes 1 ms; each joint moves for itself.
EMULATOR = ("--plant=first_order", "--baud=1000000", "--latency-us=1000")


class SampleClock:
    """``time.monotonic()``, and what it told last: for a write, the moment that its position is meant for."""

    last = float("nan")

    def __call__(self) -> float:
        self.last = time.monotonic()
        return self.last


@dataclass(frozen=True)
class Write:
    """A goal that went to the servos.

    Args:
        time: s, the moment that the position is meant for.
        done: s, when it was written.
        position: (6,) rad, as the loop gave it.
        measured: (6,) rad, as the driver read it last.
        engagement: counts how often torque was switched on; the arm begins anew each time.
        accepted: how many trajectories had been taken by then.
    """

    time: float
    done: float
    position: np.ndarray
    measured: np.ndarray
    engagement: int
    accepted: int


class RecordingDriver(So100Driver):
    """LeRobot's driver as the loop uses it; it notes each state and each write.

    ``writes`` and ``states`` are appended to by the loop's thread; others may read what is there.
    """

    def __init__(self, port: str, calibration: Path, clock: SampleClock) -> None:
        super().__init__(port, calibration)
        self._clock = clock
        self._engagement = 0
        self.loop: ArmLoop | None = None
        self.writes: list[Write] = []
        self.states: list[ArmState] = []

    def engage(self) -> np.ndarray:
        self._engagement += 1
        return super().engage()

    def read(self) -> ArmState:
        self.states.append(super().read())
        return self.states[-1]

    def write(self, position: np.ndarray) -> None:
        at = self._clock.last
        try:
            super().write(position)
        finally:  # one that failed may have gone out all the same
            done = time.monotonic()
            measured, accepted = self.states[-1].position, self.loop.status.accepted
            self.writes.append(Write(at, done, position.copy(), measured, self._engagement, accepted))


@dataclass(frozen=True)
class Bench:
    """What ``running_arm`` gives.

    Args:
        config: the limits, narrowed to the calibrated ranges.
        events: (level, text) that the loop has told.
    """

    emulator: EmulatorProcess
    driver: RecordingDriver
    loop: ArmLoop
    config: ArmConfig
    events: list[tuple[str, str]]

    @property
    def exceptions(self) -> list[str]:
        """What the loop told of defects, which it survives."""
        return [text for _, text in self.events if " in the control loop: " in text]

    def wait_connected(self) -> None:
        """Raises RuntimeError with the loop's reason when the arm cannot be used."""
        deadline = time.monotonic() + READY
        while not (self.loop.status.connected and self.driver.writes):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the emulated arm is not connected: {self.loop.status.last_error}")
            time.sleep(0.01)


@contextmanager
def running_arm(seed: int, kind: type[RecordingDriver] = RecordingDriver) -> Iterator[Bench]:
    """An emulated arm whose loop runs at RATE and holds still."""
    calibration = share_path(CALIBRATION)
    config = ArmConfig().within(*Calibration.load(calibration).range)
    clock, events = SampleClock(), []
    with tempfile.TemporaryDirectory(prefix="smolvla_mem_ros_") as folder:
        port = Path(folder) / "ttySO100"
        with EmulatorProcess(port, calibration, *EMULATOR, f"--seed={seed}") as emulator:
            emulator.wait_ready()
            driver = kind(str(port), calibration, clock)
            loop = driver.loop = ArmLoop(
                driver,
                config,
                rate=RATE,
                command_timeout=1.0,
                torque_off_at_end=True,
                dry_run=False,
                on_state=lambda state: None,
                on_event=lambda level, text: events.append((level, text)),
                clock=clock,
            )
            loop.start()
            # The collector would walk the growing record, for up to half a second, and the loop stand still.
            # A node keeps no record.
            gc.disable()
            try:
                bench = Bench(emulator, driver, loop, config, events)
                bench.wait_connected()
                yield bench
            finally:
                gc.enable()
                loop.stop(5.0)


def by_joint(values: np.ndarray, digits: int = 3) -> dict[str, float]:
    """(6,) by the joints' names."""
    return {joint: round(float(value), digits) for joint, value in zip(JOINTS, values, strict=True)}
