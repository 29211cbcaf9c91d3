# SPDX-License-Identifier: Apache-2.0
"""What the arm's loop makes of a bus and of servos that fail while it moves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from smolvla_mem_ros.evaluation.arm_bench import Bench, RecordingDriver, running_arm
from smolvla_mem_ros.evaluation.arm_limits import violations
from smolvla_mem_ros.evaluation.arm_path import IdealPath, Stream, Streamer, to_trajectory
from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.so100.arm import JOINTS
from smolvla_mem_ros.so100.health import servo
from smolvla_mem_ros.so100.loop import DISCONNECTED, MOVING, LoopStatus
from smolvla_mem_ros.so100.requests import SwitchTorque

SPEED = 0.35  # share of the largest velocity that the path may use
# A chunk comes often, so that a wait for the next one is a small part of the time to go on again.
STREAM = Stream(every=6, lateness=0.1)
RESUME = 1.0  # s after a fault's end within which the arm must move as it is told
GIVE_UP = 5.0  # s; an arm that does not by then never does
PAUSE = 0.1, 0.4  # s between an arm that moves again and the next fault
POLL = 0.01  # s

# Of an arm that moves as it is told:
SPAN = 0.1  # s over which it is watched
NEAR = 0.15  # rad that it may be off its goal: three times what the emulated servos lag behind
MOVED = 0.02  # rad; a joint that is told to go as far must go half of that


@dataclass(frozen=True)
class Evidence:
    """What diagnostics could show of a fault, from its beginning to the arm's recovery.

    Args:
        errors: ``last_error`` while the arm was not connected.
        problems: of the servos.
        repeated, missed: by how much the counters of repeated reads and missed cycles grew.
    """

    errors: frozenset[str] = frozenset()
    problems: frozenset[str] = frozenset()
    repeated: int = 0
    missed: int = 0

    def tells(self, *words: str) -> bool:
        """Whether one text holds all of ``words``."""
        return any(all(word in text for word in words) for text in self.errors | self.problems)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        kind: a key of KINDS.
        begin, end: commands for the emulator; without an ``end`` it is over by itself.
        seconds: the shortest and the longest that it lasts; between them it ends when it was named.
        named: whether the evidence names it.
    """

    kind: str
    begin: tuple[str, ...]
    end: tuple[str, ...]
    seconds: tuple[float, float]
    named: Callable[[Evidence], bool]


Random = np.random.Generator


def _noise(kind: str, command: str, low: float, high: float) -> Callable[[Random], Fault]:
    def draw(random: Random) -> Fault:
        share, seconds = random.uniform(low, high), random.uniform(0.3, 0.6)
        return Fault(kind, (f"{command} {share:.3f}",), (f"{command} 0",), (seconds, seconds), _asked_again)

    return draw


def _asked_again(evidence: Evidence) -> bool:
    return evidence.repeated > 0 or bool(evidence.errors)


def _late(random: Random) -> Fault:
    """One answer that comes late; a short wait costs cycles only."""
    late = random.uniform(0.02, 0.3)

    def named(found: Evidence) -> bool:
        return found.missed > 0 or _asked_again(found)

    return Fault("late answer", (f"stall {late:.3f}",), (), (late, late + 0.5), named)


def _hang(random: Random) -> Fault:
    late = random.uniform(0.5, 1.0)
    return Fault("hanging answer", (f"stall {late:.3f}",), (), (late, late), _asked_again)


def _unplug(kind: str, *before_plug: str) -> Callable[[Random], Fault]:
    def draw(random: Random) -> Fault:
        seconds = random.uniform(0.1, 0.8)
        return Fault(kind, ("unplug",), (*before_plug, "plug"), (seconds, seconds), _tells("port"))

    return draw


def _mute(random: Random) -> Fault:
    number, seconds = _servo(random), random.uniform(0.2, 2.0)
    begin, end = (f"{word} {JOINTS[number]}" for word in ("mute", "unmute"))
    named = _tells(f"{number + 1} ({JOINTS[number]})", "does not answer")
    return Fault("mute servo", (begin,), (end,), (seconds, 5.0), named)


def _mute_all(random: Random) -> Fault:
    """What a lost power supply looks like."""
    seconds = random.uniform(0.2, 2.0)
    named = _tells(*JOINTS, "does not answer")
    return Fault(
        "all servos without power", ("mute all",), ("power_cycle", "unmute all"), (seconds, 5.0), named
    )


def _stuck(random: Random) -> Fault:
    """It cannot be seen before the path has gone on a little."""
    number = _servo(random)
    begin, end = (f"{word} {JOINTS[number]}" for word in ("stuck", "free"))
    return Fault("stuck servo", (begin,), (end,), (0.2, 10.0), _tells(servo(number)))


def _heat(kind: str, low: int, high: int, words: str) -> Callable[[Random], Fault]:
    def draw(random: Random) -> Fault:
        number, celsius, seconds = _servo(random), random.integers(low, high), random.uniform(0.1, 0.6)
        begin, end = f"overheat {JOINTS[number]} {celsius}", f"cool {JOINTS[number]}"
        return Fault(kind, (begin,), (end,), (seconds, seconds), _tells(servo(number), words))

    return draw


def _sag(random: Random) -> Fault:
    volts, seconds = random.uniform(2.5, 3.8), random.uniform(0.1, 0.6)
    named = _tells(servo(0), "supply voltage")
    return Fault("voltage sag", (f"sag {volts:.2f}",), ("sag 7.4",), (seconds, seconds), named)


def _power_cycle(random: Random) -> Fault:
    return Fault("power cycle", ("power_cycle",), (), (0.0, 1.0), _tells("power", "torque"))


def _servo(random: Random) -> int:
    return int(random.integers(len(JOINTS)))


def _tells(*words: str) -> Callable[[Evidence], bool]:
    return lambda found: found.tells(*words)


KINDS: dict[str, Callable[[Random], Fault]] = {
    "lost answers": _noise("lost answers", "drop", 0.05, 0.3),
    "wrong checksums": _noise("wrong checksums", "corrupt", 0.05, 0.3),
    "late answer": _late,
    "hanging answer": _hang,
    "unplugged": _unplug("unplugged"),
    "unplugged without power": _unplug("unplugged without power", "power_cycle"),
    "mute servo": _mute,
    "all servos without power": _mute_all,
    "stuck servo": _stuck,
    "overheated servo": _heat("overheated servo", 75, 100, "is overheated"),
    "warm servo": _heat("warm servo", 62, 70, "is warm"),
    "voltage sag": _sag,
    "power cycle": _power_cycle,
}


def draw(count: int, random: Random) -> list[Fault]:
    """``count`` faults in random order, of each kind as many as of the others (or one more)."""
    names = [list(KINDS)[i % len(KINDS)] for i in range(count)]
    return [KINDS[names[i]](random) for i in random.permutation(count)]


@dataclass(frozen=True)
class Outcome:
    """What became of one fault.

    Args:
        resumed: s from its end until the arm moved as it was told; None if it never did.
    """

    kind: str
    named: bool
    lost: bool
    resumed: float | None


def measure(
    count: int,
    contract: Contract,
    seed: int,
    tick: Callable[[], None] = lambda: None,
    kind: type[RecordingDriver] = RecordingDriver,
) -> dict:
    """``count`` faults, drawn from ``seed``, of an emulated arm that follows a stream of chunks."""
    random = np.random.default_rng(seed)
    faults = draw(count, random)
    outcomes = []
    with running_arm(seed, kind) as arm:
        path = IdealPath.draw(random, arm.config, SPEED, time.monotonic())
        # The stream has random numbers of its own, since it runs in another thread.
        streams = np.random.default_rng([seed, 1])
        send = lambda chunk: arm.loop.submit(to_trajectory(chunk))  # noqa: E731
        with Streamer(path, STREAM, contract, streams, send):
            Watch(arm).until_following(GIVE_UP)
            for fault in faults:
                outcomes.append(suffer(arm, fault))
                _cure(arm)
                time.sleep(random.uniform(*PAUSE))
                tick()
            writes = list(arm.driver.writes)
        events = arm.events
    return {
        "faults": count,
        "limit_violations": asdict(violations(writes, arm.config)),
        "exceptions": len(arm.exceptions),
        "log_lines": len(events),
        "writes": len(writes),
        **summary(outcomes),
    }


def summary(outcomes: Sequence[Outcome]) -> dict:
    """By kind, and what went wrong in all."""
    kinds = {}
    for name in KINDS:
        those = [o for o in outcomes if o.kind == name]
        if those:
            slowest = [o.resumed for o in those if o.resumed is not None]
            kinds[name] = {
                "count": len(those),
                "named": sum(o.named for o in those),
                "connection_lost": sum(o.lost for o in those),
                "slowest_resume_s": round(max(slowest), 3) if slowest else None,
                "resumed_late": sum(o.resumed is None or o.resumed > RESUME for o in those),
            }
    return {
        "not_named": sum(not o.named for o in outcomes),
        "resumed_late": sum(each["resumed_late"] for each in kinds.values()),
        "kinds": kinds,
    }


def suffer(arm: Bench, fault: Fault) -> Outcome:
    """Lets the fault happen and waits for the recovery."""
    watch = Watch(arm)
    for command in fault.begin:
        arm.emulator.command(command)
    began = time.monotonic()
    shortest, longest = fault.seconds
    while (passed := time.monotonic() - began) < longest:
        if passed >= shortest and fault.named(watch.evidence):
            break
        watch.look()
    # What needs no command to end is over after its shortest time.
    ended = time.monotonic() if fault.end else began + shortest
    for command in fault.end:
        arm.emulator.command(command)
    watch.forget()
    resumed = watch.until_following(GIVE_UP)
    named = fault.named(watch.evidence)
    seconds = None if resumed is None else max(0.0, resumed - ended)
    return Outcome(fault.kind, named, bool(watch.evidence.errors), seconds)


def _cure(arm: Bench) -> None:
    """What a user does about a servo that protects itself from overload: torque off and on."""
    if any("overloaded" in problem for problem in arm.loop.status.problems):
        for on in (False, True):
            arm.loop.request(SwitchTorque(on)).result(RESUME)


class Watch:
    """Looks at the loop's status and at the arm itself, whose joints the emulator shares."""

    def __init__(self, arm: Bench) -> None:
        self._arm = arm
        self._begin: LoopStatus = arm.loop.status
        self.evidence = Evidence()
        self._seen: deque[tuple[float, np.ndarray, np.ndarray]] = deque()  # time, told, there

    def forget(self) -> None:
        """What was seen of the arm's motion until now."""
        self._seen.clear()

    def look(self) -> bool:
        """Waits for POLL and looks; whether the arm has moved as it was told for the last SPAN s."""
        time.sleep(POLL)
        status = self._arm.loop.status
        lost = status.state == DISCONNECTED
        self.evidence = Evidence(
            self.evidence.errors | ({status.last_error} if lost else set()),
            self.evidence.problems | frozenset(status.problems),
            status.repeated_reads - self._begin.repeated_reads,
            status.missed_cycles - self._begin.missed_cycles,
        )
        if status.state != MOVING:
            self._seen.clear()
            return False
        now, there = time.monotonic(), self._arm.emulator.wait_ready().qpos
        self._seen.append((now, self._arm.driver.writes[-1].position, there))
        while now - self._seen[0][0] > SPAN + 2 * POLL:
            self._seen.popleft()
        return now - self._seen[0][0] >= SPAN and moves_as_told(
            np.array([told for _, told, _ in self._seen]), np.array([there for _, _, there in self._seen])
        )

    def until_following(self, timeout: float) -> float | None:
        """Since when the arm moves as it is told; None if it did not within ``timeout`` s."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.look():
                return self._seen[0][0]
        return None


def moves_as_told(told: np.ndarray, there: np.ndarray) -> bool:
    """Whether joints that were told to go somewhere went there, and all are near where they are told to be.

    Args:
        told, there: (T, 6) rad, goals and positions at the same moments.
    """
    asked, gone = told[-1] - told[0], there[-1] - there[0]
    far = np.abs(asked) > MOVED
    near = np.abs(told[-1] - there[-1]) < NEAR
    return bool(far.any() and near.all() and (gone[far] * np.sign(asked[far]) > np.abs(asked[far]) / 2).all())
