# SPDX-License-Identifier: Apache-2.0
"""Any bag is read, whoever wrote it; a bad one gives one clear error, or with salvage what is left of it."""

import shutil
import struct

import lz4.frame
import pytest
import yaml
import zstandard
from bag_helpers import EVENTS, IMAGES, JOINT_STATES, KINDS
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as OfficialWriter
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from smolvla_mem_ros.bags import mcap_file, storage
from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.bags.types import ensure_type, new_typestore
from smolvla_mem_ros.bags.writer import BagWriter

START = 10**18


def content(path, salvage=False):
    """All that a bag holds."""
    with Bag(path, salvage=salvage) as bag:
        return [(m.topic, m.stamp, m.raw) for m in bag.messages()]


def file_of(bag):
    (file,) = (path for path in bag.iterdir() if path.suffix in (".mcap", ".db3"))
    return file


# Reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mcap", "sqlite3"])
def test_what_was_written_is_read(write_bag, maker, kind):
    with Bag(write_bag(storage=kind)) as bag:
        assert {t.name: (t.kind, t.count) for t in bag.topics.values()} == {
            JOINT_STATES: (KINDS[JOINT_STATES], 100),
            IMAGES: (KINDS[IMAGES], 20),
            EVENTS: (KINDS[EVENTS], 2),
        }
        assert (bag.topics[IMAGES].reliable, bag.topics[IMAGES].latched) == (False, False)
        assert (bag.topics[EVENTS].reliable, bag.topics[EVENTS].latched) == (True, True)
        assert bag.span == (START, START + 99 * 20_000_000)
        messages = list(bag.messages())
        assert [m.stamp for m in messages] == sorted(m.stamp for m in messages)
        states = [m for m in messages if m.topic == JOINT_STATES]
        assert states[7].raw == maker.raw(JOINT_STATES, states[7].stamp, 7)
        assert bag.decode(states[7]).position.tolist() == [7.0, 2.0]
        # A type of our own, from the definition in the bag.
        (first, second) = bag.messages([EVENTS])
        assert (bag.decode(first).episode_id, bag.decode(second).task) == (1, "press the pad")
        assert bag.problems == []


@pytest.mark.parametrize("kind", ["mcap", "sqlite3"])
def test_a_stretch_of_time_and_some_topics_are_read(write_bag, kind):
    with Bag(write_bag(storage=kind)) as bag:
        half = START + 1_000_000_000
        some = list(bag.messages([IMAGES], half, half + 500_000_000))
        assert {m.topic for m in some} == {IMAGES}
        assert [m.stamp for m in some] == [half + step * 100_000_000 for step in range(5)]


@pytest.mark.parametrize("kind", ["mcap", "sqlite3"])
def test_without_metadata_and_as_a_bare_file_it_is_the_same(write_bag, tmp_path, kind):
    path = write_bag(storage=kind)
    whole = content(path)
    (path / "metadata.yaml").unlink()
    assert content(path) == whole
    assert content(file_of(path)) == whole


@pytest.mark.parametrize(
    ("plugin", "mode"),
    [("mcap", "file"), ("mcap", "message"), ("mcap", "storage"), ("sqlite3", "file"), ("sqlite3", "message")],
)
def test_compressed_bags_are_read(tmp_path, maker, mode, plugin):
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin[plugin.upper()])
    writer.set_compression(CompressionMode[mode.upper()], CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection(JOINT_STATES, KINDS[JOINT_STATES], typestore=maker.store)
        for i in range(5):
            writer.write(connection, START + i, maker.raw(JOINT_STATES, START + i, i))
    expected = [(JOINT_STATES, START + i, maker.raw(JOINT_STATES, START + i, i)) for i in range(5)]
    assert content(tmp_path / "bag") == expected


def test_a_split_bag_is_read_in_the_order_that_its_metadata_says(write_bag, tmp_path, maker):
    folder = write_bag("split")
    first = file_of(folder)
    second = write_bag("other")
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
    # Older recorders put the folder before the name.
    names = ["split/split_10.mcap", "split/split_2.mcap"]
    metadata["rosbag2_bagfile_information"]["relative_file_paths"] = names
    first.rename(folder / "split_10.mcap")
    shutil.copy(file_of(second), folder / "split_2.mcap")
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    with Bag(folder) as bag:
        assert bag.topics[JOINT_STATES].count == 200
        assert len(list(bag.messages())) == 2 * 122
    (folder / "metadata.yaml").unlink()
    with Bag(folder) as bag:
        assert [file.damage.path.name for file in bag._files] == ["split_2.mcap", "split_10.mcap"]


@pytest.mark.parametrize("compression", list(CompressionType))
@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize("index", [IndexType.ALL, IndexType.NONE])
def test_mcap_files_of_other_writers_are_read(tmp_path, maker, compression, chunking, index):
    path = tmp_path / "foreign.mcap"
    with path.open("wb") as file:
        writer = OfficialWriter(
            file, chunk_size=500, compression=compression, use_chunking=chunking, index_types=index
        )
        writer.start("ros2", "other")
        kind = KINDS[JOINT_STATES]
        definition, _ = maker.store.generate_msgdef(kind, ros_version=2)
        schema = writer.register_schema(kind, "ros2msg", definition.encode())
        channel = writer.register_channel(JOINT_STATES, "cdr", schema)
        for i in range(50):
            # Pairs in the wrong order, as a writer of several threads leaves them.
            stamp = START + (i ^ 1)
            writer.add_message(channel, stamp, maker.raw(JOINT_STATES, stamp, i), stamp)
        writer.finish()
    with Bag(path) as bag:
        messages = list(bag.messages())
        assert sorted(m.stamp for m in messages) == [START + i for i in range(50)]
        assert bag.decode(messages[0]).name == ["a", "b"]
        assert bag.topics[JOINT_STATES].count == 50
        assert [m.stamp for m in messages] == [START + i for i in range(50)]


def test_a_type_that_nobody_defines_is_told_when_it_is_decoded(tmp_path, maker):
    store = new_typestore()
    with pytest.raises(ValueError, match="nothing here defines"):
        ensure_type(store, "their_robot/msg/Grip")
    path = tmp_path / "unknown.mcap"
    with path.open("wb") as file:
        writer = OfficialWriter(file)
        writer.start("ros2", "other")
        schema = writer.register_schema("their_robot/msg/Grip", "ros2msg", b"")
        writer.add_message(writer.register_channel("/grip", "cdr", schema), START, b"\0\1\0\0", START)
        writer.finish()
    with Bag(path) as bag, pytest.raises(BagError, match=r"/grip: nothing here defines their_robot/msg/Grip"):
        bag.decode(next(iter(bag.messages())))


# Bags that were never closed -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mcap", "sqlite3"])
def test_an_incomplete_copy_is_refused_and_salvaged(write_bag, kind):
    path = write_bag(storage=kind, seconds=20)
    whole, file = content(path), file_of(path)
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(size * 2 // 3)
    with pytest.raises(BagError, match=r"--salvage|cannot be read"):
        content(path)
    if kind == "mcap":
        with Bag(path, salvage=True) as bag:
            saved = [(m.topic, m.stamp, m.raw) for m in bag.messages()]
            assert saved == whole[: len(saved)]
            assert bag.count == len(saved)
            assert any("never closed" in problem for problem in bag.problems)


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
def test_a_damaged_chunk_costs_no_other(tmp_path, maker, at):
    path = tmp_path / "chunks"
    with BagWriter(path) as writer:
        writer.add_topic(JOINT_STATES, KINDS[JOINT_STATES])
        for i in range(10):
            writer.write(JOINT_STATES, START + i, maker.raw(JOINT_STATES, START + i, i))
            writer.flush()  # a chunk each
    file = file_of(path)
    data = bytearray(file.read_bytes())
    position = data.index(maker.raw(JOINT_STATES, START + int(10 * at), int(10 * at))) - 31
    data[position : position + 9] = b"\x05" + struct.pack("<Q", 2**40)  # a message of a terabyte
    file.write_bytes(data)
    with pytest.raises(BagError, match=r"damaged.*--salvage"):
        content(path)
    assert [s - START for _, s, _ in content(path, salvage=True)] == [
        i for i in range(10) if i != int(10 * at)
    ]


# Hostile bags ----------------------------------------------------------------------------------------


def test_a_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(mcap_file, "MAX_BYTES", 2**20)
    bomb = bytes(2**24)
    for how, packed in (("zstd", zstandard.compress(bomb)), ("lz4", lz4.frame.compress(bomb))):
        for claimed in (100, 2**20, 2**60, None):
            with pytest.raises(ValueError, match=r"more than|claims"):
                mcap_file.decompress(packed, how, claimed)
        assert mcap_file.decompress(zstandard.compress(b"ok"), "zstd", 2) == b"ok"


def test_names_in_the_metadata_lead_nowhere_else(write_bag, tmp_path):
    bag, secret = write_bag(), write_bag("secret")
    metadata = yaml.safe_load((bag / "metadata.yaml").read_text())
    metadata["rosbag2_bagfile_information"]["relative_file_paths"] = [str(file_of(secret)), "../secret/x"]
    (bag / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    with pytest.raises(BagError, match=r"lacks secret\.mcap, x"):
        content(bag)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "damaged"),
        ("rosbag2_bagfile_information: &a [*a]", "aliases"),
        ("rosbag2_bagfile_information: {relative_file_paths: 5}", "damaged"),
        ("rosbag2_bagfile_information: {relative_file_paths: []}", "names no file"),
        ("!!python/object/apply:os.system [true]", "damaged"),
        ("[" * 5000, "damaged"),
        ("rosbag2_bagfile_information: {relative_file_paths: [bag.mcap], compression_mode: odd}", "'odd'"),
        (
            "rosbag2_bagfile_information: {relative_file_paths: [bag.mcap], compression_mode: FILE, "
            "compression_format: rar}",
            "'rar'",
        ),
    ],
    ids=range(8),
)
def test_wrong_metadata_is_named_and_can_be_done_without(write_bag, text, says):
    bag = write_bag()
    whole = content(bag)
    (bag / "metadata.yaml").write_text(text)
    with pytest.raises(BagError, match=says) as raised:
        content(bag)
    assert "\n" not in str(raised.value)
    if says not in ("'odd'", "'rar'"):
        assert content(bag, salvage=True) == whole


@pytest.mark.parametrize("name", ["nothing", "empty", "empty.mcap", "text.mcap", "text.db3", "bag.zip"])
def test_what_is_no_bag_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif name != "nothing":
        path.write_bytes(b"hello, I am something else" * (not name.startswith("empty")))
    for salvage in (False, True):
        with pytest.raises(BagError) as raised:
            Bag(path, salvage=salvage)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_bytes_that_are_another_message_are_refused(write_bag, maker):
    with Bag(write_bag()) as bag:
        message = next(iter(bag.messages([JOINT_STATES])))
        for raw in (b"", b"\0\1\0\0", message.raw[:20], b"\0\1\0\0" + b"\xff" * 60):
            with pytest.raises(BagError, match="is no sensor_msgs/msg/JointState"):
                bag.decode(type(message)(message.topic, message.stamp, raw))


def test_the_limit_is_above_any_camera():
    assert storage.MAX_BYTES > 4000 * 4000 * 3
