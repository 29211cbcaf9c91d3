# SPDX-License-Identifier: Apache-2.0
"""so100_node as a process, over DDS, on an emulated arm: does it keep its rate, and what can mislead it?"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from smolvla_mem_ros.cli.launching import NodeSpec, to_process, transport_environment
from smolvla_mem_ros.cli.malformed_trajectories import HOSTILE, HOSTILE_SHARE, KINDS, malformed
from smolvla_mem_ros.cli.processes import Process, ProcessGroup
from smolvla_mem_ros.evaluation.arm_bench import CALIBRATION, EMULATOR, RATE
from smolvla_mem_ros.evaluation.arm_path import IdealPath, Stream, Streamer
from smolvla_mem_ros.nodes.messages import to_time, to_trajectory
from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.runtime.trajectory import TrajectorySegment
from smolvla_mem_ros.share import share_path
from smolvla_mem_ros.sim.emulator_process import EmulatorProcess
from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig, Calibration
from smolvla_mem_ros.units import NANOSECONDS

# Of this process alone: another arm in the same ROS domain is neither moved nor listened to.
NAMESPACE = f"arm_loop_{os.getpid()}"
READY = 120.0  # s for everybody to start and find each other
SETTLE = 3.0  # s in which the arm gets onto the path
REPORT = 3.0  # s within which diagnostics must have come
WINDOW = 10.0  # s that the node's own figure of its jitter looks back

PRIORITY = 50  # SCHED_FIFO's
LOOP_SPEED, FUZZ_SPEED = 0.4, 0.15  # share of the largest velocity that the path may use
# Malformed messages go in handfuls, two of which the node's queue holds, with a pause for it to read them.
# After a hostile one comes nothing until it is known to be rejected.
HANDFUL, PAUSE = 5, 0.05  # messages, s
KNOT = 0.2  # s between two points of the trajectory that is followed meanwhile
DELAY = 0.06  # s, the latest that a goal may reach the servos after the moment that it is meant for
OFF = 1.0  # ticks that a goal may be off the path: goals are whole ticks


class Client(Node):
    """Sends trajectories, keeps the stamps of the arm's states and what its node reports."""

    def __init__(self) -> None:
        super().__init__("benchmark", namespace=NAMESPACE)
        queue = QoSProfile(depth=1000)
        self._trajectories = self.create_publisher(JointTrajectory, "so100/joint_trajectory", queue)
        self.create_subscription(JointState, "joint_states", self._on_state, queue)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, queue)
        self.stamps: list[int] = []  # ns
        self.reports: list[dict[str, str]] = []

    def send(self, message: JointTrajectory) -> None:
        self._trajectories.publish(message)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)

    def report(self) -> dict[str, str]:
        """The next one that comes. Raises RuntimeError when none does."""
        count, deadline = len(self.reports), time.monotonic() + REPORT
        while len(self.reports) == count:
            if time.monotonic() > deadline:
                raise RuntimeError("so100_node does not report any more")
            rclpy.spin_once(self, timeout_sec=0.1)
        return self.reports[-1]

    def is_heard(self) -> bool:
        return self._trajectories.get_subscription_count() > 0

    def _on_state(self, message: JointState) -> None:
        self.stamps.append(message.header.stamp.sec * NANOSECONDS + message.header.stamp.nanosec)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{NAMESPACE}/so100":
                values = {value.key: value.value for value in status.values}
                self.reports.append({"message": status.message, **values})


@dataclass(frozen=True)
class NodeBench:
    """What ``running_node`` gives. ``log`` is what all processes have printed."""

    client: Client
    emulator: EmulatorProcess
    group: ProcessGroup
    log: Path

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Raises RuntimeError, with the log, when ``what`` does not come about."""
        deadline = time.monotonic() + READY
        while not condition():
            rclpy.spin_once(self.client, timeout_sec=0.1)
            if self.group.ended or time.monotonic() > deadline:
                raise RuntimeError(f"{self.group.ended or what}:\n{self.log.read_text()[-5000:]}")

    @property
    def tracebacks(self) -> int:
        return self.log.read_text().count("Traceback (most recent call last)")


@contextmanager
def running_node(
    seed: int, *others: Process, emulator_options: Sequence[str] = (), **parameters: object
) -> Iterator[NodeBench]:
    """so100_node on an emulated arm, with ``others`` beside it; entered when the arm is held."""
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(transport_environment(os.environ))
    calibration = share_path(CALIBRATION)
    with tempfile.TemporaryDirectory(prefix="smolvla_mem_ros_") as name:
        folder = Path(name)
        port, log = folder / "ttySO100", folder / "log.txt"
        given = {"port": str(port), "calibration": str(calibration), "rate": RATE, **parameters}
        node = NodeSpec("so100_node", "so100", NAMESPACE, given, "", "info")
        with (
            EmulatorProcess(port, calibration, *EMULATOR, f"--seed={seed}", *emulator_options) as emulator,
            log.open("w") as output,
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO),
        ):
            emulator.wait_ready()
            with ProcessGroup([to_process(node, folder), *others], name="benchmark", output=output) as group:
                client = Client()
                try:
                    bench = NodeBench(client, emulator, group, log)
                    connected = lambda: client.reports and client.reports[-1]["connected"] == "true"  # noqa: E731
                    bench.wait(lambda: client.is_heard() and connected(), "so100_node does not hold the arm")
                    yield bench
                finally:
                    client.destroy_node()


# Does it keep its rate? -------------------------------------------------------------------------


def loop(
    seconds: float, contract: Contract, seed: int, tick: Callable[[float], None] = lambda seconds: None
) -> dict:
    """The node's period while it follows a stream of chunks beside a policy that takes a core for itself.

    The loop's thread gets real-time priority where that is permitted. With two processors or more it has the
    first one to itself (its parameter ``cpu``), but for the emulator, which in place of a real arm must
    answer at any time; it works while the loop waits for it. Inference and this program, which stands for
    the policy's node, are on the last one.
    """
    processors = sorted(os.sched_getaffinity(0))
    several = len(processors) > 1
    load = (sys.executable, "-m", "smolvla_mem_ros.evaluation.inference_load", str(processors[-1]))
    parameters = {"realtime_priority": PRIORITY} | ({"cpu": processors[0]} if several else {})
    with (
        running_node(seed, Process("inference", load), **parameters) as bench,
        _this_program_on(processors[-1]),
    ):
        client, stamp = bench.client, lambda: client.get_clock().now().nanoseconds
        if several:
            os.sched_setaffinity(bench.emulator.pid, {processors[0]})
        bench.wait(lambda: "[inference] ready" in bench.log.read_text(), "the policy does not load")
        random = np.random.default_rng(seed)
        path = IdealPath.draw(random, _limits(), LOOP_SPEED, stamp() / NANOSECONDS)
        send = lambda chunk: client.send(to_trajectory(chunk))  # noqa: E731
        with Streamer(path, Stream(), contract, random, send, stamp) as streamer:
            client.spin(SETTLE)
            before, done = client.report(), _inferences(bench.log)
            client.stamps.clear()
            client.reports.clear()
            began = time.monotonic()
            while (left := began + seconds - time.monotonic()) > 0:
                client.spin(min(0.5, left))
                tick(min(0.5, left))
            stamps, after = np.array(client.stamps), client.report()
        # What the node tells in the first seconds is of a time before.
        own = [float(report["period_jitter_p99"]) for report in client.reports]
        own = own[round(WINDOW) :] or own
        inferences = _inferences(bench.log) - done
        is_permitted = "no real-time priority" not in bench.log.read_text()
    return {
        "seconds": seconds,
        **jitter(stamps),
        "jitter_p99_pct_told_at_worst": round(100 * max(own), 2),
        "missed_cycles": int(after["missed_cycles"]) - int(before["missed_cycles"]),
        "connections_lost": int(after["connections"]) - int(before["connections"]),
        "chunks": streamer.chunks,
        "inferences": inferences,
        "placement": {
            "processors": len(processors),
            "realtime_priority": PRIORITY if is_permitted else 0,
            "loop_and_emulator": processors[0] if several else None,
            "inference_and_benchmark": processors[-1],
        },
    }


def jitter(stamps: np.ndarray) -> dict[str, float]:
    """How much periods differ from the nominal one, in percent of it, from (N,) ns."""
    off = 100 * np.abs(np.diff(stamps) / NANOSECONDS * RATE - 1)
    p50, p99, p999 = np.percentile(off, (50, 99, 99.9))
    figures = {"p50": p50, "p99": p99, "p99.9": p999, "max": off.max()}
    return {"cycles": len(stamps), "period_jitter_pct": {k: round(float(v), 2) for k, v in figures.items()}}


@contextmanager
def _this_program_on(processor: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _inferences(log: Path) -> int:
    told = re.findall(r"\[inference\] inferences (\d+)", log.read_text())
    return int(told[-1]) if told else 0


def _limits() -> ArmConfig:
    return ArmConfig().within(*Calibration.load(share_path(CALIBRATION)).range)


# What can mislead it? ---------------------------------------------------------------------------


def fuzz(messages: int, seed: int, tick: Callable[[int], None] = lambda sent: None) -> dict:
    """Malformed trajectories while the node follows a known one, which every goal that reached the servos is
    compared with."""
    random = np.random.default_rng(seed)
    kinds = draw(messages, random)
    with tempfile.TemporaryDirectory(prefix="smolvla_mem_ros_") as folder:
        goals = Path(folder) / "goals.txt"
        with running_node(seed, emulator_options=[f"--goals={goals}"]) as bench:
            client = bench.client
            # Path times are those of the emulator's clock.
            path = IdealPath.draw(random, _limits(), FUZZ_SPEED, time.monotonic())
            hostile = sum(kind in HOSTILE for kind in kinds)
            seconds = 2 * SETTLE + 30 + 3 * (messages * PAUSE / HANDFUL + hostile * REPORT)
            follow(client, path, seconds)
            client.spin(SETTLE)
            before, begin = client.report(), time.monotonic()
            after = _send(client, kinds, int(before["rejected"]), random, tick)
            end = time.monotonic()
            bench.wait(lambda: True, "so100_node ended")
            tracebacks = bench.tracebacks
        rows = np.loadtxt(goals)
    rows = rows[(rows[:, 0] > begin) & (rows[:, 0] < end)]
    off = ticks_off(rows, path)
    return {
        "messages": messages,
        "kinds": dict(Counter(kinds)),
        "rejected": int(after["rejected"]) - int(before["rejected"]),
        "accepted": int(after["accepted"]) - int(before["accepted"]),
        "goals": len(rows),
        "goals_off_the_path": int((off > OFF).sum()),
        "largest_ticks_off": round(float(off.max()), 2),
        "longest_gap_ms": round(1000 * float(np.diff(rows[:, 0]).max()), 1),
        "missed_cycles": int(after["missed_cycles"]) - int(before["missed_cycles"]),
        "tracebacks": tracebacks,
    }


def draw(messages: int, random: np.random.Generator) -> list[str]:
    """Kinds in random order, all as often as the others but for the hostile ones."""
    few = [kind for kind in KINDS if kind in HOSTILE]
    many = [kind for kind in KINDS if kind not in HOSTILE]
    hostile = min(messages, max(len(few), round(HOSTILE_SHARE * messages)))
    names = [few[i % len(few)] for i in range(hostile)]
    names += [many[i % len(many)] for i in range(messages - hostile)]
    return [names[i] for i in random.permutation(messages)]


def follow(client: Client, path: IdealPath, seconds: float) -> None:
    """One trajectory along ``path``, whose clock is the monotonic one, for ``seconds`` from now on."""
    times = np.arange(0.0, seconds, KNOT)
    now = time.monotonic()
    positions, velocities = path.at(now + times)
    stamp = client.get_clock().now().nanoseconds
    client.send(to_trajectory(TrajectorySegment(stamp, JOINTS, times, positions, velocities)))


def ticks_off(goals: np.ndarray, path: IdealPath) -> np.ndarray:
    """(N,) ticks: how far each goal is off the path at the best moment of the DELAY before it arrived.

    Args:
        goals: (N, 7) s and ticks.
    """
    ticks = Calibration.load(share_path(CALIBRATION)).ticks
    moments = goals[:, :1] - np.arange(0, DELAY, 0.001)
    off = np.abs(ticks.from_radians(path.at(moments)[0]) - goals[:, None, 1:])
    return off.max(axis=2).min(axis=1)


def _send(
    client: Client,
    kinds: Sequence[str],
    rejected: int,
    random: np.random.Generator,
    tick: Callable[[int], None],
) -> dict[str, str]:
    """Sends one of each of ``kinds``, to a node that has rejected so many; the report at the end."""
    for sent, kind in enumerate(kinds, start=1):
        message = malformed(kind, random)
        if message.header.stamp == to_time(0):
            # Half of them say when they begin.
            message.header.stamp = to_time(client.get_clock().now().nanoseconds * int(random.integers(2)))
        client.send(message)
        if kind in HOSTILE:
            _report_of(client, rejected + sent)
        elif sent % HANDFUL == 0:
            client.spin(PAUSE)
        tick(1)
    return _report_of(client, rejected + len(kinds))


def _report_of(client: Client, rejected: int) -> dict[str, str]:
    """As soon as so many were rejected; if that does not come, the one after a while."""
    for _ in range(5):
        report = client.report()
        if int(report["rejected"]) >= rejected:
            break
    return report
