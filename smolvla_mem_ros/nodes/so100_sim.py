# SPDX-License-Identifier: Apache-2.0
"""A simulated SO-100: a serial device that so100_node opens like a real arm's, and two cameras.

Servo bus and physics run in the emulator's own process; here its state is read and rendered. Everything is
on the executor's one thread, which is also where the GL context lives.
"""

from __future__ import annotations

import array
import contextlib
import os
import sys
import time
from pathlib import Path

import cv2
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from smolvla_mem_ros.nodes.diagnostics import diagnostic_array
from smolvla_mem_ros.nodes.parameters import declare
from smolvla_mem_ros.nodes.running import run_node
from smolvla_mem_ros.share import share_path
from smolvla_mem_ros.sim.cameras import Cameras
from smolvla_mem_ros.sim.emulator_process import EmulatorDied, EmulatorProcess
from smolvla_mem_ros.sim.scene import HOME, Scene
from smolvla_mem_ros.so100.arm import JOINTS

CAMERAS = ("front", "wrist")
# As sensor data is sent: a reader that is late gets the newest pictures, not the oldest.
QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
JPEG_QUALITY = 90
HOMING_TIME = 1.5  # s for a held arm to go home


class So100Sim(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("so100_sim")
        declare(self, "port", "/tmp/so100_sim", "path that the emulated serial device is offered under")
        declare(self, "calibration", "", "LeRobot's calibration file of the arm; empty: the package's own")
        declare(self, "camera.width", 640, "pixels", (16, 1920))
        declare(self, "camera.height", 480, "pixels", (16, 1440))
        declare(self, "camera.fps", 30.0, "pictures a second from each camera", (1.0, 120.0))
        declare(self, "seed", -1, "for where the blocks lie; -1: always at the same places", (-1, 2**31 - 1))
        parameter = {name: self.get_parameter(name).value for name in self._parameters}

        self.exit_code = 0
        self._port = parameter["port"]
        calibration = Path(parameter["calibration"] or share_path("config/calibration/so100_sim.json"))
        seed = [] if parameter["seed"] < 0 else [f"--seed={parameter['seed']}"]
        # Mesa's software renderer on one thread: on all cores it makes the servo bus late 30 times a second.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        self._scene = Scene()
        self._emulator = EmulatorProcess(Path(self._port), calibration.expanduser(), *seed)
        try:
            size = (parameter["camera.width"], parameter["camera.height"])
            self._cameras = Cameras(self._scene.model, CAMERAS, *size)
            self._emulator.wait_ready()
        except (EmulatorDied, TimeoutError, RuntimeError) as error:
            self._emulator.close()
            raise ParameterException(f"{error} (see the line before this one)", "port") from error
        self._raw = {c: self.create_publisher(Image, f"camera/{c}/image_raw", QOS) for c in CAMERAS}
        self._compressed = {
            c: self.create_publisher(CompressedImage, f"camera/{c}/image_raw/compressed", QOS)
            for c in CAMERAS
        }
        self._home = self.create_publisher(JointTrajectory, "so100/joint_trajectory", 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._sent = dict.fromkeys(CAMERAS, 0)
        self._snapshot = self._emulator.snapshot()
        self.create_service(Trigger, "~/reset_scene", self._on_reset_scene)
        self.create_timer(1 / parameter["camera.fps"], self._send_pictures)
        self.create_timer(1.0, self._report)
        self.get_logger().info(f"a simulated SO-100 is at {self._port}")

    def close(self) -> None:
        """Ends the emulator and gives the GL context back."""
        self._wait_for_quiet_bus()
        self._emulator.close()
        self._cameras.close()

    def _wait_for_quiet_bus(self) -> None:
        """When everything ends at once, the arm goes last: its driver must not find the port gone."""
        before, deadline = -1, time.monotonic() + 0.6
        with contextlib.suppress(EmulatorDied, RuntimeError):
            while (packets := self._emulator.snapshot().packets) != before and time.monotonic() < deadline:
                before = packets
                time.sleep(0.05)

    def _send_pictures(self) -> None:
        try:
            self._snapshot = self._emulator.snapshot()
        except (EmulatorDied, RuntimeError) as error:
            self._fail(error)
            return
        stamp = self.get_clock().now().to_msg()
        self._scene.show(self._snapshot.qpos)
        pictures = {camera: self._cameras.render(self._scene.data, camera) for camera in CAMERAS}
        for camera, picture in pictures.items():
            self._raw[camera].publish(raw_message(picture, stamp, f"camera_{camera}"))
            self._sent[camera] += 1
            if self._compressed[camera].get_subscription_count():
                self._compressed[camera].publish(jpeg_message(picture, stamp, f"camera_{camera}"))

    def _on_reset_scene(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._emulator.reset()
            # An arm that is held is its driver's: jumping home under it would only make it fight back.
            self._home.publish(home_trajectory())
            response.success = True
            response.message = "the blocks are back at their places; a held arm is on its way home"
        except TimeoutError as error:
            response.success, response.message = False, str(error)
        except EmulatorDied as error:
            self._fail(error)
            response.success, response.message = False, str(error)
        return response

    def _report(self) -> None:
        values = {f"images_sent_{camera}": count for camera, count in self._sent.items()}
        values |= {
            "servo_writes": self._snapshot.goal_writes,
            "servo_packets": self._snapshot.packets,
            "resets": self._snapshot.resets,
        }
        stamp = self.get_clock().now().to_msg()
        name = self.get_fully_qualified_name().lstrip("/")
        level, text = DiagnosticStatus.OK, "simulating"
        self._diagnostics.publish(diagnostic_array(stamp, name, level, text, values, self._port))

    def _fail(self, error: Exception) -> None:
        if not self.exit_code:
            self.get_logger().error(f"{error}; ending, because the arm is gone with it")
        self.exit_code = 1


def raw_message(picture, stamp, frame: str) -> Image:
    """``picture`` (H, W, 3) uint8 RGB."""
    height, width, channels = picture.shape
    message = Image(height=height, width=width, encoding="rgb8", step=width * channels)
    message.header.stamp, message.header.frame_id = stamp, frame
    # From an array.array rclpy copies; anything else it checks byte by byte, which takes 65 ms.
    message.data = array.array("B", picture.tobytes())
    return message


def jpeg_message(picture, stamp, frame: str) -> CompressedImage:
    """``picture`` (H, W, 3) uint8 RGB."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    message = CompressedImage(format="rgb8; jpeg compressed bgr8")
    message.header.stamp, message.header.frame_id = stamp, frame
    message.data = array.array("B", encoded.tobytes())
    return message


def home_trajectory() -> JointTrajectory:
    """To the scene's start, from wherever the arm is."""
    point = JointTrajectoryPoint(positions=list(HOME))
    point.time_from_start.sec, point.time_from_start.nanosec = divmod(round(HOMING_TIME * 1e9), 10**9)
    return JointTrajectory(joint_names=list(JOINTS), points=[point])


def main(args: list[str] | None = None) -> int:
    return run_node(So100Sim, args)


if __name__ == "__main__":
    sys.exit(main())
