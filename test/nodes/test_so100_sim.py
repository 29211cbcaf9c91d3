# SPDX-License-Identifier: Apache-2.0
"""so100_sim over DDS: pictures from both cameras, an arm that so100_node drives, and nothing left behind."""

import os
import signal
import time

import cv2
import numpy as np
import pytest
from helpers import alive, stamp
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from smolvla_mem_ros.sim.scene import HOME
from smolvla_mem_ros.so100.arm import JOINTS

READY = "a simulated SO-100 is at"
CAMERAS = ("front", "wrist")


def pixels(message):
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


@pytest.fixture
def port(tmp_path):
    return tmp_path / "ttySO100"


@pytest.fixture(scope="module")
def sim(node_starter, tmp_path_factory):
    """(node, port), shared by the tests that leave it as it was."""
    port = tmp_path_factory.mktemp("sim") / "ttySO100"
    parameters = {"port": port, "camera.width": 160, "camera.height": 120}
    node = node_starter("so100_sim", parameters, ["-r", "__ns:=/shared"])
    node.wait_for(READY)
    return node, port


def test_both_cameras_send_rgb_pictures_with_stamp_and_frame(sim, shared_probe):
    topics = {camera: shared_probe.watch(f"camera/{camera}/image_raw") for camera in CAMERAS}
    shared_probe.spin_until(lambda: all(len(images) > 10 for images in topics.values()))
    for camera, images in topics.items():
        image = images[-1]
        assert (image.width, image.height, image.step, image.encoding) == (160, 120, 480, "rgb8")
        assert len(image.data) == 160 * 120 * 3 and image.header.frame_id == f"camera_{camera}"
        orange = (pixels(image)[..., 0] > 170) & (pixels(image)[..., 2] < 30)
        assert orange.mean() > 0.02
        assert (np.diff([stamp(i) for i in images]) > 0).all()
        assert abs(shared_probe.get_clock().now().nanoseconds - stamp(image)) < 1e9
    front, wrist = ({stamp(i) for i in topics[camera]} for camera in CAMERAS)
    assert len(front & wrist) > 5, "both cameras show the same moment"


def test_pictures_come_at_the_rate_asked_for(sim, shared_probe):
    images = shared_probe.watch("camera/front/image_raw")
    shared_probe.spin_until(lambda: len(images) > 5)
    images.clear()
    shared_probe.spin(2.0)
    assert np.median(np.diff([stamp(i) for i in images])) == pytest.approx(1e9 / 30, rel=0.2)


def test_compressed_pictures_are_sent_while_someone_listens(sim, shared_probe):
    raw = shared_probe.watch("camera/wrist/image_raw")
    jpegs = shared_probe.watch_jpeg("camera/wrist/image_raw/compressed")
    shared_probe.spin_until(lambda: len(jpegs) > 3 and len(raw) > 3)
    by_stamp = {stamp(message): message for message in raw}
    jpeg = next(j for j in reversed(jpegs) if stamp(j) in by_stamp)
    assert "jpeg" in jpeg.format and len(jpeg.data) < len(by_stamp[stamp(jpeg)].data) / 3
    decoded = cv2.cvtColor(
        cv2.imdecode(np.frombuffer(jpeg.data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
    )
    assert np.abs(decoded.astype(int) - pixels(by_stamp[stamp(jpeg)])).mean() < 6


def test_reset_scene_is_answered_when_it_is_done(sim, shared_probe):
    shared_probe.spin_until(lambda: "shared/so100_sim" in shared_probe.reports)
    before = int(shared_probe.reports["shared/so100_sim"]["resets"])
    answer = shared_probe.call(Trigger, "so100_sim/reset_scene")
    assert answer.success and "back at their places" in answer.message
    shared_probe.spin_until(lambda: int(shared_probe.reports["shared/so100_sim"]["resets"]) == before + 1)


def test_the_real_driver_moves_the_simulated_arm_and_the_cameras_show_it(
    sim, start_node, calibration, shared_probe
):
    _, port = sim
    node = start_node("so100_node", {"port": port, "calibration": calibration}, ["-r", "__ns:=/shared"])
    node.wait_for("connected and holding still")
    images = shared_probe.watch("camera/front/image_raw")
    shared_probe.spin_until(
        lambda: len(images) > 3 and shared_probe.states and "shared/so100_sim" in shared_probe.reports
    )
    before, writes = (
        pixels(images[-1]).astype(int),
        int(shared_probe.reports["shared/so100_sim"]["servo_writes"]),
    )
    message = JointTrajectory(joint_names=list(JOINTS))
    point = JointTrajectoryPoint(positions=[0.8, -0.3, 0.3, 0.8, -1.0, 1.2])
    point.time_from_start.nanosec = 500_000_000
    message.points.append(point)
    shared_probe.send(message)
    shared_probe.spin_until(lambda: abs(shared_probe.states[-1].position[0] - 0.8) < 0.03)
    now = stamp(images[-1])
    shared_probe.spin_until(lambda: stamp(images[-1]) > now)
    assert np.abs(pixels(images[-1]) - before).mean() > 2
    shared_probe.spin_until(
        lambda: int(shared_probe.reports["shared/so100_sim"]["servo_writes"]) > writes + 30
    )

    assert shared_probe.call(Trigger, "so100_sim/reset_scene").success
    shared_probe.spin_until(lambda: np.abs(shared_probe.states[-1].position - np.array(HOME)).max() < 0.06)
    shared_probe.spin(0.3)
    np.testing.assert_allclose(shared_probe.states[-1].position, HOME, atol=0.06)
    assert node.end()[0] == 0


def test_images_of_full_size_arrive_through_the_shared_memory_profile(
    start_node, port, probe, transport_profile
):
    assert transport_profile, "run the tests through scripts/env, which chooses config/fastdds.xml"
    node = start_node("so100_sim", {"port": port})
    node.wait_for(READY)
    topics = [probe.watch(f"camera/{camera}/image_raw") for camera in CAMERAS]
    probe.spin_until(lambda: all(len(images) > 5 for images in topics))
    probe.spin(3.0)
    for images in topics:
        # By default nine of ten are lost. Machines under load may lose a few.
        gaps = np.diff([stamp(i) for i in images[5:]]) / 1e9
        assert np.median(gaps) < 0.06 and len(images) > 30
    assert node.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_node_and_emulator_and_removes_the_port(start_node, port, number):
    node = start_node("so100_sim", {"port": port, "camera.width": 64, "camera.height": 48})
    node.wait_for(READY)
    emulators = node.children()
    assert len(emulators) == 1 and os.path.islink(port)
    code, seconds = node.end(number)
    assert code == 0 and seconds < 1
    assert not alive(emulators[0]) and not os.path.lexists(port)
    assert "Traceback" not in node.log


def test_a_killed_node_takes_its_emulator_with_it(start_node, port):
    node = start_node("so100_sim", {"port": port, "camera.width": 64, "camera.height": 48})
    node.wait_for(READY)
    emulators = node.children()
    node.end(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while alive(emulators[0]):
        assert time.monotonic() < deadline, "the emulator is an orphan"
        time.sleep(0.02)
    assert not os.path.lexists(port)


def test_when_the_emulator_dies_the_node_says_so_and_ends_with_an_error(start_node, port):
    node = start_node("so100_sim", {"port": port, "camera.width": 64, "camera.height": 48})
    node.wait_for(READY)
    os.kill(node.children()[0], signal.SIGKILL)
    assert node.process.wait(10) == 1
    assert "emulator ended with exit code -9" in node.log and "Traceback" not in node.log


def test_a_port_that_is_a_file_is_refused_with_the_cause(start_node, port):
    port.write_text("precious")
    node = start_node("so100_sim", {"port": port})
    assert node.process.wait(60) == 1
    assert "is not a link" in node.log and "Traceback" not in node.log
    assert port.read_text() == "precious"
