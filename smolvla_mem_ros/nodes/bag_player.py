# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 into the graph, as the bytes that were recorded."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.playback import Playback
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.nodes.messages import to_time
from smolvla_mem_ros.nodes.parameters import declare
from smolvla_mem_ros.nodes.running import run_node

SETTLE = 1.0  # s for subscribers to find the publishers before the first message


class BagPlayer(Node):
    """See the module. Ends by itself at the end of the bag."""

    def __init__(self, **options) -> None:
        super().__init__("bag_player", **options)
        declare(self, "bag", "", "rosbag2 folder, or one .mcap or .db3 file")
        declare(self, "rate", 1.0, "seconds of the bag in a second", (0.01, 100.0))
        declare(self, "start_offset", 0.0, "seconds into the bag to begin at", (0.0, 1e9))
        declare(self, "loop", False, "begin again at the end")
        declare(self, "clock", False, "publish /clock, for nodes with use_sim_time")
        declare(self, "topics", [""], "to play; all by default")
        declare(self, "remap", [""], "from:=to, new names for topics of the bag")
        declare(self, "paused", False, "begin paused; ~/pause goes on")
        declare(self, "salvage", False, "play what can be read of a damaged bag")
        parameter = {name: self.get_parameter(name).value for name in self._parameters}
        self.exit_code, self.finished = 0, False
        try:
            self._bag = Bag(Path(parameter["bag"]), parameter["salvage"])
            topics = self._chosen([*filter(None, parameter["topics"])])
            names = self._renamed([*filter(None, parameter["remap"])])
        except (BagError, ValueError) as error:
            raise ParameterException(str(error), "bag") from error
        for problem in self._bag.problems:
            self.get_logger().warning(f"not played: {problem}")
        self._publishers_by_topic = self._advertise(topics, names)
        self._clock_publisher = self.create_publisher(Clock, "/clock", 10) if parameter["clock"] else None
        self._playback = Playback(
            self._bag,
            self._publishers_by_topic.keys(),
            rate=parameter["rate"],
            start=parameter["start_offset"],
            loop=parameter["loop"],
            clock=self._publish_clock if self._clock_publisher else None,
        )
        self._playback.pause(parameter["paused"])
        self._played = 0
        self._thread = threading.Thread(target=self._play, name="playback")
        self.create_service(SetBool, "~/pause", self._on_pause)
        self._begin = self.create_timer(SETTLE, self._start)
        self.get_logger().info(
            f"playing {parameter['bag']} at {parameter['rate']:g} times its speed"
            + ("; paused" if parameter["paused"] else "")
        )

    def close(self) -> None:
        self._playback.stop()
        if self._thread.is_alive():
            self._thread.join()
        self._bag.close()
        self.get_logger().info(
            f"played {self._played} messages, the latest {self._playback.lateness:.3f} s after its time"
        )

    # Topics -------------------------------------------------------------------------------------

    def _chosen(self, wanted: list[str]) -> list[str]:
        there = [topic for topic in self._bag.topics if topic != "/clock"]
        names = [topic if topic.startswith("/") else f"/{topic}" for topic in wanted]
        if unknown := set(names) - set(there):
            raise ValueError(f"the bag has no topic {min(unknown)}; it has {', '.join(sorted(there))}")
        return names or there

    def _renamed(self, rules: list[str]) -> dict[str, str]:
        names = {}
        for rule in rules:
            old, sign, new = rule.partition(":=")
            if not sign or not new:
                raise ValueError(f"cannot read the remap {rule!r}; it looks like /camera:=/camera/front")
            names[old if old.startswith("/") else f"/{old}"] = new
        return names

    def _advertise(self, topics: list[str], names: dict[str, str]) -> dict[str, Publisher]:
        publishers = {}
        for name in topics:
            topic = self._bag.topics[name]
            try:
                package, _, message = topic.kind.split("/")
                kind = getattr(importlib.import_module(f"{package}.msg"), message)
            except (ImportError, AttributeError, ValueError):
                self.get_logger().warning(f"not played: {name}, because {topic.kind} is not installed here")
                continue
            latched = DurabilityPolicy.TRANSIENT_LOCAL if topic.latched else DurabilityPolicy.VOLATILE
            reliable = ReliabilityPolicy.RELIABLE if topic.reliable else ReliabilityPolicy.BEST_EFFORT
            qos = QoSProfile(depth=10, durability=latched, reliability=reliable)
            publishers[name] = self.create_publisher(kind, names.get(name, name), qos)
        return publishers

    # Playing, in a thread of its own --------------------------------------------------------------

    def _start(self) -> None:
        self.destroy_timer(self._begin)
        self._thread.start()

    def _play(self) -> None:
        try:
            for message in self._playback.messages():
                self._publishers_by_topic[message.topic].publish(message.raw)
                self._played += 1
        except BagError as error:
            self.get_logger().error(str(error))
            self.exit_code = 1
        self.finished = True

    def _publish_clock(self, now: int) -> None:
        self._clock_publisher.publish(Clock(clock=to_time(now)))

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._playback.pause(request.data)
        response.success, response.message = True, "paused" if request.data else "playing"
        return response


def main(args: list[str] | None = None) -> int:
    return run_node(BagPlayer, args)


if __name__ == "__main__":
    sys.exit(main())
