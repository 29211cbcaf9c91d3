# SPDX-License-Identifier: Apache-2.0
"""A bag is played as it was recorded: bytes, order and pace."""

import subprocess
import sys
import time

import numpy as np
import pytest
from bag_helpers import IMAGES, JOINT_STATES, START, WRIST, Maker, write_run
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import SetBool

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.runtime.stamps import from_time


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    events = [(0.1, "start", 1, "sway")]
    return write_run(tmp_path_factory.mktemp("bags") / "monday", Maker(), 3, events)


@pytest.fixture
def hear(probe):
    """``hear(topic, kind)``: a list of (seconds, raw message) that fills."""

    def start(topic, kind, depth=100):
        heard = []
        qos = QoSProfile(depth=depth)
        probe.create_subscription(
            kind, topic, lambda raw: heard.append((time.monotonic(), raw)), qos, raw=True
        )
        return heard

    return start


@pytest.fixture
def play(start_node, probe, bag):
    """A player of the bag that begins once it has met this process."""

    def start(**parameters):
        player = start_node("bag_player", {"bag": bag, "paused": True, **parameters})
        begin(probe)
        return player

    return start


def begin(probe):
    """Lets a paused player go on, when it has met this process."""
    probe.spin_until(lambda: any(name == "bag_player" for name in probe.get_node_names()))
    probe.spin(2.0)
    assert probe.call(SetBool, "bag_player/pause", data=False).message == "playing"


def of(bag, topic):
    with Bag(bag) as opened:
        return [message.raw for message in opened.messages([topic])]


def test_every_message_is_played_as_it_was_at_its_pace(bag, play, probe, hear):
    heard = {t: hear(t, k) for t, k in ((JOINT_STATES, JointState), (IMAGES, Image), (WRIST, Image))}
    player = play()
    probe.spin_until(lambda: player.process.poll() is not None)
    assert player.process.returncode == 0 and "played 241 messages" in player.log
    for topic, messages in heard.items():
        assert [raw for _, raw in messages] == of(bag, topic)
    times = np.array([at for at, _ in heard[JOINT_STATES]])
    assert times[-1] - times[0] == pytest.approx(2.98, abs=0.3)


def test_rate_start_selection_and_new_names(bag, play, probe, hear):
    heard, others = hear("/renamed", JointState), hear(IMAGES, Image)
    names = f"['{JOINT_STATES}:=/renamed']"
    player = play(rate=4.0, start_offset=1.0, topics=f"[{JOINT_STATES}]", remap=names)
    probe.spin_until(lambda: player.process.poll() is not None)
    assert [raw for _, raw in heard] == of(bag, JOINT_STATES)[50:] and not others
    assert heard[-1][0] - heard[0][0] == pytest.approx(0.5, abs=0.2)


def test_it_begins_again_can_be_paused_and_ends_on_a_signal(play, probe, hear):
    heard = hear(JOINT_STATES, JointState)
    player = play(rate=10.0, loop=True)
    probe.spin_until(lambda: len(heard) > 200)
    assert probe.call(SetBool, "bag_player/pause", data=True).message == "paused"
    probe.spin(0.3)
    count = len(heard)
    probe.spin(0.7)
    assert len(heard) == count
    assert probe.call(SetBool, "bag_player/pause", data=False).message == "playing"
    probe.spin_until(lambda: len(heard) > count + 50)
    assert player.end()[0] == 0


def test_the_clock_is_the_bags_and_never_goes_back(play, probe):
    clocks = []
    probe.create_subscription(Clock, "/clock", lambda m: clocks.append(from_time(m.clock)), 100)
    player = play(clock=True, topics=f"[{IMAGES}]")
    probe.spin_until(lambda: player.process.poll() is not None)
    assert START <= clocks[0] < START + 10**8 and clocks[-1] == START + 2_933_333_333
    assert clocks == sorted(clocks) and len(clocks) > 150


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"bag": "/nowhere"}, "/nowhere is not there"),
        ({"topics": "[/camera]"}, "the bag has no topic /camera; it has"),
        ({"remap": "[front]"}, "cannot read the remap 'front'"),
    ],
    ids=range(3),
)
def test_what_cannot_be_played_is_refused(bag, start_node, parameters, says):
    player = start_node("bag_player", {"bag": bag, **parameters})
    assert player.process.wait(20) == 1
    assert says in player.log and "Traceback" not in player.log


def test_the_program_takes_the_same_options(bag, probe, hear):
    heard = hear("/renamed", JointState)
    command = [sys.executable, "-m", "smolvla_mem_ros.cli.play_bag", str(bag)]
    options = ["--rate", "10", "--topics", JOINT_STATES, "--remap", f"{JOINT_STATES}:=/renamed"]
    done = subprocess.Popen([*command, *options, "--paused"], stderr=subprocess.PIPE)
    begin(probe)
    probe.spin_until(lambda: done.poll() is not None)
    assert done.returncode == 0 and len(heard) == 150
    wrong = subprocess.run([*command, "--rate", "0"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "--rate must be between" in wrong.stderr
