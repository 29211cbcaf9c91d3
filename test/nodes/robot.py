# SPDX-License-Identifier: Apache-2.0
"""A stand-in for robot and user: publishes cameras and joint states, records what the policy publishes.

It is a real node that talks to the policy over DDS; only the pictures are made up.
"""

import time

import numpy as np
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from smolvla_mem_ros.msg import EpisodeEvent, MemoryState, PolicyStatus
from smolvla_mem_ros.srv import StartEpisode
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from smolvla_mem_ros.runtime.stamps import from_time

JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]


class Robot(Node):
    def __init__(self, context) -> None:
        super().__init__("robot", context=context)
        self.cameras = {
            name: self.create_publisher(Image, f"camera/{name}/image_raw", qos_profile_sensor_data)
            for name in ("front", "wrist")
        }
        self.joint_states = self.create_publisher(JointState, "joint_states", qos_profile_sensor_data)
        self.silent: set[str] = set()
        self.shade = lambda: 90  # of the next picture, 0 to 255
        self.positions = [0.1, -0.2, 0.3, 0.0, 0.1, 0.5]
        self.trajectories, self.memories, self.statuses, self.events = [], [], [], []
        kept = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(EpisodeEvent, "policy/episode", self.events.append, kept)
        self.create_subscription(JointTrajectory, "so100/joint_trajectory", self.trajectories.append, 100)
        self.create_subscription(MemoryState, "policy/memory_state", self.memories.append, 100)
        self.create_subscription(PolicyStatus, "policy/status", self.statuses.append, 100)
        self.user = {
            "start_episode": self.create_client(StartEpisode, "policy/start_episode"),
            "reset_memory": self.create_client(Trigger, "policy/reset_memory"),
            "stop_episode": self.create_client(Trigger, "policy/stop_episode"),
        }
        self.create_timer(1 / 30, self._publish)

    def _publish(self) -> None:
        now = self.get_clock().now().to_msg()
        for name, publisher in self.cameras.items():
            if name not in self.silent:
                message = Image(height=48, width=64, encoding="rgb8", step=192)
                message.data = np.full(48 * 192, self.shade(), np.uint8).tobytes()
                message.header.stamp = now
                publisher.publish(message)
        if "joint_states" not in self.silent:
            message = JointState(name=JOINTS, position=self.positions)
            message.header.stamp = now
            self.joint_states.publish(message)


class Scene:
    """Policy and robot on one executor in the test's thread."""

    def __init__(self, context, policy, robot: Robot) -> None:
        self.policy, self.robot = policy, robot
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(policy)
        self._executor.add_node(robot)

    def spin(self, seconds: float = 20.0, until=lambda: False) -> bool:
        """True as soon as ``until()`` holds, False after ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)
            if until():
                return True
        return False

    def call(self, service: str, **request):
        client = self.robot.user[service]
        kind = StartEpisode.Request if service == "start_episode" else Trigger.Request
        assert self.spin(5, client.service_is_ready)
        future = client.call_async(kind(**request))
        assert self.spin(10, future.done)
        return future.result()

    def wait_for_state(self, state: str) -> PolicyStatus:
        seen = len(self.robot.statuses)
        assert self.spin(60, lambda: any(s.state == state for s in self.robot.statuses[seen:])), (
            self.robot.statuses[-1:]
        )
        return next(s for s in self.robot.statuses[seen:] if s.state == state)

    def wait_for_commits(self, count: int) -> list[MemoryState]:
        """The memory states of the next ``count`` commits."""
        seen = len(self.robot.memories)

        def commits():
            return [m for m in self.robot.memories[seen:] if m.step > 0]

        assert self.spin(20, lambda: len(commits()) >= count), self.robot.statuses[-1:]
        return commits()[:count]

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=0)


def stamp(message) -> int:
    return from_time(message.header.stamp)
