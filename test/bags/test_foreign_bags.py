# SPDX-License-Identifier: Apache-2.0
"""Bags of other robots, as the recorders of ROS 2's releases leave them: read, inspected and replayed.

Metadata and tables are written here by hand, from what rosbag2's branches write; messages by rclpy.
"""

import sqlite3
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
import zstandard
from mcap.writer import Writer as McapWriter
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.frames import Framer
from smolvla_mem_ros.bags.measures import Target
from smolvla_mem_ros.bags.replay import Replay
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.bags.streams import find_topics
from smolvla_mem_ros.cli import inspect_bag
from smolvla_mem_ros.runtime.contract import contract_alone, load_contract
from smolvla_mem_ros.runtime.episode import Result

START = 1_700_000_000 * 10**9
FRONT, WRIST = "/robot7/front/image_raw", "/robot7/wrist_cam/image_raw/compressed"
STATES, COMMANDS, NOTES = "/robot7/joint_states", "/robot7/arm_controller/joint_trajectory", "/robot7/notes"
SENT = {FRONT: Image, WRIST: CompressedImage, STATES: JointState, COMMANDS: JointTrajectory, NOTES: String}
# Neither the order of a policy's joints nor only those; one of them is never measured.
NAMES = ("grip", "wheel", "elbow", "base", "rail")
POLICY = ("base", "elbow", "grip")
RED, BLUE = (254, 0, 0), (10, 20, 250)


# The robot ------------------------------------------------------------------------------------------


def kind(topic):
    return f"{SENT[topic].__module__.split('.')[0]}/msg/{SENT[topic].__name__}"


def picture(topic):
    if topic == FRONT:  # YUYV, each row with two bytes of padding; red in BT.601
        rows = np.tile(np.array([81, 90, 81, 240], np.uint8), (4, 3))
        data = np.hstack([rows, np.zeros((4, 2), np.uint8)]).tobytes()
        return Image(height=4, width=6, encoding="yuv422_yuy2", step=14, data=data)
    png = cv2.imencode(".png", np.full((5, 7, 3), BLUE[::-1], np.uint8))[1]
    return CompressedImage(format="rgb8; png compressed bgr8", data=png.tobytes())


def stamped(message, stamp):
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
    return message


def positions(at, degrees=False):
    """Of NAMES, radians or degrees, at a time in seconds."""
    arm = [0.2 + at / 10, 1.2, 0.3 + at / 10, -0.2, np.nan]
    return np.degrees(arm).tolist() if degrees else arm


def recorded(degrees=False):
    """(ns, topic, bytes) of two seconds: cameras at 10 Hz, joint states at 50 Hz, a command and a note."""
    entries = [(START, NOTES, serialize_message(String(data="hello")))]
    for step in range(100):
        stamp = START + step * 20_000_000
        state = JointState(name=list(NAMES), position=positions(step / 50, degrees))
        entries.append((stamp, STATES, serialize_message(stamped(state, stamp))))
        if step % 5 == 0:
            for topic in (FRONT, WRIST):
                entries.append((stamp, topic, serialize_message(stamped(picture(topic), stamp))))
    point = JointTrajectoryPoint(positions=[1.0, 2.0])
    command = stamped(JointTrajectory(joint_names=["elbow", "base"], points=[point]), START)
    return [*entries, (START, COMMANDS, serialize_message(command))]


ENTRIES = recorded()


# Its recorders --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Release:
    """What a release of ROS 2 writes: versions of metadata.yaml and of the SQLite tables."""

    name: str
    version: int
    schema: int


RELEASES = [
    Release("foxy", 4, 2),
    Release("humble", 5, 3),
    Release("iron", 7, 4),
    Release("rolling", 8, 4),
    Release("jazzy", 9, 4),
    Release("kilted", 9, 4),
]
RELIABLE, BEST_EFFORT = 1, 2
FOREVER = {"sec": 9223372036, "nsec": 854775807}


def profiles(release, topic):
    """offered_qos_profiles: numbers up to version 8, from 9 on words."""
    reliability = BEST_EFFORT if topic == FRONT else RELIABLE
    durability = 1 if topic == NOTES else 2
    if release.version >= 9:
        reliability = {RELIABLE: "reliable", BEST_EFFORT: "best_effort"}[reliability]
        durability = {1: "transient_local", 2: "volatile"}[durability]
    named = release.version >= 9
    return [
        {
            "history": "unknown" if named else 3,
            "depth": 0,
            "reliability": reliability,
            "durability": durability,
            "deadline": dict(FOREVER),
            "lifespan": dict(FOREVER),
            "liveliness": "automatic" if named else 1,
            "liveliness_lease_duration": dict(FOREVER),
            "avoid_ros_namespace_conventions": False,
        }
    ]


def metadata(release, storage, parts, compression=""):
    """The mapping in metadata.yaml for ``parts``: name of a file -> its entries."""
    entries = [entry for part in parts.values() for entry in part]
    topics = []
    for topic in SENT:
        offered = profiles(release, topic)
        about = {
            "name": topic,
            "type": kind(topic),
            "serialization_format": "cdr",
            # A list from version 9 on, before that a text that is YAML again.
            "offered_qos_profiles": offered if release.version >= 9 else yaml.safe_dump(offered),
        }
        if release.version >= 7:
            about["type_description_hash"] = "RIHS01_" + 64 * "0"
        count = sum(entry[1] == topic for entry in entries)
        topics.append({"topic_metadata": about, "message_count": count})
    times = {name: [stamp for stamp, _, _ in part] for name, part in parts.items()}
    information = {
        "version": release.version,
        "storage_identifier": storage,
        "duration": {"nanoseconds": max(map(max, times.values())) - min(map(min, times.values()))},
        "starting_time": {"nanoseconds_since_epoch": min(map(min, times.values()))},
        "message_count": len(entries),
        "topics_with_message_count": topics,
        "compression_format": "zstd" if compression else "",
        "compression_mode": compression,
        "relative_file_paths": list(parts),
    }
    if release.version >= 5:
        information["files"] = [
            {
                "path": name,
                "starting_time": {"nanoseconds_since_epoch": min(times[name])},
                "duration": {"nanoseconds": max(times[name]) - min(times[name])},
                "message_count": len(part),
            }
            for name, part in parts.items()
        ]
    if release.version >= 6:
        information["custom_data"] = None
    if release.version >= 8:
        information["ros_distro"] = release.name
    return {"rosbag2_bagfile_information": information}


def sqlite3_file(path, release, entries, about):
    tables = {
        "topics": "id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
        "serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL",
        "messages": "id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL, "
        "data BLOB NOT NULL",
    }
    if release.schema >= 3:
        tables["schema"] = "schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL"
        tables["metadata"] = (
            "id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL"
        )
    if release.schema >= 4:
        tables["topics"] += ", type_description_hash TEXT NOT NULL"
        tables["message_definitions"] = (
            "id INTEGER PRIMARY KEY, topic_type TEXT NOT NULL, encoding TEXT NOT NULL, "
            "encoded_message_definition TEXT NOT NULL, type_description_hash TEXT NOT NULL"
        )
    database = sqlite3.connect(path)
    database.execute("PRAGMA synchronous = OFF")
    for name, columns in tables.items():
        database.execute(f"CREATE TABLE {name}({columns})")
    database.execute("CREATE INDEX timestamp_idx ON messages (timestamp ASC)")
    if release.schema >= 3:
        database.execute("INSERT INTO schema VALUES (?, ?)", (release.schema, release.name))
        database.execute("INSERT INTO metadata VALUES (1, ?, ?)", (release.version, yaml.safe_dump(about)))
    for number, topic in enumerate(SENT, 1):
        row = [number, topic, kind(topic), "cdr", yaml.safe_dump(profiles(release, topic))]
        if release.schema >= 4:
            row.append("")
            # What is written for a type whose definition the recorder did not find.
            database.execute(
                "INSERT INTO message_definitions VALUES (?, ?, ?, ?, ?)",
                (number, kind(topic), "" if number % 2 else "unknown", "", ""),
            )
        database.execute(f"INSERT INTO topics VALUES ({','.join('?' * len(row))})", row)
    numbers = {topic: number for number, topic in enumerate(SENT, 1)}
    rows = [(numbers[topic], stamp, raw) for stamp, topic, raw in entries]
    database.executemany("INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)", rows)
    database.commit()
    database.close()


def mcap_file(path, release, entries, about):
    with path.open("wb") as file:
        writer = McapWriter(file, chunk_size=10_000)
        writer.start("ros2", "libmcap")
        channels = {}
        for topic in SENT:
            schema = writer.register_schema(kind(topic), "unknown" if release.schema >= 4 else "ros2msg", b"")
            about_channel = {"offered_qos_profiles": yaml.safe_dump(profiles(release, topic))}
            if release.version >= 7:
                about_channel["topic_type_hash"] = ""
            channels[topic] = writer.register_channel(topic, "cdr", schema, about_channel)
        for stamp, topic, raw in entries:
            writer.add_message(channels[topic], stamp, raw, stamp)
        if release.version >= 7:
            writer.add_metadata("rosbag2", {"serialized_metadata": yaml.safe_dump(about)})
        writer.finish()


FILES = {"sqlite3": ("db3", sqlite3_file), "mcap": ("mcap", mcap_file)}


def record(folder, release, storage, entries=ENTRIES, compression="", splits=1):
    """A bag of ``splits`` files, each with the next stretch of time."""
    suffix, write = FILES[storage]
    folder.mkdir()
    if compression == "MESSAGE":
        entries = [(stamp, topic, zstandard.compress(raw)) for stamp, topic, raw in entries]
    entries = sorted(entries, key=lambda entry: entry[0])
    ends = np.linspace(0, len(entries), splits + 1).astype(int)
    parts = {f"{folder.name}_{i}.{suffix}": entries[a:b] for i, (a, b) in enumerate(pairwise(ends))}
    packed = {name + ".zstd" * (compression == "FILE"): part for name, part in parts.items()}
    about = metadata(release, storage, packed, compression)
    for name, part in parts.items():
        path = folder / name
        write(path, release, part, about)
        if compression == "FILE":
            path.with_name(name + ".zstd").write_bytes(zstandard.compress(path.read_bytes()))
            path.unlink()
    (folder / "metadata.yaml").write_text(yaml.safe_dump(about, sort_keys=False))
    return folder


def content(path):
    with Bag(path) as bag:
        assert bag.problems == []
        return [(m.stamp, m.topic, m.raw) for m in bag.messages()]


def in_order(entries):
    return sorted(entries, key=lambda entry: (entry[0], entry[1]))


# Reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["", "FILE", "MESSAGE"])
@pytest.mark.parametrize("storage", FILES)
@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_bags_of_every_release_are_read(tmp_path, release, storage, compression):
    folder = record(tmp_path / "bag", release, storage, compression=compression)
    with Bag(folder) as bag:
        assert {name: (t.kind, t.reliable, t.latched) for name, t in bag.topics.items()} == {
            topic: (kind(topic), topic != FRONT, topic == NOTES) for topic in SENT
        }
        assert {t.name: t.count for t in bag.topics.values()}[STATES] == 100
        messages = list(bag.messages())
        assert in_order((m.stamp, m.topic, m.raw) for m in messages) == in_order(ENTRIES)
        assert [m.stamp for m in messages] == sorted(m.stamp for m in messages)
        decoded = {m.topic: bag.decode(m) for m in messages}
    assert decoded[NOTES].data == "hello"
    assert decoded[STATES].name == list(NAMES)
    np.testing.assert_array_equal(decoded[STATES].position, positions(99 / 50))
    assert (decoded[FRONT].encoding, decoded[WRIST].format) == ("yuv422_yuy2", "rgb8; png compressed bgr8")


@pytest.mark.parametrize("compression", ["", "FILE", "MESSAGE"])
@pytest.mark.parametrize("storage", FILES)
def test_without_metadata_nothing_is_missing(tmp_path, storage, compression):
    folder = record(tmp_path / "bag", RELEASES[-1], storage, compression=compression)
    (folder / "metadata.yaml").unlink()
    (file,) = folder.iterdir()
    for path in (folder, file):
        assert in_order(content(path)) == in_order(ENTRIES)


@pytest.mark.parametrize("with_metadata", [True, False])
@pytest.mark.parametrize("compression", ["", "FILE"])
@pytest.mark.parametrize("storage", FILES)
def test_a_split_bag_is_one_in_whatever_order_its_files_are_listed(
    tmp_path, storage, compression, with_metadata
):
    folder = record(tmp_path / "bag", RELEASES[1], storage, compression=compression, splits=12)
    path = folder / "metadata.yaml"
    about = yaml.safe_load(path.read_text())
    listed = about["rosbag2_bagfile_information"]["relative_file_paths"]
    listed[:] = listed[5:] + listed[:5]
    path.write_text(yaml.safe_dump(about))
    if not with_metadata:
        path.unlink()
    read = content(folder)
    assert [stamp for stamp, _, _ in read] == sorted(stamp for stamp, _, _ in read)
    assert in_order(read) == in_order(ENTRIES)


def test_files_that_were_recorded_side_by_side_are_one_bag(tmp_path):
    cameras = [entry for entry in ENTRIES if entry[1] in (FRONT, WRIST)]
    others = [entry for entry in ENTRIES if entry[1] not in (FRONT, WRIST)]
    (tmp_path / "bag").mkdir()
    for name, entries in (("a", cameras), ("b", others)):
        (file,) = (
            p for p in record(tmp_path / name, RELEASES[1], "mcap", entries).iterdir() if "mcap" in p.name
        )
        file.rename(tmp_path / "bag" / file.name)
    read = content(tmp_path / "bag")
    assert [stamp for stamp, _, _ in read] == sorted(stamp for stamp, _, _ in read)
    assert in_order(read) == in_order(ENTRIES)


@pytest.mark.parametrize("storage", FILES)
def test_a_folder_may_have_any_name(tmp_path, storage):
    assert in_order(content(record(tmp_path / "50% #1? ü", RELEASES[-1], storage))) == in_order(ENTRIES)


def test_messages_of_a_big_endian_machine_are_read(tmp_path, maker):
    with Bag(record(tmp_path / "little", RELEASES[1], "mcap")) as bag:
        entries = [(m.stamp, m.topic, bag.decode(m)) for m in bag.messages()]
    turned = [
        (stamp, topic, bytes(maker.store.serialize_cdr(message, kind(topic), little_endian=False)))
        for stamp, topic, message in entries
    ]
    assert all(raw[:2] == b"\0\0" for _, _, raw in turned)
    folder = record(tmp_path / "big", RELEASES[1], "mcap", turned)
    replay, seen = play(folder, contract_for(folder, tmp_path))
    check(seen)
    assert replay.clocks["joint_states"].foreign == 0


def test_rubbish_after_the_end_of_a_message_is_no_part_of_it(tmp_path):
    """rmw_serialize of Fast DDS, so rclpy and all that write bags with it, counts four bytes too many for
    each empty list of float64."""
    state = serialize_message(JointState(name=["a"], position=[1.0])) + b"\xaa" * 12
    points = [JointTrajectoryPoint(positions=[float(i)]) for i in range(100)]
    command = serialize_message(JointTrajectory(joint_names=["a"], points=points))
    # So much more than there was is another message.
    note = serialize_message(String(data="a")) + bytes(200)
    entries = [(START, STATES, state), (START, COMMANDS, command), (START, NOTES, note)]
    with Bag(record(tmp_path / "bag", RELEASES[1], "mcap", entries)) as bag:
        message = {message.topic: message for message in bag.messages()}
        state, command = bag.decode(message[STATES]), bag.decode(message[COMMANDS])
        assert (state.name, state.position.tolist()) == (["a"], [1.0])
        assert [point.positions.tolist() for point in command.points] == [[i] for i in range(100)]
        with pytest.raises(BagError, match="is no std_msgs/msg/String"):
            bag.decode(message[NOTES])


@pytest.mark.parametrize("header", [b"\0\7", b"\0\6", b"\0\x09", b"\0\3"], ids=bytes.hex)
def test_messages_in_another_representation_are_not_taken_for_cdr(tmp_path, header):
    """XCDR2 aligns otherwise. No release of ROS 2 records it, and read as CDR it would be other numbers."""
    entries = [(stamp, topic, header + raw[2:]) for stamp, topic, raw in ENTRIES]
    with Bag(record(tmp_path / "bag", RELEASES[-1], "mcap", entries)) as bag:
        message = next(bag.messages([STATES]))
        with pytest.raises(BagError, match=r"a message of /robot7/joint_states is no .*encapsulation"):
            bag.decode(message)


# Inspected and replayed -----------------------------------------------------------------------------


def checkpoint():
    feature = SimpleNamespace(shape=(len(POLICY),))
    return SimpleNamespace(
        image_features={f"observation.images.{c}": None for c in ("front", "wrist")},
        robot_state_feature=feature,
        action_feature=feature,
        chunk_size=8,
        n_action_steps=5,
    )


def contract_for(bag, tmp_path):
    """What inspect_bag proposes, with the joints put into the policy's order and all others left out."""
    proposal, file = tmp_path / "proposal.yaml", tmp_path / "contract.yaml"
    assert inspect_bag.main([str(bag), "--contract", str(proposal)]) == 0
    contract_alone(proposal)
    entries = yaml.safe_load(proposal.read_text())
    joints = {joint["name"]: joint for joint in entries["joints"]}
    entries["joints"] = [joints[name] for name in POLICY]
    file.write_text(yaml.safe_dump(entries))
    return load_contract(file, checkpoint())


class Policy:
    """Notes what it is shown."""

    def __init__(self):
        self.seen = []

    def infer(self, request, played):
        self.seen.append(request.observation)
        return Result(request, np.zeros((8, len(POLICY))))


def play(folder, contract):
    policy = Policy()
    with Bag(folder) as bag:
        replay = Replay(bag, contract, find_topics(bag, contract), policy, task="sway")
        replay.run()
    return replay, policy.seen


def check(seen):
    """The policy saw the robot in its own units, whatever those of the bag."""
    assert len(seen) >= 3
    for observation in seen:
        at = (observation.stamp - START) / 1e9
        known = dict(zip(NAMES, positions(at), strict=True))
        expected = np.array([known[name] for name in POLICY])
        # The gripper in percent between the ends that were seen, at 0 and 1.98 s.
        expected = [*np.degrees(expected[:2]), 100 * at / 1.98]
        np.testing.assert_allclose(observation.state, expected, atol=0.05)
        images = observation.images
        np.testing.assert_allclose(images["observation.images.front"], np.full((4, 6, 3), RED), atol=1)
        np.testing.assert_array_equal(images["observation.images.wrist"], np.full((5, 7, 3), BLUE))


@pytest.mark.parametrize("degrees", [False, True])
@pytest.mark.parametrize("storage", FILES)
def test_a_policy_sees_a_foreign_robot_as_its_own(tmp_path, storage, degrees, capsys):
    folder = record(tmp_path / "bag", RELEASES[1], storage, recorded(degrees), compression="FILE", splits=3)
    contract = contract_for(folder, tmp_path)
    shown = capsys.readouterr().out
    assert "the position of rail is not a finite number" in shown
    for words in ("6x4 yuv422_yuy2", "7x5 rgb8; png compressed bgr8", "10.0 Hz", "50.0 Hz"):
        assert words in shown
    assert [camera.topic for camera in contract.cameras] == [FRONT, WRIST]
    assert (contract.state_topic, contract.command_topic, contract.fps) == (STATES, COMMANDS, 10)
    replay, seen = play(folder, contract)
    check(seen)
    known = dict(zip(NAMES, positions(0.0), strict=True))
    # Radians, for the figures.
    states = replay.reference.states[:1][1]
    np.testing.assert_allclose(states, [[known[name] for name in POLICY]], atol=1e-6)
    assert not replay.unused


@pytest.mark.parametrize("leader", ["/leader/joint_states", "/arm/goal"])
def test_a_leader_arm_commands_in_joint_states(tmp_path, monkeypatch, leader):
    """Which it streams: what it says holds until it says something else."""
    monkeypatch.setitem(SENT, leader, JointState)
    entries = [entry for entry in ENTRIES if entry[1] != COMMANDS]
    for stamp in range(START, START + 2 * 10**9, 50_000_000):
        goal = JointState(name=list(NAMES), position=positions((stamp - START) / 1e9 + 1))
        entries.append((stamp, leader, serialize_message(stamped(goal, stamp))))
    folder = record(tmp_path / "bag", RELEASES[1], "mcap", entries)
    contract = contract_for(folder, tmp_path)
    assert (contract.state_topic, contract.command_topic) == (STATES, leader)
    assert "? by its name" in (tmp_path / "proposal.yaml").read_text()
    replay, seen = play(folder, contract)
    check(seen)
    target = Target(replay.reference)
    assert target.kind == "commands"
    told = [dict(zip(NAMES, positions(at), strict=True)) for at in (1.0, 1.05, 2.95)]
    times = START + np.array([49_999_999, 50_000_000, 2_100_000_000])
    np.testing.assert_allclose(target.at(times), [[at[name] for name in POLICY] for at in told], atol=1e-6)
    # Of one that fell silent nothing is known.
    assert np.isnan(target.at(times + 300_000_000)[-1]).all()
    with Bag(folder) as bag:
        framer = Framer(bag, contract, task="sway")
        frame = next(framer.frames())
    assert framer.actions_from == "commands"
    ahead = frame.action - frame.state
    np.testing.assert_allclose(ahead[:2], np.degrees([0, 0.1]), atol=0.5)  # base, elbow


def test_a_topic_of_joint_states_is_not_its_own_command(tmp_path):
    contract = contract_for(record(tmp_path / "bag", RELEASES[1], "mcap"), tmp_path)
    with Bag(tmp_path / "bag") as bag:
        topics = find_topics(bag, replace(contract, command_topic=STATES))
    assert STATES in topics.streams and topics.commands is None
