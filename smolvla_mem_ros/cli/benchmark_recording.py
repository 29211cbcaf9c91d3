# SPDX-License-Identifier: Apache-2.0
"""Whether the recorder keeps up: a robot's topics at full rate, the policy on them, the recorder beside it.

The recorder and the policy are the programs that bring-up starts. The robot is made up here: its pictures are
noise, so that nothing is gained by compressing them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import serialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image, JointState
from tqdm import tqdm

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.cli.launching import LaunchArguments, to_process, transport_environment
from smolvla_mem_ros.cli.processes import ProcessGroup
from smolvla_mem_ros.evaluation.provenance import machine, versions
from smolvla_mem_ros.msg import MemoryState
from smolvla_mem_ros.policy.checkpoint import load_config
from smolvla_mem_ros.runtime.contract import load_contract
from smolvla_mem_ros.share import CHECKPOINT, CONTRACT, share_path
from smolvla_mem_ros.units import NANOSECONDS

IMAGE_HZ, STATE_HZ = 30, 100
HEIGHT, WIDTH = 480, 640
PACKAGES = ("numpy", "rclpy", "rosbags", "mcap", "torch", "lerobot")
PIXELS = HEIGHT * WIDTH * 3  # bytes
DIFFERENT = 10  # pictures, which come again and again
READY = 120.0  # s for the policy to load and everybody to find each other


class Robot(Node):
    """Publishes what the contract asks for, each message once serialised and then stamped."""

    def __init__(self, contract) -> None:
        super().__init__("robot")
        random = np.random.default_rng(0)
        pictures = [
            self._serialised(
                Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH, data=random.bytes(PIXELS))
            )
            for _ in range(DIFFERENT)
        ]
        names = list(contract.joints)
        states = [self._serialised(JointState(name=names, position=[0.0] * len(names)))]
        topics = [(Image, camera.topic, pictures, IMAGE_HZ) for camera in contract.cameras]
        topics.append((JointState, contract.state_topic, states, STATE_HZ))
        # publisher, its messages in turn, period (ns)
        self._streams = [
            (self.create_publisher(kind, topic, qos_profile_sensor_data), messages, NANOSECONDS // rate)
            for kind, topic, messages, rate in topics
        ]
        self.sent: Counter[str] = Counter()
        self.commits = 0
        self.waiting = 0.0  # MiB, the most that the recorder had to hold
        self.create_subscription(MemoryState, "policy/memory_state", self._on_memory, 10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def is_heard(self) -> bool:
        """By the policy and by the recorder."""
        return all(p.get_subscription_count() >= 2 for p, *_ in self._streams)

    def publish(self, seconds: float, progress: tqdm) -> float:
        """Returns how late (s) the latest message was published."""
        began, latest = time.monotonic_ns(), 0
        due = [(began, index) for index in range(len(self._streams))]
        while due:
            at, index = min(due)
            while (left := at - time.monotonic_ns()) > 0:
                rclpy.spin_once(self, timeout_sec=left / NANOSECONDS)
            latest = max(latest, -left)
            publisher, messages, period = self._streams[index]
            count = self.sent[publisher.topic_name]
            raw = messages[count % len(messages)]
            struct.pack_into("<iI", raw, 4, *divmod(self.get_clock().now().nanoseconds, NANOSECONDS))
            publisher.publish(bytes(raw))
            self.sent[publisher.topic_name] += 1
            due.remove((at, index))
            if at + period < began + seconds * NANOSECONDS:
                due.append((at + period, index))
            progress.update(round((at - began) / NANOSECONDS, 1) - progress.n)
        return latest / NANOSECONDS

    @staticmethod
    def _serialised(message) -> bytearray:
        return bytearray(serialize_message(message))

    def _on_memory(self, message: MemoryState) -> None:
        self.commits += message.step > 0

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "recorder":
                values = {v.key: v.value for v in status.values}
                self.waiting = max(self.waiting, float(values["waiting_MiB"]))


def measure(args: argparse.Namespace) -> int:
    """Raises RuntimeError when there is no room, or when somebody did not start or ended early."""
    need = args.seconds * 2 * IMAGE_HZ * PIXELS
    with tempfile.TemporaryDirectory(prefix="recording_", dir=args.work) as folder:
        free = shutil.disk_usage(folder).free
        if free < need * 1.1 + 2**30:
            raise RuntimeError(
                f"{folder} has {free / 2**30:.0f} GiB left, the bag needs {need / 2**30:.0f}: "
                "record for fewer --seconds, or name another folder with --work"
            )
        result = _record(args, Path(folder))
    result |= {"command": args.command, "machine": machine(), "versions": versions(PACKAGES)}
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {args.output}", file=sys.stderr)
    print(json.dumps({key: value for key, value in result.items() if key not in ("machine", "versions")}))
    return int(result["lost"] > 0)


def _record(args: argparse.Namespace, folder: Path) -> dict:
    checkpoint, contract = str(share_path(CHECKPOINT)), str(share_path(CONTRACT))
    bag, log = folder / "bag", folder / "log.txt"
    arguments = LaunchArguments(
        checkpoint, contract, task="measure", device="cpu", record=str(bag), record_storage=args.storage
    ).checked()
    specs = [*arguments.recorder(), arguments.policy(autostart=True)]
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(transport_environment(os.environ))
    with (
        log.open("w") as output,
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO),
        ProcessGroup([to_process(spec, folder) for spec in specs], name="benchmark", output=output) as group,
    ):
        robot = Robot(load_contract(contract, load_config(checkpoint)))
        deadline = time.monotonic() + READY
        while not robot.is_heard():
            rclpy.spin_once(robot, timeout_sec=0.1)
            if group.ended or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{group.ended or 'recorder and policy did not start'}:\n{log.read_text()}"
                )
        # A publisher may know its subscriber before that one knows the publisher.
        group.wait(2.0)
        with tqdm(total=args.seconds, unit="s", desc="recording") as progress:
            late = robot.publish(args.seconds, progress)
        group.wait(1.0)
        if group.ended:
            raise RuntimeError(f"{group.ended}:\n{log.read_text()}")
        group.stop()
        sent, commits, waiting = robot.sent, robot.commits, robot.waiting
        robot.destroy_node()
    with Bag(bag) as recorded:
        there = Counter(m.topic for m in recorded.messages(sent))
        problems = recorded.problems
    size = sum(file.stat().st_size for file in bag.iterdir())
    return {
        "seconds": args.seconds,
        "storage": args.storage,
        "sent": dict(sent),
        "lost": sum((sent - there).values()),
        "problems": problems,
        "MiB_per_second": round(size / args.seconds / 2**20, 1),
        "latest_publication_s": round(late, 4),
        "most_waiting_to_be_written_MiB": round(waiting, 1),
        "policy_commits": commits,
    }
