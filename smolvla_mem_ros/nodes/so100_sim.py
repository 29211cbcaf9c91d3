# SPDX-License-Identifier: Apache-2.0
"""A simulated SO-100: a serial device that so100_node opens like a real arm's, and two cameras.

Servo bus and physics run in the emulator's own process; here its state is read and rendered, and with a
memory task its trials are run and judged. Everything is on the executor's one thread, which is also where
the GL context lives.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from smolvla_mem_ros.nodes.diagnostics import diagnostic_array
from smolvla_mem_ros.nodes.parameters import declare
from smolvla_mem_ros.nodes.running import run_node
from smolvla_mem_ros.share import share_path
from smolvla_mem_ros.sim.cameras import Cameras
from smolvla_mem_ros.sim.emulator_process import EmulatorDied, EmulatorProcess
from smolvla_mem_ros.sim.scene import HOME, TABLETOP, Scene
from smolvla_mem_ros.sim.trials import TrialRefused, Trials
from smolvla_mem_ros.sim.world import CAMERAS, MEMORY_SCENE, paint
from smolvla_mem_ros.so100.arm import JOINTS

# As sensor data is sent: a reader that is late gets the newest pictures, not the oldest.
QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
JPEG_QUALITY = 90
# Width and height in pixels. Policies of the memory tasks know pictures of that size only.
FULL_SIZE, TASK_SIZE = (640, 480), (64, 48)
# Who comes late gets the present state at once.
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
HOMING_TIME = 1.5  # s for a held arm to go to where a trial starts


class So100Sim(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("so100_sim")
        declare(self, "port", "/tmp/so100_sim", "path that the emulated serial device is offered under")
        declare(self, "calibration", "", "LeRobot's calibration file of the arm; empty: the package's own")
        declare(
            self, "camera.width", 0, "pixels; 0: 640, or with a task 64 as in its demonstrations", (0, 1920)
        )
        declare(
            self, "camera.height", 0, "pixels; 0: 480, or with a task 48 as in its demonstrations", (0, 1440)
        )
        declare(self, "camera.fps", 30.0, "pictures a second from each camera", (1.0, 120.0))
        declare(self, "task", "", "memory task to play; empty: a table with blocks and no task")
        declare(
            self,
            "delay",
            -1,
            "frames between cue and go, of 15 a second; -1: drawn for each trial",
            (-1, 1000),
        )
        declare(
            self,
            "seed",
            -1,
            "of trials, or of where blocks lie; -1: new trials each start, blocks at their usual places",
            (-1, 2**31 - 1),
        )
        parameter = {name: self.get_parameter(name).value for name in self._parameters}

        self.exit_code = 0
        self._port = parameter["port"]
        calibration = Path(parameter["calibration"] or share_path("config/calibration/so100_sim.json"))
        seed = [] if parameter["seed"] < 0 else [f"--seed={parameter['seed']}"]
        # Mesa's software renderer on one thread: on all cores it makes the servo bus late 30 times a second.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        path = MEMORY_SCENE if parameter["task"] else TABLETOP
        self._scene = Scene(path)
        self._trials = self._make_trials(parameter) if parameter["task"] else None
        self._emulator = EmulatorProcess(Path(self._port), calibration.expanduser(), f"--scene={path}", *seed)
        try:
            usual = TASK_SIZE if self._trials else FULL_SIZE
            size = (parameter["camera.width"] or usual[0], parameter["camera.height"] or usual[1])
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
        self._rest = self.create_publisher(JointTrajectory, "so100/joint_trajectory", 10)
        self._trial = self.create_publisher(String, "~/trial", LATCHED) if self._trials else None
        self._trial_published: tuple[int, str] | None = None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._sent = dict.fromkeys(CAMERAS, 0)
        self._snapshot = self._emulator.snapshot()
        self.create_service(Trigger, "~/reset_scene", self._on_reset_scene)
        self.create_service(Trigger, "~/start_trial", self._on_start_trial)
        self.create_timer(1 / parameter["camera.fps"], self._send_pictures)
        self.create_timer(1.0, self._report)
        self._publish_trial()
        self.get_logger().info(f"a simulated SO-100 is at {self._port}")
        if self._trials:
            self.get_logger().info(f"its task is {self._trials.task}, trials of seed {self._trials.seed}")

    def _make_trials(self, parameter: dict) -> Trials:
        seed = parameter["seed"] if parameter["seed"] >= 0 else secrets.randbelow(2**31)
        delay = parameter["delay"] if parameter["delay"] >= 0 else None
        try:
            return Trials(parameter["task"], seed, delay, self._scene)
        except ValueError as error:
            raise ParameterException(str(error), ("task", "delay")) from error

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
        if self._trials:
            self._trials.follow(self._snapshot.time)
            paint(self._scene.model, self._trials.colours)
            self._publish_trial()
        pictures = {camera: self._cameras.render(self._scene.data, camera) for camera in CAMERAS}
        for camera, picture in pictures.items():
            self._raw[camera].publish(raw_message(picture, stamp, f"camera_{camera}"))
            self._sent[camera] += 1
            if self._compressed[camera].get_subscription_count():
                self._compressed[camera].publish(jpeg_message(picture, stamp, f"camera_{camera}"))

    def _on_reset_scene(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._emulator.reset()
            response.success = True
            response.message = "the blocks are back at their places; a held arm is on its way home"
            rest = HOME
            if self._trials:
                self._trials.next(time.monotonic())
                self._publish_trial()
                rest = self._trials.rest
                response.message = (
                    f"trial {self._trials.episode} is drawn; a held arm is on its way to its start"
                )
            # An arm that is held is its driver's: jumping home under it would only make it fight back.
            self._rest.publish(rest_trajectory(rest))
        except TimeoutError as error:
            response.success, response.message = False, str(error)
        except EmulatorDied as error:
            self._fail(error)
            response.success, response.message = False, str(error)
        return response

    def _on_start_trial(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._trials is None:
            response.message = "there is no task; start so100_sim with the parameter task"
            return response
        try:
            self._trials.start(time.monotonic())
            response.success, response.message = True, self._trials.trial.instruction
        except TrialRefused as error:
            response.message = str(error)
        self._publish_trial()
        return response

    def _publish_trial(self) -> None:
        """If it has changed; the passing of frames alone is not news."""
        if self._trials is None:
            return
        report = self._trials.report()
        if (news := (report["episode"], report["state"])) != self._trial_published:
            self._trial_published = news
            self._trial.publish(String(data=json.dumps(report)))

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


def rest_trajectory(pose: Sequence[float]) -> JointTrajectory:
    """To ``pose``, (6,) rad, from wherever the arm is."""
    point = JointTrajectoryPoint(positions=list(pose))
    point.time_from_start.sec, point.time_from_start.nanosec = divmod(round(HOMING_TIME * 1e9), 10**9)
    return JointTrajectory(joint_names=list(JOINTS), points=[point])


def main(args: list[str] | None = None) -> int:
    return run_node(So100Sim, args)


if __name__ == "__main__":
    sys.exit(main())
