# SPDX-License-Identifier: Apache-2.0
"""Plays a memory task with the whole loop on a simulated SO-100, and shows what came of it.

Cameras, policy with memory, trajectories, servo bus and arm run as processes of their own. The demo
plays episodes and lets the simulation's referee score them, clears the memory once in between, and
writes summary.png and summary.json. Its last line is one JSON object; exit code 0 means that no part
was silent, whatever the score.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from tqdm import tqdm
from trajectory_msgs.msg import JointTrajectory

from smolvla_mem_ros.cli import bringup, demo_report, launching, make_tiny_checkpoint
from smolvla_mem_ros.cli.arguments import positive
from smolvla_mem_ros.cli.demo_report import FILMED, Played, Recording, Run, trial_marks
from smolvla_mem_ros.cli.processes import ProcessGroup
from smolvla_mem_ros.msg import MemoryState, PolicyStatus
from smolvla_mem_ros.nodes.messages import decode_raw_image
from smolvla_mem_ros.policy.checkpoint import CheckpointError, load_config
from smolvla_mem_ros.runtime.stamps import from_time, header_stamp
from smolvla_mem_ros.share import CHECKPOINT, CONTRACT, share_path
from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.tasks import FPS, TASKS, MemoryTask, get_task
from smolvla_mem_ros.srv import StartEpisode
from smolvla_mem_ros.units import NANOSECONDS

TASK, EPISODES = "CueRecall2", 5
INSTRUCTION = "sway gently"  # for the tiny policy, which knows nothing else
PICTURES = 8  # of a run without a task
PICTURE_PERIOD = 0.2  # s, in one with a task
PICTURE_WIDTH = 320  # pixels, of those kept
START_TIMEOUT = 120.0  # s for everything to come up
REST_TIMEOUT = 20.0  # s for the arm to go back to where a trial starts
LATE = 10.0  # s that the simulation may take longer over a trial than it lasts
COMMIT_TIMEOUT = 3.0  # s for a memory to be written after the reset


class DemoError(RuntimeError):
    """A part did not come up or did not answer; the message names it."""


class Observer(Node):
    """Listens to every part of the loop and calls its services."""

    def __init__(self) -> None:
        super().__init__("demo")
        self.recording = Recording()
        self.trial: dict = {}  # as so100_sim reported it last
        self.recorder: dict[str, str] = {}  # as the recorder reported itself last
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
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(String, "so100_sim/trial", self._on_trial, latched)
        triggers = (
            "policy/reset_memory",
            "policy/stop_episode",
            "so100_sim/reset_scene",
            "so100_sim/start_trial",
        )
        self._clients_by_name = {name: self.create_client(Trigger, name) for name in triggers}
        self._start = self.create_client(StartEpisode, "policy/start_episode")

    def take_pictures(self, period: float = math.inf) -> None:
        """Keep a camera image every ``period`` seconds from now on; none by default."""
        self._picture_period, self._next_picture = period, self.now()

    def start_episode(self, instruction: str) -> float:
        """Returns the time just before the call, as ``trigger`` does. Both raise DemoError."""
        return self._call(self._start, StartEpisode.Request(task=instruction))

    def trigger(self, service: str) -> float:
        return self._call(self._clients_by_name[service], Trigger.Request())

    def now(self) -> float:
        return self.get_clock().now().nanoseconds / NANOSECONDS

    def _call(self, client, request) -> float:
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
            elif status.name.endswith("recorder"):
                self.recorder = {v.key: v.value for v in status.values}

    def _on_trial(self, message: String) -> None:
        self.trial = json.loads(message.data)

    def _on_image(self, raw: bytes) -> None:
        if self.now() >= self._next_picture and self._picture_period < math.inf:
            self._next_picture += self._picture_period
            picture = decode_raw_image((Image, raw))
            step = max(1, picture.shape[1] // PICTURE_WIDTH)
            self.recording.pictures.append((header_stamp(raw) / NANOSECONDS, picture[::step, ::step]))


class Stage:
    """The running processes and the observer: waits, and notices when one of them ends."""

    def __init__(self, observer: Observer, group: ProcessGroup, log: Path, recorded: bool) -> None:
        self.observer, self._group, self._log, self._recorded = observer, group, log, recorded

    def spin(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """True as soon as ``until()`` holds, False when ``seconds`` are over. Raises DemoError."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self.observer, timeout_sec=min(left, 0.05))
            if self._group.ended is not None:
                raise DemoError(f"{self._group.ended}; see {self._log}")
            if until():
                return True
        return False

    def wait_ready(self) -> None:
        """Until every part has been heard of. Raises DemoError, which names the one that was not."""
        if not self.spin(START_TIMEOUT, lambda: not self._silent()):
            raise DemoError(f"{self._silent()} within {START_TIMEOUT:.0f} s; see {self._log}")

    def _silent(self) -> str:
        record = self.observer.recording
        if not record.simulation:
            return "the simulation did not report"
        if not record.joints:
            return "the arm published no joint states"
        if not record.statuses:
            return "the policy did not report"
        status = record.statuses[-1]
        if status.state != "idle" or not all(map(math.isfinite, status.stream_ages)):
            return f"the policy did not become ready ({status.state}: {status.reason})"
        # Who hears the policy's status also hears what it commands.
        if self._recorded and not int(self.observer.recorder.get("received_/policy/status", 0)):
            return "the recorder did not hear the policy"
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="example: demo --episodes 20 --task LateCue2 --checkpoint my_checkpoint",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--episodes", type=positive, default=EPISODES, help="to play (default %(default)s)")
    kind.add_argument("--seconds", type=float, help="of control on a table with blocks, instead of a task")
    parser.add_argument("--task", default=TASK, help=f"one of {', '.join(TASKS)} (default %(default)s)")
    parser.add_argument(
        "--instruction", default=INSTRUCTION, help="what to do for --seconds (default %(default)r)"
    )
    parser.add_argument(
        "--checkpoint",
        help=f"folder or hub name (default {CHECKPOINT}; with --seconds a tiny one, which only sways)",
    )
    parser.add_argument("--seed", type=int, help="of the trials (default: drawn, and in summary.json)")
    parser.add_argument("--record", default="", help="folder of a rosbag2 to record into; must not be there")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="default %(default)s")
    args = parser.parse_args(argv)
    if args.seconds is not None and not args.seconds > 2:
        parser.error("--seconds must be more than 2")
    if args.seed is not None and not 0 <= args.seed < 2**31:
        parser.error("--seed must be 0 or more and less than 2^31")
    try:
        task = get_task(args.task) if args.seconds is None else None
    except ValueError as error:
        parser.error(f"--task: {error}")
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    args.output.mkdir(parents=True, exist_ok=True)
    # The arm of somebody else on this network must not hear of this.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if not args.checkpoint:
        # For a model this small one thread beats two, and leaves a core to the arm.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        checkpoint = args.checkpoint or _own_checkpoint(task, args.output)
        recording, run = _run(args, task, seed, checkpoint)
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    except (DemoError, CheckpointError, launching.LaunchError, FileNotFoundError) as error:
        print(f"demo: {error}", file=sys.stderr)
        print(json.dumps({"ok": False, "problem": str(error)}))
        return 1
    summary = demo_report.summarise(recording, run)
    more = {"checkpoint": checkpoint, "seed": seed, "results": demo_report.results(recording, run)}
    (args.output / "summary.json").write_text(
        json.dumps({**summary, **(more if task else {})}, indent=2) + "\n"
    )
    demo_report.draw(recording, run, args.output / "summary.png")
    print(f"demo: see {args.output / 'summary.png'}", file=sys.stderr)
    print(json.dumps(summary))
    return 0 if summary["ok"] else 1


def _own_checkpoint(task: MemoryTask | None, output: Path) -> str:
    """The policy that the package ships; without a task a tiny one, which was trained on no picture."""
    if task:
        return str(share_path(CHECKPOINT))
    folder = output / "tiny_checkpoint"
    if not (folder / "model.safetensors").is_file():
        print(f"demo: making a tiny policy in {folder} (once)", file=sys.stderr)
        if make_tiny_checkpoint.main([str(folder)]):
            raise DemoError(f"no tiny policy could be made in {folder}")
    return str(folder)


def process_list(
    task: MemoryTask | None, seed: int, checkpoint: str, record: str = ""
) -> list[launching.NodeSpec]:
    """What bring-up starts, with cameras of the checkpoint's size and this seed.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    arguments = bringup.BringupArguments(sim=True, checkpoint=checkpoint, record=record)
    more: dict[str, dict] = {"so100_sim": {}, "policy": {}}
    if task:
        arguments = replace(arguments, sim_task=type(task).__name__, contract=str(share_path(CONTRACT)))
        # A policy knows pictures as its training data had them.
        height, width = next(iter(load_config(checkpoint).image_features.values())).shape[-2:]
        more["so100_sim"] = {"camera.width": width, "camera.height": height, "seed": seed}
        more["policy"] = {"seed": seed}
    specs = bringup.process_list(arguments)
    return [replace(spec, parameters={**spec.parameters, **more.get(spec.name, {})}) for spec in specs]


def _run(
    args: argparse.Namespace, task: MemoryTask | None, seed: int, checkpoint: str
) -> tuple[Recording, Run]:
    log = args.output / "log.txt"
    with log.open("w") as output:
        specs = process_list(task, seed, checkpoint, args.record)
        processes = [launching.to_process(spec, args.output) for spec in specs]
        os.environ.update(launching.transport_environment(os.environ))
        with (
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO),
            ProcessGroup(processes, name="demo", output=output) as group,
        ):
            observer = Observer()
            stage = Stage(observer, group, log, bool(args.record))
            print("demo: starting simulation, arm and policy", file=sys.stderr)
            stage.wait_ready()
            if task:
                run = play(stage, task, seed, args.episodes)
            else:
                run = control(stage, args.instruction, args.seconds)
            # One more report of each part, so that counters can be read at the moment of the stop.
            stage.spin(2.2)
            observer.destroy_node()
    return observer.recording, run


def play(stage: Stage, task: MemoryTask, seed: int, episodes: int) -> Run:
    """Episodes of ``task``; the memory is reset once, when the trial in the middle is decided."""
    played: list[Played] = []
    reset = 0.0
    with tqdm(total=episodes, desc=type(task).__name__, unit="ep") as bar:
        for episode in range(episodes):
            trial, _ = draw(task, seed, episode)
            stage.observer.take_pictures(PICTURE_PERIOD if episode < FILMED else math.inf)
            start = _begin(stage, episode)
            report = _outcome(stage, trial.max_frames / FPS + LATE)
            if episode == (episodes - 1) // 2:
                # The score stands; the policy goes on for long enough to write to the empty memory.
                reset = _reset_memory(stage)
            stop = stage.observer.trigger("policy/stop_episode")
            marks = trial_marks(trial, start, report["go"], report["frame"])
            success = report["state"] == "success"
            played.append(Played(start, stop, marks, success, report["reason"], report["frame"], trial.goals))
            score = f"{sum(p.success for p in played)} of {len(played)} succeeded"
            bar.set_postfix_str(score, refresh=False)
            bar.update()
    return Run(tuple(played), reset, task)


def _begin(stage: Stage, episode: int) -> float:
    """Starts the next trial, which must be number ``episode``, and the policy; returns when (s)."""
    observer = stage.observer

    def ready() -> bool:
        return (observer.trial.get("episode"), observer.trial.get("state")) == (episode, "ready")

    observer.trigger("so100_sim/reset_scene")
    if not stage.spin(REST_TIMEOUT, ready):
        reason = observer.trial.get("reason", "the simulation did not say why")
        raise DemoError(f"trial {episode} is not ready after {REST_TIMEOUT:.0f} s: {reason}")
    start = observer.trigger("so100_sim/start_trial")
    observer.start_episode(observer.trial["instruction"])
    return start


def _outcome(stage: Stage, timeout: float) -> dict:
    """The simulation's report of the trial's end."""
    if not stage.spin(timeout, lambda: stage.observer.trial["state"] in ("success", "failure")):
        raise DemoError(f"the simulation has not ended its trial within {timeout:.0f} s")
    return stage.observer.trial


def _reset_memory(stage: Stage) -> float:
    """Returns when (s); waits for the next commit, or as long as that may take."""
    reset = stage.observer.trigger("policy/reset_memory")

    def committed() -> bool:
        latest = stage.observer.recording.memories[-1:]
        return any(m.step > 0 and from_time(m.last_reset) / NANOSECONDS >= reset for _, m in latest)

    stage.spin(COMMIT_TIMEOUT, committed)
    return reset


def control(stage: Stage, instruction: str, seconds: float) -> Run:
    """One episode without a task; the memory is reset half-way."""
    observer = stage.observer
    observer.take_pictures(seconds / PICTURES)
    start = observer.start_episode(instruction)
    with tqdm(
        total=round(seconds, 1),
        desc="control",
        unit="s",
        bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s",
    ) as bar:
        began = time.monotonic()

        def follow() -> bool:
            bar.update(min(bar.total, time.monotonic() - began) - bar.n)
            return False

        stage.spin(seconds / 2, follow)
        reset = observer.trigger("policy/reset_memory")
        stage.spin(began + seconds - time.monotonic(), follow)
    stop = observer.trigger("policy/stop_episode")
    marks = tuple(("", start + seconds * i / PICTURES) for i in range(PICTURES))
    return Run((Played(start, stop, marks),), reset)


if __name__ == "__main__":
    sys.exit(main())
