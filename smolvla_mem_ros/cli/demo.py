# SPDX-License-Identifier: Apache-2.0
"""Runs the whole loop on a simulated SO-100 and shows what came of it.

Cameras, policy with memory, trajectories, servo bus and arm run as processes of their own. The demo
starts an episode, clears the memory half-way, stops the episode, and writes summary.png and
summary.json. Its last line is one JSON object; exit code 0 means that no part was silent.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import Trigger
from tqdm import tqdm
from trajectory_msgs.msg import JointTrajectory

from smolvla_mem_ros.cli import bringup, make_tiny_checkpoint
from smolvla_mem_ros.cli.processes import ProcessGroup
from smolvla_mem_ros.msg import MemoryState, PolicyStatus
from smolvla_mem_ros.nodes.messages import decode_raw_image, from_time, raw_stamp
from smolvla_mem_ros.runtime.contract import NANOSECONDS
from smolvla_mem_ros.srv import StartEpisode

TASK = "sway gently"
PICTURES = 8
START_TIMEOUT = 120.0


class DemoError(RuntimeError):
    """A part did not come up or did not answer; the message names it."""


@dataclass
class Recording:
    """What the demo saw on the topics; times are seconds on the ROS clock."""

    statuses: list[PolicyStatus] = field(default_factory=list)
    memories: list[tuple[float, MemoryState]] = field(default_factory=list)
    trajectories: list[tuple[float, JointTrajectory]] = field(default_factory=list)
    joints: list[tuple[float, list[float]]] = field(default_factory=list)
    pictures: list[tuple[float, np.ndarray]] = field(default_factory=list)
    simulation: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    joint_names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Moments:
    """When things were asked for, in seconds on the ROS clock."""

    start: float
    reset: float
    stop: float


class Observer(Node):
    """Listens to every part of the loop and calls the policy's services."""

    def __init__(self) -> None:
        super().__init__("demo")
        self.recording = Recording()
        self._picture_period = math.inf
        self._next_picture = 0.0
        record = self.recording
        self.create_subscription(PolicyStatus, "policy/status", record.statuses.append, 50)
        self.create_subscription(
            MemoryState, "policy/memory_state", lambda m: record.memories.append((self.now(), m)), 50
        )
        self.create_subscription(
            JointTrajectory,
            "so100/joint_trajectory",
            lambda m: record.trajectories.append((self.now(), m)),
            50,
        )
        self.create_subscription(JointState, "joint_states", self._on_joints, 50)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 50)
        self.create_subscription(
            Image, "camera/front/image_raw", self._on_image, qos_profile_sensor_data, raw=True
        )
        self._start = self.create_client(StartEpisode, "policy/start_episode")
        self._reset = self.create_client(Trigger, "policy/reset_memory")
        self._stop = self.create_client(Trigger, "policy/stop_episode")

    def take_pictures(self, period: float) -> None:
        """Keep a camera image every ``period`` seconds from now on."""
        self._picture_period, self._next_picture = period, self.now()

    def start_episode(self, task: str) -> float:
        return self._call(self._start, StartEpisode.Request(task=task))

    def reset_memory(self) -> float:
        return self._call(self._reset, Trigger.Request())

    def stop_episode(self) -> float:
        return self._call(self._stop, Trigger.Request())

    def now(self) -> float:
        return self.get_clock().now().nanoseconds / NANOSECONDS

    def _call(self, client, request) -> float:
        """Returns the time just before the call."""
        if not client.wait_for_service(10.0):
            raise DemoError(f"{client.srv_name} is not offered")
        asked = self.now()
        future = client.call_async(request)
        rclpy.spin_until_future_complete(self, future, timeout_sec=10.0)
        if not future.done():
            raise DemoError(f"{client.srv_name} did not answer within 10 s")
        if not future.result().success:
            raise DemoError(f"{client.srv_name} refused: {future.result().message}")
        return asked

    def _on_joints(self, message: JointState) -> None:
        self.recording.joint_names = list(message.name)
        stamp = from_time(message.header.stamp) / NANOSECONDS
        self.recording.joints.append((stamp, list(message.position)))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        stamp = from_time(message.header.stamp) / NANOSECONDS
        for status in message.status:
            if status.name.endswith("so100_sim"):
                self.recording.simulation.append((stamp, {v.key: v.value for v in status.values}))

    def _on_image(self, raw: bytes) -> None:
        if self.now() >= self._next_picture and self._picture_period < math.inf:
            self._next_picture += self._picture_period
            stamp = raw_stamp(raw) / NANOSECONDS
            self.recording.pictures.append((stamp, decode_raw_image((Image, raw))[::2, ::2]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="example: demo --seconds 10 --checkpoint my_checkpoint",
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of control (default 30)")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="default outputs/demo")
    parser.add_argument("--checkpoint", help="folder or hub name (default: a tiny one, made when needed)")
    parser.add_argument("--task", default=TASK, help=f"what to do (default {TASK!r})")
    args = parser.parse_args(argv)
    if not args.seconds > 2:
        parser.error("--seconds must be more than 2")
    args.output.mkdir(parents=True, exist_ok=True)
    # The arm of somebody else on this network must not hear of this.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if not args.checkpoint:
        # For a model this small one thread beats two, and leaves a core to the arm.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        checkpoint = args.checkpoint or _tiny_checkpoint(args.output / "tiny_checkpoint")
        recording, moments = _run(args, checkpoint)
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    except (DemoError, bringup.BringupError) as error:
        print(f"demo: {error}", file=sys.stderr)
        print(json.dumps({"ok": False, "problem": str(error)}))
        return 1
    summary = summarise(recording, moments)
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw(recording, moments, args.output / "summary.png")
    print(f"demo: see {args.output / 'summary.png'}", file=sys.stderr)
    print(json.dumps(summary))
    return 0 if summary["ok"] else 1


def _tiny_checkpoint(folder: Path) -> str:
    if not (folder / "model.safetensors").is_file():
        print(f"demo: making a tiny policy in {folder} (once)", file=sys.stderr)
        if make_tiny_checkpoint.main([str(folder)]):
            raise DemoError(f"no tiny policy could be made in {folder}")
    return str(folder)


def _run(args: argparse.Namespace, checkpoint: str) -> tuple[Recording, Moments]:
    arguments = bringup.BringupArguments(sim=True, checkpoint=checkpoint)
    log = args.output / "log.txt"
    with log.open("w") as output:
        processes = [bringup.to_process(s, args.output) for s in bringup.process_list(arguments)]
        os.environ.update(bringup.transport_environment(os.environ))
        with (
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO),
            ProcessGroup(processes, name="demo", output=output) as group,
        ):
            observer = Observer()

            def spin(seconds: float, until=lambda: False) -> bool:
                """True as soon as ``until()`` holds, False when ``seconds`` are over."""
                end = time.monotonic() + seconds
                while (left := end - time.monotonic()) > 0:
                    rclpy.spin_once(observer, timeout_sec=min(left, 0.05))
                    if group.ended is not None:
                        raise DemoError(f"{group.ended}; see {log}")
                    if until():
                        return True
                return False

            record = observer.recording

            def ready() -> bool:
                return bool(
                    record.statuses
                    and record.statuses[-1].state == "idle"
                    and all(math.isfinite(age) for age in record.statuses[-1].stream_ages)
                    and record.joints
                    and record.simulation
                )

            print("demo: starting simulation, arm and policy", file=sys.stderr)
            if not spin(START_TIMEOUT, ready):
                raise DemoError(f"{_silent(record)} within {START_TIMEOUT:.0f} s; see {log}")
            moments = _control(observer, spin, args)
            # One more report of each part, so that counters can be read at the moment of the stop.
            spin(2.2)
            observer.destroy_node()
    return record, moments


def _control(observer: Observer, spin, args: argparse.Namespace) -> Moments:
    observer.take_pictures(args.seconds / PICTURES)
    start = observer.start_episode(args.task)
    with tqdm(
        total=round(args.seconds, 1),
        desc="control",
        unit="s",
        bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s",
    ) as bar:
        began = time.monotonic()

        def follow() -> bool:
            bar.update(min(bar.total, time.monotonic() - began) - bar.n)
            return False

        spin(args.seconds / 2, follow)
        reset = observer.reset_memory()
        spin(began + args.seconds - time.monotonic(), follow)
    return Moments(start, reset, observer.stop_episode())


def _silent(record: Recording) -> str:
    if not record.simulation:
        return "the simulation did not report"
    if not record.joints:
        return "the arm published no joint states"
    if not record.statuses:
        return "the policy did not report"
    status = record.statuses[-1]
    return f"the policy did not become ready ({status.state}: {status.reason})"


def summarise(recording: Recording, moments: Moments) -> dict:
    """The figures of the control window, from what was heard on the topics."""
    inside = [t for t, _ in recording.trajectories if moments.start <= t <= moments.stop + 0.5]
    joints = np.array([q for t, q in recording.joints if moments.start <= t <= moments.stop])
    final = recording.statuses[-1]
    commits = [m for _, m in recording.memories if m.step > 0]
    latency = {
        p: _milliseconds(getattr(final, f"stamp_to_command_latency_{p}")) for p in ("p50", "p95", "p99")
    }
    sent = sum(
        _counted(recording.simulation, key, moments) for key in ("images_sent_front", "images_sent_wrist")
    )
    received = [
        (from_time(s.header.stamp) / NANOSECONDS, {"n": s.images_received}) for s in recording.statuses
    ]
    summary = {
        "inferences": int(final.inferences),
        "memory_commits": len(commits),
        "trajectories": len(inside),
        "servo_writes": _counted(recording.simulation, "servo_writes", moments),
        "joint_motion_rad": round(float(np.abs(np.diff(joints, axis=0)).sum()), 3)
        if len(joints) > 1
        else 0.0,
        "images_sent": sent,
        "images_received": _counted(received, "n", moments),
        "stamp_to_command_ms": latency,
        "reset_to_zero": _reset_to_zero(recording, moments),
    }
    parts = [v for k, v in summary.items() if k != "stamp_to_command_ms"]
    ok = all(parts) and summary["joint_motion_rad"] > 0.05 and None not in latency.values()
    return {"ok": bool(ok), **summary}


def _counted(reports: list[tuple[float, dict]], key: str, moments: Moments) -> int:
    """Growth of a counter between start and stop, interpolated between the reports around them."""
    points = [(t, float(values[key])) for t, values in reports if key in values]
    if len(points) < 2:
        return 0
    times, counts = zip(*points, strict=True)
    return round(np.interp(moments.stop, times, counts) - np.interp(moments.start, times, counts))


def _reset_to_zero(recording: Recording, moments: Moments) -> bool:
    """The first memory after the reset is empty, and the next commit counts from one again."""
    after = [
        m for _, m in recording.memories if from_time(m.last_reset) / NANOSECONDS >= moments.reset - 0.001
    ]
    steps = [m.step for m in after if from_time(m.last_reset) == from_time(after[0].last_reset)]
    return bool(after) and not any(after[0].norm) and steps[:2] == [0, 1] and steps == sorted(set(steps))


def _milliseconds(seconds: float) -> float | None:
    return round(seconds * 1e3, 2) if math.isfinite(seconds) else None


def draw(recording: Recording, moments: Moments, path: Path) -> None:
    """Camera filmstrip, joints commanded and measured, memory norms with the reset marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(15, 11), layout="constrained")
    strip, joints, memory = figure.subfigures(3, 1, height_ratios=(1.1, 3, 1.6))
    pictures = recording.pictures[:PICTURES]
    for axes, (t, picture) in zip(
        np.atleast_1d(strip.subplots(1, max(len(pictures), 1))), pictures, strict=False
    ):
        axes.imshow(picture)
        axes.set_title(f"{max(t - moments.start, 0):.0f} s", fontsize=9)
        axes.axis("off")

    measured = np.array([[t, *q] for t, q in recording.joints])
    commanded = _commanded(recording)
    for i, (name, axes) in enumerate(
        zip(recording.joint_names, joints.subplots(2, 3, sharex=True).flat, strict=False)
    ):
        for t, points in commanded.get(name, []):
            axes.plot(t - moments.start, np.rad2deg(points), color="tab:orange", lw=1.2)
        if len(measured):
            axes.plot(measured[:, 0] - moments.start, np.rad2deg(measured[:, 1 + i]), color="tab:blue", lw=1)
        axes.axvline(moments.reset - moments.start, color="crimson", ls="--", lw=1)
        axes.set_title(name, fontsize=10)
        axes.set_xlim(0, moments.stop - moments.start)
        axes.grid(alpha=0.3)
    joints.suptitle("joint positions in degrees: commanded (orange) and measured (blue)", fontsize=11)
    joints.supxlabel("seconds since the episode started", fontsize=9)

    times = np.array([t - moments.start for t, _ in recording.memories])
    left, right = memory.subplots(1, 2)
    for axes, attribute, label in (
        (left, "norm", "norm of each memory token"),
        (right, "cosine_distance", "change of each token per commit (cosine distance)"),
    ):
        values = [getattr(m, attribute) for _, m in recording.memories]
        if values and len(values[0]):
            axes.plot(times, np.array(values), marker=".", ms=4, lw=1)
        axes.axvline(moments.reset - moments.start, color="crimson", ls="--", label="reset_memory")
        axes.set_title(label, fontsize=10)
        axes.set_xlim(0, moments.stop - moments.start)
        axes.set_xlabel("seconds", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _commanded(recording: Recording) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Per joint, the part of each trajectory that was in force: until the next one came."""
    pieces: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    arrivals = [t for t, _ in recording.trajectories]
    for (arrived, message), replaced in zip(recording.trajectories, [*arrivals[1:], math.inf], strict=True):
        stamp = from_time(message.header.stamp) / NANOSECONDS
        times = np.array(
            [stamp + p.time_from_start.sec + p.time_from_start.nanosec / NANOSECONDS for p in message.points]
        )
        inside = (times >= arrived) & (times <= replaced)
        for j, name in enumerate(message.joint_names):
            values = np.array([p.positions[j] for p in message.points])
            pieces.setdefault(name, []).append((times[inside], values[inside]))
    return pieces


if __name__ == "__main__":
    sys.exit(main())
