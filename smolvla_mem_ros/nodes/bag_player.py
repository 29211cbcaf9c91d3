# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 into the graph, as the bytes that were recorded.

Topics are put into the namespace of the player.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from pathlib import Path

from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool, Trigger

from smolvla_mem_ros.bags.bag import Bag, Message
from smolvla_mem_ros.bags.playback import Playback
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.nodes.contract_topics import contract_topics, match_topic
from smolvla_mem_ros.nodes.messages import to_time
from smolvla_mem_ros.nodes.parameters import declare
from smolvla_mem_ros.nodes.running import run_node
from smolvla_mem_ros.share import PACKAGE
from smolvla_mem_ros.srv import StartEpisode

EVENT = f"{PACKAGE}/msg/EpisodeEvent"

SETTLE = 1.0  # s for subscribers to find the publishers before the first message
ANSWER = 5.0  # s that the policy has to answer


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
        declare(self, "contract", "", "YAML contract of a policy: play only what that policy observes")
        declare(self, "remap", [""], "from:=to, new names for topics of the bag")
        declare(self, "episodes", False, "start, reset and stop the policy's episodes as the bag tells")
        declare(self, "subscribers", 0, "begin when every topic has so many; 0 waits for none", (0, 100))
        declare(self, "paused", False, "begin paused; ~/pause goes on")
        declare(self, "salvage", False, "play what can be read of a damaged bag")
        parameter = {name: self.get_parameter(name).value for name in self._parameters}
        self.exit_code, self.finished = 0, False
        try:
            self._bag = Bag(Path(parameter["bag"]).expanduser(), parameter["salvage"])
            names = self._renamed([*filter(None, parameter["remap"])])
            names = self._chosen(names, [*filter(None, parameter["topics"])], parameter["contract"])
            self._events = self._find_events() if parameter["episodes"] else None
        except (BagError, OSError, ValueError) as error:
            raise ParameterException(str(error), "bag") from error
        for problem in self._bag.problems:
            self.get_logger().warning(f"not played: {problem}")
        self._publishers_by_topic = self._advertise(names)
        self._clock_publisher = self.create_publisher(Clock, "/clock", 10) if parameter["clock"] else None
        self._playback = Playback(
            self._bag,
            {*self._publishers_by_topic, *filter(None, [self._events])},
            rate=parameter["rate"],
            start=parameter["start_offset"],
            loop=parameter["loop"],
            clock=self._publish_clock if self._clock_publisher else None,
        )
        self._paused, self._ready, self._subscribers = parameter["paused"], False, parameter["subscribers"]
        self._playback.pause(True)
        self._played = 0
        self._policy = (
            {
                "start": self.create_client(StartEpisode, "policy/start_episode"),
                "reset_memory": self.create_client(Trigger, "policy/reset_memory"),
                "stop": self.create_client(Trigger, "policy/stop_episode"),
            }
            if self._events
            else {}
        )
        self.create_service(SetBool, "~/pause", self._on_pause)
        self._began = time.monotonic()
        self._waiting = self.create_timer(0.1, self._look_for_subscribers)
        self._thread = threading.Thread(target=self._play, name="playback")
        self._thread.start()
        self.get_logger().info(
            f"playing {parameter['bag']} at {parameter['rate']:g} times its speed"
            + ("; paused" if parameter["paused"] else "")
        )

    def close(self) -> None:
        self._playback.stop()
        self._thread.join()
        self._bag.close()
        self.get_logger().info(
            f"played {self._played} messages, the latest {self._playback.lateness:.3f} s after its time"
        )

    # Topics -------------------------------------------------------------------------------------

    def _chosen(self, names: dict[str, str], wanted: list[str], contract: str) -> dict[str, str]:
        """Those of ``names`` (topic of the bag -> name to play it under) that are to be played."""
        if contract:
            observed, _ = contract_topics(Path(contract).expanduser())
            return {match_topic(names, topic): topic for topic in observed}
        topics = [topic if topic.startswith("/") else f"/{topic}" for topic in wanted]
        if unknown := set(topics) - set(names):
            raise ValueError(f"the bag has no topic {min(unknown)}; it has {', '.join(sorted(names))}")
        return {topic: names[topic] for topic in topics or names}

    def _find_events(self) -> str:
        found = [topic.name for topic in self._bag.topics.values() if topic.kind == EVENT]
        if len(found) != 1:
            raise ValueError(
                f"the bag has {len(found) or 'no'} topics of type {EVENT}, so it does not tell its episodes; "
                "say what was to be done with task:="
            )
        return found[0]

    def _renamed(self, rules: list[str]) -> dict[str, str]:
        """{topic of the bag: name to play it under}"""
        names = {topic: topic for topic in self._bag.topics if topic != "/clock"}
        for rule in rules:
            old, sign, new = rule.partition(":=")
            if not sign or not new:
                raise ValueError(f"cannot read the remap {rule!r}; it looks like /camera:=/camera/front")
            old = old if old.startswith("/") else f"/{old}"
            if old not in names:
                raise ValueError(f"the bag has no topic {old} to remap; it has {', '.join(sorted(names))}")
            names[old] = new
        return names

    def _advertise(self, names: dict[str, str]) -> dict[str, Publisher]:
        publishers = {}
        for name, new_name in names.items():
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
            publishers[name] = self.create_publisher(kind, new_name.lstrip("/"), qos)
        return publishers

    # Playing, in a thread of its own --------------------------------------------------------------

    def _look_for_subscribers(self) -> None:
        wanted = self._subscribers
        publishers = self._publishers_by_topic.values()
        unheard = [p.topic_name for p in publishers if p.get_subscription_count() < max(wanted, 1)]
        late = time.monotonic() - self._began > SETTLE
        if unheard and (wanted or not late):
            if late:
                self.get_logger().info(
                    f"waiting for {wanted} subscriber(s) of {', '.join(unheard)}", throttle_duration_sec=5.0
                )
            return
        self.destroy_timer(self._waiting)
        self._ready = True
        self._playback.pause(self._paused)

    def _play(self) -> None:
        try:
            for message in self._playback.messages():
                if message.topic == self._events:
                    self._tell_policy(message)
                if message.topic in self._publishers_by_topic:
                    self._publishers_by_topic[message.topic].publish(message.raw)
                    self._played += 1
        except BagError as error:
            self.get_logger().error(str(error))
            self.exit_code = 1
        self.finished = True

    def _tell_policy(self, message: Message) -> None:
        event = self._bag.decode(message)
        client = self._policy.get(event.event)
        if client is None:
            return
        kind = client.srv_type.Request
        request = kind(task=event.task) if event.event == "start" else kind()
        answered = threading.Event()
        # Later messages belong to the episode that is asked for here.
        future = client.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(ANSWER):
            problem = "it does not answer"
        elif future.result().success:
            return
        else:
            problem = future.result().message
        self.get_logger().warning(f"the policy did not {event.event.replace('_', ' ')}: {problem}")

    def _publish_clock(self, now: int) -> None:
        self._clock_publisher.publish(Clock(clock=to_time(now)))

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._paused = request.data
        self._playback.pause(self._paused or not self._ready)
        response.success, response.message = True, "paused" if request.data else "playing"
        return response


def main(args: list[str] | None = None) -> int:
    return run_node(BagPlayer, args)


if __name__ == "__main__":
    sys.exit(main())
