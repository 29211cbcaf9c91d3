# SPDX-License-Identifier: Apache-2.0
"""Records topics into a rosbag2 folder as the bytes that came, without reading them.

Subscriptions hand the bytes to a thread that writes; a disk that is slow for a moment loses nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from smolvla_mem_ros.bags.background import BackgroundWriter
from smolvla_mem_ros.bags.types import UnknownType
from smolvla_mem_ros.bags.writer import STORAGES
from smolvla_mem_ros.nodes.contract_topics import contract_topics
from smolvla_mem_ros.nodes.diagnostics import diagnostic_array
from smolvla_mem_ros.nodes.parameters import declare
from smolvla_mem_ros.nodes.running import run_node
from smolvla_mem_ros.share import share_path

# Beside cameras, joint states and commands, which the contract names.
ALWAYS = ("policy/episode", "policy/memory_state", "policy/status", "so100_sim/trial", "/diagnostics")

FLUSH_EVERY = 1.0  # s; as much is lost when the process is killed
DEPTH = 200  # messages of a topic that wait for this process


class Recorder(Node):
    """See the module. It subscribes when a topic gets its first publisher, with what that one offers."""

    def __init__(self) -> None:
        super().__init__("recorder")
        declare(self, "bag", "", "folder to write; it must not exist yet")
        declare(self, "storage", "mcap", f"format of the file: {', '.join(STORAGES)}")
        declare(self, "contract", "", "whose topics to record, see policy_node; empty: config/contract.yaml")
        declare(self, "topics", [""], "others to record")
        parameter = {name: self.get_parameter(name).value for name in self._parameters}
        if not parameter["bag"]:
            raise ParameterException("name the folder to write", "bag")
        try:
            contract = parameter["contract"] or share_path("config/contract.yaml")
            observed, command = contract_topics(Path(contract))
            self._bag = Path(parameter["bag"]).expanduser()
            self._writer = BackgroundWriter(self._bag, parameter["storage"])
        except (OSError, ValueError) as error:
            raise ParameterException(str(error), "bag") from error

        self.exit_code = 0
        names = (*observed, command, *ALWAYS, *filter(None, parameter["topics"]))
        self._wanted = {self.resolve_topic_name(name) for name in names}
        self._received: Counter[str] = Counter()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(0.2, self._look_for_topics)
        self.create_timer(FLUSH_EVERY, self._report)
        self.get_logger().info(f"recording into {self._bag}")

    def close(self) -> None:
        """Writes what is waiting and closes the bag."""
        self._writer.close()
        lost = sum(self._writer.lost.values())
        self.get_logger().info(
            f"recorded {self._writer.messages} messages, {self._writer.bytes / 2**20:.1f} MiB, in {self._bag}"
            + (f"; lost {lost}: {dict(self._writer.lost)}" if lost else "")
        )
        self._fail()

    # Topics -------------------------------------------------------------------------------------

    def _look_for_topics(self) -> None:
        for topic in sorted(self._wanted):
            if offers := self.get_publishers_info_by_topic(topic):
                self._wanted.remove(topic)
                self._subscribe(topic, offers)

    def _subscribe(self, topic: str, offers: list) -> None:
        kind = offers[0].topic_type
        # What every publisher offers, or nothing would come from some of them.
        reliable = all(o.qos_profile.reliability == ReliabilityPolicy.RELIABLE for o in offers)
        latched = all(o.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for o in offers)
        qos = QoSProfile(
            depth=DEPTH,
            history=HistoryPolicy.KEEP_LAST,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        package, _, name = kind.split("/")
        try:
            self._writer.add_topic(topic, kind, reliable, latched)
            message_type = getattr(importlib.import_module(f"{package}.msg"), name)
        except (UnknownType, ImportError, AttributeError) as error:
            self.get_logger().error(f"{topic} is not recorded: {error}")
            return
        self.create_subscription(message_type, topic, lambda raw: self._on_message(topic, raw), qos, raw=True)
        self.get_logger().info(f"recording {topic} ({kind})")

    def _on_message(self, topic: str, raw: bytes) -> None:
        self._received[topic] += 1
        if not self._writer.write(topic, self.get_clock().now().nanoseconds, raw):
            reason = self._writer.failure or "the disk is too slow"
            self.get_logger().error(f"lost a message of {topic}: {reason}", throttle_duration_sec=2.0)

    def _report(self) -> None:
        writer = self._writer
        writer.flush()
        self._fail()
        level, text = DiagnosticStatus.OK, "recording"
        if writer.failure or writer.lost:
            level, text = DiagnosticStatus.ERROR, writer.failure or "messages were lost: the disk is too slow"
        elif self._wanted:
            text += "; not there yet: " + ", ".join(sorted(self._wanted))
        values = {
            "messages": writer.messages,
            "MiB": writer.bytes / 2**20,
            "waiting_MiB": writer.waiting / 2**20,
            "lost": sum(writer.lost.values()),
            **{f"received_{topic}": count for topic, count in sorted(self._received.items())},
        }
        name = self.get_fully_qualified_name().lstrip("/")
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(diagnostic_array(stamp, name, level, text, values, str(self._bag)))

    def _fail(self) -> None:
        if self._writer.failure and not self.exit_code:
            self.get_logger().error(self._writer.failure)
            self.exit_code = 1


def main(args: list[str] | None = None) -> int:
    return run_node(Recorder, args)


if __name__ == "__main__":
    sys.exit(main())
