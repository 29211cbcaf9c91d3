# SPDX-License-Identifier: Apache-2.0
"""The control loop: one thread that owns the driver and the follower, and keeps both going."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from textwrap import shorten
from typing import Protocol

import numpy as np

from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig
from smolvla_mem_ros.so100.driver import ArmError, ArmState
from smolvla_mem_ros.so100.follower import Trajectory, TrajectoryFollower, TrajectoryRejected, check
from smolvla_mem_ros.so100.goals import Code, Ending, Goal
from smolvla_mem_ros.so100.health import Following, Servos
from smolvla_mem_ros.so100.requests import (
    CancelGoal,
    ClearEmergencyStop,
    EmergencyStop,
    Request,
    SpeedScaling,
    SwitchTorque,
)
from smolvla_mem_ros.so100.scheduling import schedule

RETRY_PERIOD = 0.25  # s between two attempts to reach the arm
IDLE_PERIOD = 0.02  # s between two looks at the queue while there is no arm
RATE_WINDOW = 1.0  # s over which the loop's rate is measured
JITTER_PERIODS = 1000  # the latest, of which the jitter is told
OUTSIDE_MARGIN = 0.1  # rad; an arm further beyond its limits is not started
LONGEST_REASON = 300  # characters of a rejection that are told; a message may name joints of any length
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
    period_jitter_p99: float = math.nan  # share of the period; 99 % of the latest periods are off by less
    missed_cycles: int = 0
    writes: int = 0
    accepted: int = 0
    rejected: int = 0
    last_rejection: str = ""
    clamped: int = 0  # cycles in which a limit changed the command
    timeouts: int = 0  # how often no new trajectory came within command_timeout
    connections: int = 0
    repeated_reads: int = 0
    servos: Servos | None = None  # as last read
    problems: tuple[str, ...] = ()  # of the servos, in words

    @property
    def connected(self) -> bool:
        return self.state != DISCONNECTED


class ArmOutside(ArmError):
    """The arm is beyond its limits; the text says what to do."""


@dataclass
class _Arm:
    """What exists only while the arm is connected."""

    driver: Driver
    follower: TrajectoryFollower
    last_end: float | None = (
        None  # s, when the last trajectory ended; None while it runs, and after the timeout
    )
    timed_out: bool = True
    problems: set[str] = field(default_factory=set)
    following: Following = field(default_factory=Following)


@dataclass
class ArmLoop:
    """Reads, follows and writes at a fixed rate; survives the arm's absence and says why.

    ``start`` and ``stop`` belong to the owner. ``submit``, ``refusal`` and ``request`` may be called from any
    thread, and ``status`` read from any. The callbacks are called in the loop's thread and must return soon.

    Args:
        driver: not connected yet.
        config: limits and rules of the follower; narrowed to the calibrated range on connection.
        rate: Hz.
        command_timeout: s after a trajectory's end; if no other has come by then, the arm holds where it is
            measured. 0 for never.
        torque_off_at_end: whether ``stop`` lets go of the arm.
        dry_run: read and follow, but write nothing and leave torque alone.
        stop_asked: looked at in every cycle; once it is true the loop ends, as by ``stop``.
        realtime_priority: SCHED_FIFO's, 1 to 99, for the loop's thread; 0 leaves it to the system.
        cpu: the processor that the loop's thread keeps to; None for any.
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
    stop_asked: Callable[[], bool] = lambda: False
    realtime_priority: int = 0
    cpu: int | None = None
    clock: Callable[[], float] = time.monotonic
    status: LoopStatus = field(default_factory=LoopStatus, init=False)

    def __post_init__(self) -> None:
        self._inbox: SimpleQueue[tuple[object, Future | None]] = SimpleQueue()
        self._ending = threading.Event()
        self._stopped = False  # emergency stop
        self._torque = True
        self._goal: Goal | None = None  # that is followed now
        self._told_rejection = ("", -math.inf)
        self._told_causes: set[str] = set()  # since the arm was there
        self._thread = threading.Thread(target=self._run, name="so100 loop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 0.9) -> bool:
        """Ends the loop, with the arm held or let go. False if that takes longer than ``timeout`` s."""
        self._ending.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(self, what: Trajectory | Goal) -> None:
        """Hands a trajectory over; it is taken or rejected in the next cycle. Another goal's ends with it."""
        self._inbox.put((what, None))

    def refusal(self, trajectory: Trajectory) -> str | None:
        """Why a trajectory would not be taken at this moment."""
        try:
            self._check_ready()
            check(trajectory, self.config, self.clock())
        except TrajectoryRejected as error:
            return str(error)
        return None

    def request(self, request: Request) -> Future:
        """Asks for something else. One whose future is cancelled before the loop gets to it is not done.

        Returns:
            A future of what was done, in words. Its exception, an ArmError, says why it was not.

        Raises:
            TypeError: it is no request.
        """
        if not isinstance(request, Request):
            raise TypeError(f"the loop knows no request {request!r}")
        future: Future = Future()
        self._inbox.put((request, future))
        return future

    # The thread ---------------------------------------------------------------------------------

    def _ends(self) -> bool:
        return self._ending.is_set() or self.stop_asked()

    def _run(self) -> None:
        for problem in schedule(self.realtime_priority, self.cpu):
            self.on_event("warn", problem)
        try:
            while not self._ends():
                try:
                    self._with_arm(self._connect())
                except ArmError as error:
                    self._lost(str(error))
                except Exception as error:  # a defect, but the arm must not stay without a loop because of it
                    self._lost(f"{type(error).__name__} in the control loop: {error}")
        finally:
            self._end_goal(Ending("the node is ending"))
            self._refuse_all("the node is ending")

    def _lost(self, cause: str) -> None:
        if cause not in self._told_causes:
            self._told_causes.add(cause)
            self.on_event("error", f"{cause}. Trying again every {RETRY_PERIOD:g} s.")
        self._update(state=DISCONNECTED, last_error=cause, loop_rate=math.nan, problems=())
        self._end_goal(Ending(f"the arm was lost: {cause}"))
        self.driver.close(False)
        self._without_arm(self.clock() + RETRY_PERIOD)

    def _without_arm(self, until: float) -> None:
        while self.clock() < until and not self._ends():
            self._ending.wait(IDLE_PERIOD)
            self._refuse_all(f"the arm is not connected: {self.status.last_error}")

    def _connect(self) -> _Arm:
        self.driver.connect()
        try:
            config = self.config.within(*self.driver.limits)
        except ValueError as error:
            raise ArmError(
                f"the position limits do not meet the calibrated ranges ({error}); change them"
            ) from error
        held = self.driver.read().position
        if self._torque and not self.dry_run:
            _check_inside(held, config)
            held = self.driver.engage()
        follower = TrajectoryFollower(config, held, self.clock())
        self._told_causes.clear()
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
        due = began = self.clock()
        counted_from, cycles = due, 0
        periods: deque[float] = deque(maxlen=JITTER_PERIODS)
        while not self._ends():
            before, began = began, self.clock()
            periods.append(began - before)
            self._cycle(arm)
            cycles += 1
            now = self.clock()
            due += period
            if now > due:
                missed = int((now - due) / period)
                due += missed * period
                self._update(missed_cycles=self.status.missed_cycles + missed)
            if now - counted_from >= RATE_WINDOW:
                jitter = np.abs(np.array(periods)[1:] / period - 1)
                self._update(
                    loop_rate=cycles / (now - counted_from),
                    period_jitter_p99=float(np.percentile(jitter, 99)),
                )
                counted_from, cycles = now, 0
            time.sleep(max(0.0, due - now))
        if self._torque and not self.dry_run:
            # It stays where it is, also if nobody lets go of it.
            arm.driver.write(arm.driver.read().position)
        self.driver.close(self.torque_off_at_end and self._torque and not self.dry_run)

    def _cycle(self, arm: _Arm) -> None:
        state = arm.driver.read()
        self._hold_what_is_limp(arm, state)
        self._watch_goal(arm, state)
        self._take_messages(arm, state)
        now = self.clock()
        sample = arm.follower.sample(now)
        if self._torque and not self.dry_run:
            arm.driver.write(sample.position)
            self._update(writes=self.status.writes + 1)
        if sample.moving:
            arm.last_end, arm.timed_out = None, False
        elif not (arm.timed_out or arm.follower.waiting or self._goal):
            arm.last_end = now if arm.last_end is None else arm.last_end
            if 0 < self.command_timeout < now - arm.last_end:
                self._hold(arm, state.position)
                self._update(timeouts=self.status.timeouts + 1)
                self.on_event("info", f"no new trajectory for {self.command_timeout:g} s, holding still")
        problems = state.servos.problems if state.servos else []
        if self._torque and not self.dry_run:
            problems += arm.following.problems(sample.position, state.position, now)
        self._update(
            state=MOVING if sample.moving else self._resting_state(),
            clamped=self.status.clamped + sample.clamped,
            repeated_reads=arm.driver.repeated_reads,
            servos=state.servos,
            problems=tuple(problems),
        )
        self._tell_problems(arm, set(problems))
        self.on_state(state)

    def _tell_problems(self, arm: _Arm, problems: set[str]) -> None:
        """Each once, when it begins and when it is over."""
        for problem in sorted(problems - arm.problems):
            self.on_event("warn", problem)
        for problem in sorted(arm.problems - problems):
            self.on_event("info", f"over: {problem}")
        arm.problems = problems

    def _hold(self, arm: _Arm, position: np.ndarray) -> None:
        arm.follower.hold(position, self.clock())
        arm.timed_out = True

    def _hold_what_is_limp(self, arm: _Arm, state: ArmState) -> None:
        """A joint that its servo has let go of is told to be where it is measured, so that it does not jump
        when the servo comes back. The others stay where they were when it let go."""
        if not _limp(state.servos):
            return
        told = arm.follower.last.position if _limp(self.status.servos) else state.position
        self._hold(arm, np.where(state.servos.limp, state.position, told))
        self._end_goal(Ending("; ".join(state.servos.limp_because)))

    def _stop_motion(self, arm: _Arm | None, state: ArmState | None, ending: Ending) -> None:
        if arm is not None:
            self._hold(arm, state.position)
        self._end_goal(ending)

    def _watch_goal(self, arm: _Arm, state: ArmState) -> None:
        """A goal that is missed is given up, and the arm held where it is measured, as JTC does."""
        if self._goal is None or arm.follower.waiting:
            return
        if ending := self._goal.judge(arm.follower.last, state):
            if ending.code is not Code.SUCCESSFUL:
                self._hold(arm, state.position)
            self._end_goal(ending)

    def _end_goal(self, ending: Ending) -> None:
        if self._goal is not None:
            self._goal.ended.set_result(ending)
            self._goal = None

    def _resting_state(self) -> str:
        if not self._torque:
            return LIMP
        return STOPPED if self._stopped else HOLDING

    # Messages -----------------------------------------------------------------------------------

    def _take_messages(self, arm: _Arm, state: ArmState) -> None:
        for message, future in self._messages():
            if isinstance(message, Trajectory | Goal):
                self._take_trajectory(arm, message)
                continue
            try:
                future.set_result(self._obey(message, arm, state))
            except ArmError as error:
                future.set_exception(error)
                if not isinstance(error, ArmOutside):
                    raise

    def _check_ready(self) -> None:
        if not self.status.connected:
            raise TrajectoryRejected(f"the arm is not connected: {self.status.last_error}")
        if self._stopped:
            raise TrajectoryRejected("emergency stop; call ~/clear_emergency_stop first")
        if not self._torque:
            raise TrajectoryRejected("torque is off; call ~/enable first")
        if _limp(self.status.servos):
            raise TrajectoryRejected("; ".join(self.status.servos.limp_because))

    def _take_trajectory(self, arm: _Arm, what: Trajectory | Goal) -> None:
        goal = what if isinstance(what, Goal) else None
        trajectory = goal.trajectory if goal else what
        try:
            self._check_ready()
            begin = arm.follower.accept(trajectory, self.clock())
        except TrajectoryRejected as error:
            self._reject(what, str(error))
            return
        self._update(accepted=self.status.accepted + 1)
        self._end_goal(Ending(f"another {'goal' if goal else 'trajectory'} took over"))
        if goal:
            goal.begun = begin
        self._goal = goal

    def _reject(self, what: Trajectory | Goal, reason: str) -> None:
        if isinstance(what, Goal):
            what.ended.set_result(Ending(reason))
        reason = shorten(reason, LONGEST_REASON, placeholder=" ...")
        self._update(rejected=self.status.rejected + 1, last_rejection=reason)
        told, at = self._told_rejection
        now = self.clock()
        if reason != told or now - at > REPEAT_REJECTION:
            self._told_rejection = (reason, now)
            self.on_event("warn", f"trajectory rejected: {reason}")

    def _obey(self, request: Request, arm: _Arm | None, state: ArmState | None) -> str:
        """What was done, in words. ``arm`` and ``state`` are None without an arm."""
        match request:
            case EmergencyStop():
                self._stopped = True
                self._stop_motion(arm, state, Ending("emergency stop"))
                return "stopped; trajectories are rejected until ~/clear_emergency_stop"
            case ClearEmergencyStop():
                self._stopped = False
                return "trajectories are accepted again"
            case SpeedScaling(share):
                self.config = replace(self.config, speed_scaling=share)
                if arm is not None:
                    arm.follower.config = replace(arm.follower.config, speed_scaling=share)
                return f"at most {share:.0%} of the velocity limits are used"
            case CancelGoal(goal):
                if goal is not self._goal:
                    return "that goal has ended"
                self._stop_motion(arm, state, Ending("canceled", Code.SUCCESSFUL, canceled=True))
                return "canceled, the arm holds still"
            case SwitchTorque(on):
                return self._switch_torque(on, arm, state)

    def _switch_torque(self, on: bool, arm: _Arm | None, state: ArmState | None) -> str:
        if self.dry_run:
            return "nothing done: this is a dry run"
        if arm is None:
            raise ArmError(f"the arm is not connected: {self.status.last_error}")
        if on:
            if not self._torque:
                _check_inside(state.position, arm.follower.config)
                held = arm.driver.engage()
                self._torque = True
                self._hold(arm, held)
            return "torque is on, the arm holds still"
        self._stop_motion(arm, state, Ending("torque was switched off"))
        self._torque = False
        arm.driver.release()
        return "torque is off, the arm sinks unless it is supported"

    def _refuse_all(self, reason: str) -> None:
        for message, future in self._messages():
            if isinstance(message, Trajectory | Goal):
                self._reject(message, reason)
                continue
            try:
                future.set_result(self._obey(message, None, None))
            except ArmError as error:
                future.set_exception(error)

    def _messages(self):
        while True:
            try:
                message, future = self._inbox.get_nowait()
            except Empty:
                return
            if future is None or future.set_running_or_notify_cancel():
                yield message, future

    def _update(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)


def _limp(servos: Servos | None) -> bool:
    return servos is not None and bool(servos.limp.any())


def _check_inside(position: np.ndarray, config: ArmConfig) -> None:
    """Raises ArmOutside when the arm is clearly beyond its limits."""
    beyond = np.maximum(config.lower - position, position - config.upper)
    outside = [
        f"{joint} is at {at:.2f} rad, its limits are {low:.2f} to {high:.2f}"
        for joint, at, low, high, by in zip(JOINTS, position, config.lower, config.upper, beyond, strict=True)
        if by > OUTSIDE_MARGIN
    ]
    if outside:
        raise ArmOutside(
            f"the arm is outside its limits: {'; '.join(outside)}. Move it inside by hand (if it is held, "
            "switch its power off and on), or change the limits.* parameters"
        )
