# SPDX-License-Identifier: Apache-2.0
"""The control loop: one thread that owns the driver and the follower, and keeps both going."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np

from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig
from smolvla_mem_ros.so100.driver import ArmError, ArmState
from smolvla_mem_ros.so100.follower import Trajectory, TrajectoryFollower, TrajectoryRejected

RETRY_PERIOD = 1.0  # s between two attempts to reach the arm
IDLE_PERIOD = 0.02  # s between two looks at the queue while there is no arm
RATE_WINDOW = 1.0  # s over which the loop's rate is measured
REPEAT_REJECTION = 5.0  # s after which the same reason for a rejection is told again

DISCONNECTED, HOLDING, MOVING, STOPPED, LIMP = "disconnected", "holding", "moving", "stopped", "torque off"


class Driver(Protocol):
    """What the loop needs of :class:`smolvla_mem_ros.so100.driver.So100Driver`; see there."""

    limits: tuple[np.ndarray, np.ndarray]
    repeated_reads: int

    def connect(self) -> None: ...
    def engage(self) -> np.ndarray: ...
    def release(self) -> None: ...
    def read(self) -> ArmState: ...
    def write(self, position: np.ndarray) -> None: ...
    def close(self, torque_off: bool) -> None: ...


@dataclass(frozen=True)
class LoopStatus:
    """How the loop does; a new value after each cycle."""

    state: str = DISCONNECTED
    last_error: str = ""
    loop_rate: float = math.nan  # Hz, cycles with the arm in the last second
    missed_cycles: int = 0
    writes: int = 0
    accepted: int = 0
    rejected: int = 0
    last_rejection: str = ""
    clamped: int = 0  # cycles in which a limit changed the command
    timeouts: int = 0  # how often no new trajectory came within command_timeout
    connections: int = 0
    repeated_reads: int = 0

    @property
    def connected(self) -> bool:
        return self.state != DISCONNECTED


@dataclass
class _Arm:
    """What exists only while the arm is connected."""

    driver: Driver
    follower: TrajectoryFollower
    last_end: float | None = (
        None  # s, when the last trajectory ended; None while it runs, and after the timeout
    )
    timed_out: bool = True


class _Disconnected(Exception):
    pass


@dataclass
class ArmLoop:
    """Reads, follows and writes at a fixed rate; survives the arm's absence and says why.

    ``start`` and ``stop`` belong to the owner. ``submit`` and ``request`` may be called from any thread, and
    ``status`` read from any. The callbacks are called in the loop's thread and must return soon.

    Args:
        driver: not connected yet.
        config: limits and rules of the follower; narrowed to the calibrated range on connection.
        rate: Hz.
        command_timeout: s after a trajectory's end; if no other has come by then, the arm holds where it is
            measured. 0 for never.
        torque_off_at_end: whether ``stop`` lets go of the arm.
        dry_run: read and follow, but write nothing and leave torque alone.
        on_state: gets each measurement.
        on_event: gets (``info``, ``warn`` or ``error``; text), once per occurrence.
        clock: s, the monotonic clock of ArmState and of trajectories' starts.
    """

    driver: Driver
    config: ArmConfig
    rate: float
    command_timeout: float
    torque_off_at_end: bool
    dry_run: bool
    on_state: Callable[[ArmState], None]
    on_event: Callable[[str, str], None]
    clock: Callable[[], float] = time.monotonic
    status: LoopStatus = field(default_factory=LoopStatus, init=False)

    def __post_init__(self) -> None:
        self._inbox: SimpleQueue[tuple[object, Future | None]] = SimpleQueue()
        self._ending = threading.Event()
        self._stopped = False  # emergency stop
        self._torque = True
        self._told_rejection = ("", -math.inf)
        self._thread = threading.Thread(target=self._run, name="so100 loop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 0.9) -> bool:
        """Ends the loop, with the arm held or let go. False if that takes longer than ``timeout`` s."""
        self._ending.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(self, trajectory: Trajectory) -> None:
        """Hands a trajectory over; it is taken or rejected in the next cycle."""
        self._inbox.put((trajectory, None))

    def request(self, command: str) -> Future:
        """``stop``, ``clear``, ``enable`` or ``disable``.

        Returns:
            A future of what was done, in words. Its exception, an ArmError, says why it was not.
        """
        future: Future = Future()
        self._inbox.put((command, future))
        return future

    # The thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                try:
                    self._with_arm(self._connect())
                except ArmError as error:
                    self._lost(str(error))
                except Exception as error:  # a defect, but the arm must not stay without a loop because of it
                    self._lost(f"{type(error).__name__} in the control loop: {error}")
        finally:
            self._refuse_all("the node is ending")

    def _lost(self, cause: str) -> None:
        if cause != self.status.last_error or self.status.connected:
            self.on_event("error", f"{cause}. Trying again every {RETRY_PERIOD:g} s.")
        self._update(state=DISCONNECTED, last_error=cause, loop_rate=math.nan)
        self.driver.close(False)
        self._without_arm(self.clock() + RETRY_PERIOD)

    def _without_arm(self, until: float) -> None:
        while self.clock() < until and not self._ending.wait(IDLE_PERIOD):
            self._refuse_all(f"the arm is not connected: {self.status.last_error}")

    def _connect(self) -> _Arm:
        self.driver.connect()
        held = self.driver.engage() if self._torque and not self.dry_run else self.driver.read().position
        try:
            config = self.config.within(*self.driver.limits)
        except ValueError as error:
            raise ArmError(
                f"the position limits do not meet the calibrated ranges ({error}); change them"
            ) from error
        follower = TrajectoryFollower(config, held, self.clock())
        self._update(state=self._resting_state(), connections=self.status.connections + 1)
        if self.dry_run:
            self.on_event("info", "connected; a dry run: nothing will be written")
        else:
            self.on_event(
                "info", "connected and holding still" if self._torque else "connected, torque is off"
            )
        outside = (held < config.lower) | (held > config.upper)
        if outside.any():
            names = ", ".join(joint for joint, out in zip(JOINTS, outside, strict=True) if out)
            self.on_event(
                "warn", f"{names} beyond its limits; the first trajectory will bring it back inside"
            )
        return _Arm(self.driver, follower)

    def _with_arm(self, arm: _Arm) -> None:
        """Cycles until the end; raises ArmError when the arm is lost."""
        period = 1 / self.rate
        due = self.clock()
        counted_from, cycles = due, 0
        while not self._ending.is_set():
            self._cycle(arm)
            cycles += 1
            now = self.clock()
            due += period
            if now > due:
                missed = int((now - due) / period)
                due += missed * period
                self._update(missed_cycles=self.status.missed_cycles + missed)
            if now - counted_from >= RATE_WINDOW:
                self._update(loop_rate=cycles / (now - counted_from))
                counted_from, cycles = now, 0
            time.sleep(max(0.0, due - now))
        self.driver.close(self.torque_off_at_end and self._torque and not self.dry_run)

    def _cycle(self, arm: _Arm) -> None:
        state = arm.driver.read()
        self._take_messages(arm, state)
        now = self.clock()
        sample = arm.follower.sample(now)
        if self._torque and not self.dry_run:
            arm.driver.write(sample.position)
            self._update(writes=self.status.writes + 1)
        if sample.moving:
            arm.last_end, arm.timed_out = None, False
        elif not arm.timed_out:
            arm.last_end = now if arm.last_end is None else arm.last_end
            if 0 < self.command_timeout < now - arm.last_end:
                self._hold(arm, state.position)
                self._update(timeouts=self.status.timeouts + 1)
                self.on_event("info", f"no new trajectory for {self.command_timeout:g} s, holding still")
        self._update(
            state=MOVING if sample.moving else self._resting_state(),
            clamped=self.status.clamped + sample.clamped,
            repeated_reads=arm.driver.repeated_reads,
        )
        self.on_state(state)

    def _hold(self, arm: _Arm, position: np.ndarray) -> None:
        arm.follower.hold(position, self.clock())
        arm.timed_out = True

    def _resting_state(self) -> str:
        if not self._torque:
            return LIMP
        return STOPPED if self._stopped else HOLDING

    # Messages -----------------------------------------------------------------------------------

    def _take_messages(self, arm: _Arm, state: ArmState) -> None:
        for message, future in self._messages():
            if isinstance(message, Trajectory):
                self._take_trajectory(arm, message)
                continue
            try:
                future.set_result(self._obey(message, arm, state))
            except ArmError as error:
                future.set_exception(error)
                raise

    def _take_trajectory(self, arm: _Arm, trajectory: Trajectory) -> None:
        try:
            if self._stopped:
                raise TrajectoryRejected("emergency stop; call ~/clear_emergency_stop first")
            if not self._torque:
                raise TrajectoryRejected("torque is off; call ~/enable first")
            arm.follower.accept(trajectory, self.clock())
        except TrajectoryRejected as error:
            self._reject(str(error))
        else:
            self._update(accepted=self.status.accepted + 1)

    def _reject(self, reason: str) -> None:
        self._update(rejected=self.status.rejected + 1, last_rejection=reason)
        told, at = self._told_rejection
        now = self.clock()
        if reason != told or now - at > REPEAT_REJECTION:
            self._told_rejection = (reason, now)
            self.on_event("warn", f"trajectory rejected: {reason}")

    def _obey(self, command: str, arm: _Arm | None, state: ArmState | None) -> str:
        """What was done, in words. ``arm`` and ``state`` are None without an arm."""
        if command == "stop":
            self._stopped = True
            if arm is not None:
                self._hold(arm, state.position)
            return "stopped; trajectories are rejected until ~/clear_emergency_stop"
        if command == "clear":
            self._stopped = False
            return "trajectories are accepted again"
        if self.dry_run:
            return "nothing done: this is a dry run"
        if arm is None:
            raise ArmError(f"the arm is not connected: {self.status.last_error}")
        if command == "enable":
            if not self._torque:
                held = arm.driver.engage()
                self._torque = True
                self._hold(arm, held)
            return "torque is on, the arm holds still"
        self._hold(arm, state.position)
        self._torque = False
        arm.driver.release()
        return "torque is off, the arm sinks unless it is supported"

    def _refuse_all(self, reason: str) -> None:
        for message, future in self._messages():
            if isinstance(message, Trajectory):
                self._reject(reason)
                continue
            try:
                future.set_result(self._obey(message, None, None))
            except ArmError as error:
                future.set_exception(error)

    def _messages(self):
        while True:
            try:
                yield self._inbox.get_nowait()
            except Empty:
                return

    def _update(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)
