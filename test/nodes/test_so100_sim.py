# SPDX-License-Identifier: Apache-2.0
"""so100_sim over DDS: pictures from both cameras, an arm that so100_node drives, trials of a memory task that
are shown and judged as they are offline, and nothing left behind."""

import json
import os
import signal
import time

import cv2
import numpy as np
import pytest
from helpers import stamp
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from waiting import alive

from smolvla_mem_ros.nodes.so100_sim import LATCHED
from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.expert import press_pose
from smolvla_mem_ros.sim.scene import HOME, Scene
from smolvla_mem_ros.sim.tasks import FPS, PLACES, get_task
from smolvla_mem_ros.sim.world import MEMORY_SCENE
from smolvla_mem_ros.so100.arm import JOINTS

READY = "a simulated SO-100 is at"
CAMERAS = ("front", "wrist")
FRAME = 1 / FPS  # s


def trajectory(pose, seconds):
    """To ``pose``, (6,) rad."""
    point = JointTrajectoryPoint(positions=[float(q) for q in pose])
    point.time_from_start.nanosec = round(seconds * 1e9)
    return JointTrajectory(joint_names=list(JOINTS), points=[point])


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
    shared_probe.send(trajectory([0.8, -0.3, 0.3, 0.8, -1.0, 1.2], 0.5))
    shared_probe.spin_until(lambda: abs(shared_probe.states[-1].position[0] - 0.8) < 0.03)
    # On a busy machine pictures lag behind the joints.
    shared_probe.spin_until(lambda: np.abs(pixels(images[-1]) - before).mean() > 2)
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


# Trials over DDS --------------------------------------------------------------------------------

SEED, DELAY = 3, 8


class Player:
    """Plays trials by their services, and hears how they stand."""

    def __init__(self, probe):
        self.probe = probe
        self.reports = []
        probe.create_subscription(
            String, "so100_sim/trial", lambda message: self.reports.append(json.loads(message.data)), LATCHED
        )
        self.images = probe.watch("camera/front/image_raw")
        self.scene = Scene(MEMORY_SCENE)

    def wait(self, state):
        self.probe.spin_until(lambda: self.reports and self.reports[-1]["state"] == state)
        return self.reports[-1]

    def reset(self):
        """The trial that comes next, ready."""
        self.probe.spin_until(lambda: self.reports)
        before = self.reports[-1]["episode"]
        assert self.probe.call(Trigger, "so100_sim/reset_scene").success
        self.probe.spin_until(lambda: self.reports[-1]["episode"] == before + 1)
        self.wait("ready")
        return draw(get_task("CueRecall2"), SEED, before + 1, delay=DELAY)[0]

    def start(self):
        return self.probe.call(Trigger, "so100_sim/start_trial")

    def press(self, place, seconds=0.7):
        self.probe.send(trajectory(press_pose(self.scene, PLACES[place]), seconds))

    def picture(self):
        """(H, W, 3) int, of now."""
        now = self.probe.get_clock().now().nanoseconds
        self.probe.spin_until(lambda: self.images and stamp(self.images[-1]) > now)
        return pixels(self.images[-1]).astype(int)


@pytest.fixture(scope="module")
def played(node_starter, calibration, tmp_path_factory):
    """A simulation with a task and the arm's driver, in the namespace /task."""
    port = tmp_path_factory.mktemp("played") / "ttySO100"
    arguments = ["-r", "__ns:=/task"]
    parameters = {
        "camera.width": 160,
        "camera.height": 120,
        "task": "CueRecall2",
        "seed": SEED,
        "delay": DELAY,
    }
    sim = node_starter("so100_sim", {"port": port, **parameters}, arguments)
    sim.wait_for(READY)
    arm = node_starter("so100_node", {"port": port, "calibration": calibration}, arguments)
    arm.wait_for("connected and holding still")
    yield
    arm.end()


@pytest.fixture
def player(played, make_probe):
    return Player(make_probe("task"))


def changed(before, after):
    """(H, W) bool; the edges of an arm that settles count for a few pixels."""
    return np.abs(after - before).max(axis=2) > 60


def test_the_picture_shows_the_trials_cue_and_go_and_nothing_before(player):
    colours = set()
    while len(colours) < 2:
        trial = player.reset()
        dark = player.picture()
        assert changed(dark, player.picture()).sum() < 10, "nothing happens before the start"
        answer = player.start()
        assert answer.success and answer.message == trial.instruction
        lit = player.picture()
        colour = trial.flashes[0].colour
        lamp = changed(dark, lit)
        assert 30 < lamp.sum() < 600
        assert "rgb"[np.argmax((lit - dark)[lamp].mean(axis=0))] == colour[0]
        colours.add(colour)
        # The go lamp is another one, and by then the cue is gone.
        player.probe.spin((trial.go + 1) * FRAME)
        go = changed(dark, player.picture())
        assert go.sum() > 30 and (go & lamp).sum() < 0.2 * lamp.sum()


def test_the_arm_that_presses_the_right_pad_after_go_succeeds(player):
    trial = player.reset()
    assert player.start().success
    player.probe.spin((trial.go + 1) * FRAME)
    player.press(trial.goals[0])
    report = player.wait("success")
    assert report["reason"] == f"reached {trial.goals[0]}" and report["instruction"] == trial.instruction
    assert report["go"] == trial.go and trial.go + 5 < report["frame"] < trial.go + 40
    assert [r["state"] for r in player.reports][-3:] == ["ready", "running", "success"]


@pytest.mark.parametrize("when, reason", [("early", "before go"), ("late", "not to")])
def test_the_arm_that_presses_too_early_or_wrongly_fails(player, when, reason):
    trial = player.reset()
    assert player.start().success
    place = trial.goals[0]
    if when == "late":
        player.probe.spin((trial.go + 1) * FRAME)
        place = next(p for p in trial.pads if p != place)
    player.press(place, 0.5)
    report = player.wait("failure")
    assert reason in report["reason"] and place in report["reason"]


def test_a_trial_is_refused_while_the_arm_is_on_its_way_and_when_it_is_over(player):
    player.reset()
    player.press("left", 0.4)
    player.wait("idle")
    answer = player.start()
    assert not answer.success and "not at rest" in answer.message
    player.reset()
    assert player.start().success
    answer = player.start()
    assert not answer.success and "running already" in answer.message


def test_without_a_task_there_is_no_trial_to_start(sim, shared_probe):
    answer = shared_probe.call(Trigger, "so100_sim/start_trial")
    assert not answer.success and "there is no task" in answer.message
    assert "shared/so100_sim/trial" not in dict(shared_probe.get_topic_names_and_types())


@pytest.mark.parametrize(
    "parameters, says",
    [
        ({"task": "CueRecal"}, "there is no task 'CueRecal'; there are CueRecall2"),
        ({"task": "CueRecall2", "delay": 3}, "delay 3 is too short"),
    ],
    ids=["task", "delay"],
)
def test_a_task_that_cannot_be_played_is_refused_with_the_cause(start_node, port, parameters, says):
    node = start_node("so100_sim", {"port": port, **parameters})
    assert node.process.wait(60) == 1
    assert says in node.log and "Traceback" not in node.log
    assert not os.path.lexists(port)
