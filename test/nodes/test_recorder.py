# SPDX-License-Identifier: Apache-2.0
"""The recorder writes every message as it came, and a bag that is closed when it is stopped or killed."""

import signal
import time
from collections import Counter

import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState
from smolvla_mem_ros.msg import EpisodeEvent
from std_msgs.msg import String

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.nodes.messages import to_time
from smolvla_mem_ros.nodes.so100_sim import raw_message

CAMERAS = ("/camera/front/image_raw", "/camera/wrist/image_raw")
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def robot(probe):
    """``publish(count, size)``: pictures of both cameras and joint states, 30 a second; what was sent."""
    cameras = [probe.create_publisher(Image, topic, BEST_EFFORT) for topic in CAMERAS]
    states = probe.create_publisher(JointState, "joint_states", 10)
    sent = []

    def publish(count, size=(480, 640)):
        picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        due = time.monotonic()
        for _ in range(count):
            stamp = to_time(len(sent) * 1_000_000)
            batch = [(publisher, raw_message(picture, stamp, "camera")) for publisher in cameras]
            batch.append((states, JointState(name=["a"], position=[float(len(sent))])))
            for publisher, message in batch:
                # Serialised once: bytes between two fields may hold anything, and other ones the next time.
                raw = bytes(serialize_message(message))
                publisher.publish(raw)
                sent.append((publisher.topic_name, raw))
            due += 1 / 30
            probe.spin(max(0.0, due - time.monotonic()))
        return sent

    publish.publishers = [*cameras, states]
    return publish


@pytest.fixture
def record(start_node, probe, tmp_path, robot):
    """A recorder that hears all of the robot's topics."""

    def start(name="bag", **parameters):
        node = start_node("recorder", {"bag": tmp_path / name, **parameters})
        node.wait_for("recording into")
        probe.spin_until(lambda: all(p.get_subscription_count() for p in robot.publishers))
        # A publisher may know its subscriber before that one knows the publisher.
        probe.spin(2.0)
        return node, tmp_path / name

    return start


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_every_message_is_in_the_bag_as_it_came(record, robot, transport_profile, storage):
    assert transport_profile, "run the tests through scripts/env, which chooses config/fastdds.xml"
    node, folder = record(storage=storage)
    sent = robot(60)
    code, seconds = node.end()
    assert code == 0 and seconds < 8
    with Bag(folder) as bag:
        assert bag.problems == []
        received = [(m.topic, m.raw) for m in bag.messages([*CAMERAS, "/joint_states"])]
        assert Counter(topic for topic, _ in received) == Counter(topic for topic, _ in sent)
        assert sorted(received) == sorted(sent)
        assert not bag.topics[CAMERAS[0]].reliable and bag.topics["/joint_states"].reliable
        # Received in this very while, not in 1970 as they are stamped.
        assert abs(bag.span[1] / 1e9 - time.time()) < 60
    assert f"recorded {bag.count} messages" in node.log


def test_what_was_published_before_and_is_kept_for_latecomers_is_in_it_too(record, probe, robot):
    events = probe.create_publisher(EpisodeEvent, "policy/episode", LATCHED)
    events.publish(EpisodeEvent(event="start", episode_id=3, task="press"))
    node, folder = record()
    node.wait_for("recording /policy/episode")
    probe.spin(0.5)
    assert node.end()[0] == 0
    with Bag(folder) as bag:
        (event,) = bag.messages(["/policy/episode"])
        assert (bag.decode(event).episode_id, bag.decode(event).task) == (3, "press")


def test_other_topics_are_recorded_on_request(record, probe):
    notes = probe.create_publisher(String, "notes", 10)
    node, folder = record(topics="[notes]")
    probe.spin_until(lambda: notes.get_subscription_count() > 0)
    notes.publish(String(data="grasped"))
    probe.spin(0.3)
    node.end(signal.SIGTERM)
    with Bag(folder) as bag:
        (note,) = bag.messages(["/notes"])
        assert bag.decode(note).data == "grasped"


def test_a_killed_recorder_leaves_all_but_the_last_second(record, robot):
    node, folder = record()
    sent = robot(90, size=(48, 64))
    node.process.kill()
    node.process.wait()
    with Bag(folder, salvage=True) as bag:
        stamps = [m.stamp for m in bag.messages(["/joint_states"])]
    assert len(sent) / 3 * (2 / 3 - 0.1) <= len(stamps) <= len(sent) / 3


def test_it_tells_how_much_it_has_and_what_is_not_there(record, probe, robot):
    node, _ = record()
    robot(10, size=(48, 64))
    probe.spin_until(lambda: int(probe.reports.get("recorder", {}).get("received_/joint_states", 0)) == 10)
    report = probe.reports["recorder"]
    assert report["lost"] == "0" and "/policy/status" in report["message"]
    assert node.end()[0] == 0


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "name the folder to write"),
        ({"bag": "."}, "is there already; name a new folder"),
        ({"bag": "new", "storage": "tape"}, "storage 'tape' is not one of mcap, sqlite3"),
        ({"bag": "new", "contract": "/nowhere.yaml"}, "/nowhere.yaml"),
        ({"bag": "new", "contract": __file__}, "is no contract"),
    ],
    ids=range(5),
)
def test_what_cannot_be_recorded_is_refused(start_node, tmp_path, monkeypatch, parameters, says):
    monkeypatch.chdir(tmp_path)
    node = start_node("recorder", parameters)
    assert node.process.wait(20) == 1
    assert says in node.log and "Traceback" not in node.log
    assert not (tmp_path / "new").exists()
