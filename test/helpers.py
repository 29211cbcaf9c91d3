# SPDX-License-Identifier: Apache-2.0
"""Nodes as processes of their own, and a probe in the test's process that talks to them over DDS."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from smolvla_mem_ros.so100.arm import JOINTS

START_TIMEOUT = 60.0  # s; LeRobot alone takes 3 to import, and longer next to other tests


class NodeProcess:
    """A node started as ``python -m smolvla_mem_ros.nodes.MODULE``."""

    def __init__(self, module, folder, parameters, arguments=()):
        self._log = folder / f"{module}_{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", f"smolvla_mem_ros.nodes.{module}", "--ros-args", *arguments]
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else value
            command += ["-p", f"{name}:={text}"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self):
        return self._log.read_text()

    def wait_for(self, text, timeout=START_TIMEOUT):
        """Until ``text`` is in the log."""
        deadline = time.monotonic() + timeout
        while text not in self.log:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"'{text}' is not in the log:\n{self.log}"
            time.sleep(0.02)

    def end(self, number=signal.SIGINT, timeout=10.0):
        """Sends a signal; returns (exit code, seconds it took)."""
        started = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(timeout), time.monotonic() - started

    def children(self):
        return [
            int(p)
            for p in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]


class Probe(Node):
    """Hears everything the arm's nodes publish; sends trajectories and calls services."""

    def __init__(self, context, namespace=""):
        super().__init__("probe", context=context, namespace=namespace)
        self.states, self.images, self.reports = [], {}, {}
        self.create_subscription(JointState, "joint_states", self.states.append, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_report, 10)
        self._trajectories = self.create_publisher(JointTrajectory, "so100/joint_trajectory", 10)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self)

    def _on_report(self, message):
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            self.reports[status.name] = values | {"level": status.level, "message": status.message}

    def watch(self, topic, kind=Image):
        """A list that fills with the topic's messages."""
        self.images[topic] = []
        self.create_subscription(kind, topic, self.images[topic].append, qos_profile_sensor_data)
        return self.images[topic]

    def watch_jpeg(self, topic):
        return self.watch(topic, CompressedImage)

    def spin_until(self, condition, timeout=START_TIMEOUT):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            self._executor.spin_once(timeout_sec=0.02)

    def spin(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)

    def fresh_state(self):
        """A joint state that was measured after this call."""
        now = self.get_clock().now().nanoseconds
        self.spin_until(lambda: self.states and stamp(self.states[-1]) > now)
        return self.states[-1]

    def send(self, message):
        self.spin_until(lambda: self._trajectories.get_subscription_count() > 0)
        self._trajectories.publish(message)

    def call(self, kind, service, **request):
        client = self.create_client(kind, service)
        self.spin_until(client.service_is_ready)
        future = client.call_async(kind.Request(**request))
        self.spin_until(future.done)
        self.destroy_client(client)
        return future.result()


def stamp(message):
    """ns"""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def trajectory(*rows, joints=JOINTS):
    """Rows of (s, position of every joint)."""
    message = JointTrajectory(joint_names=list(joints))
    for seconds, positions in rows:
        point = JointTrajectoryPoint(positions=[float(p) for p in positions])
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(round(seconds * 1e9), 10**9)
        message.points.append(point)
    return message
