# SPDX-License-Identifier: Apache-2.0
"""Small bags of every kind that is read, of the same content."""

import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import yaml
from bag_helpers import (
    COMMANDS,
    EVENTS,
    IMAGES,
    JOINT_STATES,
    KINDS,
    START,
    Maker,
    robot_contract,
)
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from smolvla_mem_ros.bags.types import ensure_type
from smolvla_mem_ros.bags.writer import BagWriter

WRIST = "/camera/wrist/image_raw/compressed"
COMMITS = "/policy/memory_state"
TOPICS = {
    JOINT_STATES: KINDS[JOINT_STATES],
    IMAGES: KINDS[IMAGES],
    WRIST: "sensor_msgs/msg/CompressedImage",
    EVENTS: KINDS[EVENTS],
    COMMANDS: "trajectory_msgs/msg/JointTrajectory",
    COMMITS: "smolvla_mem_ros/msg/MemoryState",
}
PERIOD = 50_000_000  # ns between two joint states

Files = dict[str, bytes]  # of a bag, by name; a bare file has the name alone


# Messages -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Topic:
    """A topic as it is written.

    Args:
        schema: how its definition is said to be written.
    """

    name: str
    kind: str
    definition: str
    schema: str = "ros2msg"
    encoding: str = "cdr"
    profiles: str = ""


Entry = tuple[int, str, bytes]  # time, topic, message
Content = tuple[list[Topic], list[Entry]]


@cache
def content() -> Content:
    """An episode of 1.2 s: a start, a reset in the middle, a stop."""
    maker = Maker()
    store = maker.store
    for kind in TOPICS.values():
        ensure_type(store, kind)
    picture = cv2.imencode(".png", np.full((4, 6, 3), 90, np.uint8))[1]

    def serialised(topic, stamp, *values):
        message = store.types[TOPICS[topic]](maker.header(stamp), *values)
        return bytes(store.serialize_cdr(message, TOPICS[topic]))

    entries = []
    for step in range(24):
        stamp = START + step * PERIOD
        entries.append((stamp, JOINT_STATES, maker.robot_state(stamp, [step / 100, 0, 0, 0, 0, 0.5])))
        if step % 4 == 0:
            entries.append((stamp, IMAGES, maker.raw(IMAGES, stamp, step)))
            entries.append((stamp, WRIST, serialised(WRIST, stamp, "png", picture.ravel())))
    for at, event in ((1, "start"), (10, "reset_memory"), (22, "stop")):
        entries.append((START + at * PERIOD, EVENTS, maker.event(START + at * PERIOD, event)))
    time = store.types["builtin_interfaces/msg/Time"]
    for at in (4, 8, 14):
        stamp = START + at * PERIOD
        entries.append((stamp, COMMANDS, maker.command(stamp, (0, 0.2), [[0.1] * 6, [0.2] * 6])))
        used = [time(*divmod(stamp, 10**9))] * 3
        numbers = np.ones(2, np.float32)
        commit = (1, 1, 2, 1, numbers, numbers, time(0, 0), used[0], ["joint_states", "front", "wrist"], used)
        entries.append((stamp + PERIOD // 2, COMMITS, serialised(COMMITS, stamp, *commit, numbers)))
    profiles = "- {history: 1, depth: 5, reliability: 2, durability: 1}"
    topics = [
        Topic(name, kind, store.generate_msgdef(kind, ros_version=2)[0], profiles=profiles)
        for name, kind in TOPICS.items()
    ]
    return topics, sorted(entries, key=lambda entry: entry[0])


@cache
def contract():
    return robot_contract(chunk_size=4, n_action_steps=2, wrist=WRIST, max_age=0.3)


# Bags -----------------------------------------------------------------------------------------------


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def lay_out(files: Files, folder: Path) -> Path:
    """Write a bag below ``folder``; returns what is to be opened."""
    root = folder / "bag" if "metadata.yaml" in files or len(files) > 1 else folder
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root / next(iter(files)) if root == folder else root


def with_ours(content: Content, storage: str) -> Files:
    topics, entries = content
    with tempfile.TemporaryDirectory() as folder:
        with BagWriter(Path(folder, "bag"), storage) as writer:
            for topic in topics:
                writer.add_topic(topic.name, topic.kind, reliable=topic.name != IMAGES)
            for number, (stamp, name, raw) in enumerate(entries):
                writer.write(name, min(stamp, 2**63 - 1), raw)
                if number % 9 == 8:
                    writer.flush()
        return files_of(Path(folder, "bag"))


def with_rosbags(content: Content, plugin: str, mode: str) -> Files:
    topics, entries = content
    store = Maker().store
    for topic in topics:
        ensure_type(store, topic.kind)
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder, "bag"), version=9, storage_plugin=StoragePlugin[plugin])
        writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
        with writer:
            known = {t.name: writer.add_connection(t.name, t.kind, typestore=store) for t in topics}
            for stamp, name, raw in entries:
                writer.write(known[name], min(stamp, 2**63 - 1), raw)
        return files_of(Path(folder, "bag"))


def with_mcap(content: Content, **options) -> Files:
    """By the mcap library, which writes whatever it is given."""
    topics, entries = content
    out = BytesIO()
    writer = McapWriter(out, chunk_size=700, **options)
    writer.start("ros2", "fuzzing")
    channels = {}
    for topic in topics:
        schema = writer.register_schema(topic.kind, topic.schema, topic.definition.encode())
        metadata = {"offered_qos_profiles": topic.profiles}
        channels[topic.name] = writer.register_channel(topic.name, topic.encoding, schema, metadata)
    for stamp, name, raw in entries:
        writer.add_message(channels[name], stamp % 2**64, raw, stamp % 2**64)
    writer.finish()
    return {"bag.mcap": out.getvalue()}


def with_sqlite(content: Content, statements: tuple[str, ...] = ()) -> Files:
    """As rosbag2 of Humble writes it, without metadata.yaml."""
    topics, entries = content
    numbers = {topic.name: number for number, topic in enumerate(topics, 1)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bag.db3")
        connection = sqlite3.connect(path)
        connection.executescript(
            "PRAGMA page_size = 1024;"
            "CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);"
            "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,"
            " serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);"
            "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL,"
            " timestamp INTEGER NOT NULL, data BLOB NOT NULL);"
            "CREATE INDEX timestamp_idx ON messages (timestamp ASC);"
            "INSERT INTO schema VALUES (3, 'humble');"
        )
        rows = [(i, t.name, t.kind, t.encoding, t.profiles) for i, t in enumerate(topics, 1)]
        connection.executemany("INSERT INTO topics VALUES (?, ?, ?, ?, ?)", rows)
        # Larger than an integer of SQLite is a float of it.
        stamped = [(numbers[name], stamp if abs(stamp) < 2**63 else float(stamp), raw)
                   for stamp, name, raw in entries]  # fmt: skip
        connection.executemany("INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)", stamped)
        connection.commit()
        for statement in statements:
            try:
                connection.executescript(statement)
            except sqlite3.Error:  # of one that no longer fits what is there
                connection.rollback()
        connection.commit()
        connection.close()
        return {"bag.db3": path.read_bytes()}


def split(content: Content) -> Files:
    topics, entries = content
    half = len(entries) // 2
    files = with_ours(content, "mcap")
    metadata = yaml.safe_load(files["metadata.yaml"])
    metadata["rosbag2_bagfile_information"]["relative_file_paths"] = ["bag_0.mcap", "bag_1.mcap"]
    parts = [with_ours((topics, part), "mcap")["bag.mcap"] for part in (entries[:half], entries[half:])]
    return {
        "bag_0.mcap": parts[0],
        "bag_1.mcap": parts[1],
        "metadata.yaml": yaml.safe_dump(metadata).encode(),
    }


UNCOMPRESSED = {"compression": CompressionType.NONE}
# What makes a bag of messages.
WRITERS: dict[str, Callable[[Content], Files]] = {
    "ours": lambda content: with_ours(content, "mcap"),
    "ours_sqlite": lambda content: with_ours(content, "sqlite3"),
    "unchunked": lambda content: with_mcap(content, use_chunking=False),
    "chunked": lambda content: with_mcap(content, **UNCOMPRESSED),
    "zstd": lambda content: with_mcap(content, compression=CompressionType.ZSTD),
    "lz4": lambda content: with_mcap(content, compression=CompressionType.LZ4),
    "unindexed": lambda content: with_mcap(content, index_types=IndexType.NONE, **UNCOMPRESSED),
    "file_zstd": lambda content: with_rosbags(content, "MCAP", "FILE"),
    "message_zstd": lambda content: with_rosbags(content, "MCAP", "MESSAGE"),
    "file_zstd_sqlite": lambda content: with_rosbags(content, "SQLITE3", "FILE"),
    "humble_sqlite": with_sqlite,
    "split": split,
}


@cache
def seed_files(seed: str) -> Files:
    return WRITERS[seed](content())
