# SPDX-License-Identifier: Apache-2.0
"""A bag is played as it was recorded: bytes, order and pace."""

import subprocess
import sys
import time

import numpy as np
import pytest
from bag_helpers import EVENTS, IMAGES, JOINT_STATES, START, WRIST, Maker, write_run
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from smolvla_mem_ros.msg import EpisodeEvent
from smolvla_mem_ros.srv import StartEpisode
from std_srvs.srv import SetBool, Trigger

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.runtime.stamps import from_time
from smolvla_mem_ros.share import share_path


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


def test_while_it_is_paused_the_clock_stands_and_is_published(play, probe):
    clocks = []
    probe.create_subscription(Clock, "/clock", lambda m: clocks.append(from_time(m.clock)), 100)
    play(clock=True)
    probe.spin_until(lambda: clocks and clocks[-1] > START + 10**9)
    probe.call(SetBool, "bag_player/pause", data=True)
    probe.spin(0.3)
    stands = len(clocks)
    probe.spin(0.5)
    assert len(set(clocks[stands:])) == 1 and len(clocks[stands:]) > 10


def test_it_plays_what_a_policy_observes_into_its_own_namespace(start_node, bag, probe, hear):
    """And begins when all of it is heard; a bag of another namespace is found too."""
    contract = share_path("config/contract.yaml")
    named = f"['{JOINT_STATES}:=/left/joint_states']"
    parameters = {"bag": bag, "subscribers": 1, "contract": contract, "remap": named, "rate": 10.0}
    player = start_node("bag_player", parameters, ["-r", "__ns:=/replay"])
    heard = [hear("/replay/joint_states", JointState), hear(f"/replay{IMAGES}", Image)]
    others = hear(f"/replay{EVENTS}", EpisodeEvent)
    player.wait_for(f"waiting for 1 subscriber(s) of /replay{WRIST}")
    probe.spin(0.5)
    assert not any(heard)
    heard.append(hear(f"/replay{WRIST}", Image))
    probe.spin_until(lambda: player.process.poll() is not None)
    assert [len(messages) for messages in heard] == [150, 45, 45] and not others


def test_the_policy_is_told_of_episodes_before_what_follows(start_node, bag, probe, tmp_path):
    events = [(0.1, "start", 1, "sway"), (0.5, "reset_memory", 1, "sway"), (1.0, "stop", 1, "sway")]
    bag = write_run(tmp_path / "bag", Maker(), 1.5, events)
    told, states = [], []
    probe.create_subscription(JointState, JOINT_STATES, states.append, 100)

    def answer(name):
        def on_request(request, response):
            task = getattr(request, "task", "")
            told.append((name, task, from_time(states[-1].header.stamp) - START if states else 0))
            response.success, response.message = name != "reset_memory", "there is none"
            return response

        return on_request

    for name, kind in (("start_episode", StartEpisode), ("reset_memory", Trigger), ("stop_episode", Trigger)):
        probe.create_service(kind, f"policy/{name}", answer(name))
    player = start_node("bag_player", {"bag": bag, "episodes": True, "paused": True})
    begin(probe)
    probe.spin_until(lambda: player.process.poll() is not None)
    assert [(name, task) for name, task, _ in told] == [
        ("start_episode", "sway"), ("reset_memory", ""), ("stop_episode", "")
    ]  # fmt: skip
    np.testing.assert_allclose([at / 1e9 for _, _, at in told], [0.1, 0.5, 1.0], atol=0.1)
    assert "the policy did not reset memory: there is none" in player.log and player.process.returncode == 0


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"bag": "/nowhere"}, "/nowhere is not there"),
        ({"topics": "[/camera]"}, "the bag has no topic /camera; it has"),
        ({"remap": "[front]"}, "cannot read the remap 'front'"),
        ({"remap": "['/front:=/back']"}, "the bag has no topic /front to remap"),
        ({"contract": "/nowhere.yaml"}, "/nowhere.yaml"),
        (
            {"contract": share_path("config/contract.yaml"), "remap": f"['{WRIST}:=/hand']"},
            "the bag has no topics called /camera/wrist/image_raw, which the contract names",
        ),
    ],
    ids=range(6),
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
