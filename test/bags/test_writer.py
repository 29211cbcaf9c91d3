# SPDX-License-Identifier: Apache-2.0
"""What is recorded is complete and standard, and outlives a crash up to the last flush."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import yaml
from bag_helpers import EVENTS, JOINT_STATES, KINDS
from rosbags.highlevel import AnyReader

from smolvla_mem_ros.bags.background import BackgroundWriter
from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.bags.types import UnknownType
from smolvla_mem_ros.bags.writer import STORAGES, BagWriter


@pytest.mark.parametrize("storage", STORAGES)
def test_others_read_it_too_with_the_definitions_in_it(write_bag, storage):
    folder = write_bag(storage=storage)
    with AnyReader([folder]) as reader:
        assert reader.message_count == 122
        (connection,) = (c for c in reader.connections if c.topic == EVENTS)
        event = next(reader.messages([connection]))
        assert reader.deserialize(event[2], connection.msgtype).event == "start"
    # As rosbag2's own metadata has it; the hash is the one that the message generator wrote.
    information = yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert information["storage_identifier"] == storage
    (topic,) = (t for t in information["topics_with_message_count"] if t["topic_metadata"]["name"] == EVENTS)
    share = next(
        path for prefix in os.environ["AMENT_PREFIX_PATH"].split(":")
        if (path := Path(prefix) / "share/smolvla_mem_ros/msg/EpisodeEvent.json").is_file()
    )  # fmt: skip
    hashes = {h["type_name"]: h["hash_string"] for h in json.loads(share.read_text())["type_hashes"]}
    assert topic["topic_metadata"]["type_description_hash"] == hashes[KINDS[EVENTS]]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_killed_recorder_leaves_what_was_flushed(tmp_path, storage):
    script = tmp_path / "record.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from bag_helpers import JOINT_STATES, KINDS, Maker
        from smolvla_mem_ros.bags.writer import BagWriter
        maker, writer = Maker(), BagWriter(Path(sys.argv[1]), {storage!r})
        writer.add_topic(JOINT_STATES, KINDS[JOINT_STATES])
        for i in range(3000):
            writer.write(JOINT_STATES, 10**18 + i, maker.raw(JOINT_STATES, 10**18 + i, i))
            if i == 1999:
                writer.flush()
        os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    bag = tmp_path / "killed"
    assert subprocess.run([sys.executable, script, bag]).returncode == -signal.SIGKILL
    with pytest.raises(BagError, match=r"never closed.*--salvage"):
        Bag(bag)
    with Bag(bag, salvage=True) as opened:
        stamps = [m.stamp - 10**18 for m in opened.messages()]
        assert len(stamps) >= 2000 and stamps == list(range(len(stamps)))
        assert opened.decode(next(opened.messages())).position.tolist() == [0.0, 2.0]


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "there").mkdir()
    for make in (BagWriter, BackgroundWriter):
        with pytest.raises(FileExistsError, match="name a new folder"):
            make(tmp_path / "there")
    with pytest.raises(ValueError, match="tape"):
        BagWriter(tmp_path / "new", "tape")


def test_a_type_without_a_definition_is_refused(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for kind, says in (("their/msg/Thing", "install or source"), ("Thing", "no name of a message type")):
            with pytest.raises(UnknownType, match=says):
                writer.add_topic("/thing", kind)


# In a thread ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_all_that_was_taken_is_written_before_it_is_closed(tmp_path, maker, storage):
    writer = BackgroundWriter(tmp_path / "bag", storage)
    writer.add_topic(JOINT_STATES, KINDS[JOINT_STATES])
    for i in range(500):
        assert writer.write(JOINT_STATES, i, maker.raw(JOINT_STATES, i, i))
        if i % 100 == 0:
            writer.flush()
    writer.close()
    assert (writer.failure, writer.waiting, writer.messages) == ("", 0, 500)
    with Bag(tmp_path / "bag") as bag:
        assert [m.stamp for m in bag.messages()] == list(range(500))


def test_what_a_slow_disk_cannot_take_is_counted(tmp_path, maker, monkeypatch):
    may_go_on = threading.Event()
    write = BagWriter.write

    def slow(*arguments):
        assert may_go_on.wait(10)
        write(*arguments)

    monkeypatch.setattr(BagWriter, "write", slow)
    raw = maker.raw(JOINT_STATES, 0)
    writer = BackgroundWriter(tmp_path / "bag", max_waiting=3 * len(raw))
    writer.add_topic(JOINT_STATES, KINDS[JOINT_STATES])
    taken = [writer.write(JOINT_STATES, i, raw) for i in range(5)]
    may_go_on.set()
    writer.close()
    assert taken == [True] * 3 + [False] * 2
    assert writer.lost == {JOINT_STATES: 2} and writer.messages == 3


def test_a_full_disk_ends_the_recording_with_the_bag_closed(tmp_path, maker):
    writer = BackgroundWriter(tmp_path / "bag", min_free=2**62)
    writer.add_topic(JOINT_STATES, KINDS[JOINT_STATES])
    writer.write(JOINT_STATES, 0, maker.raw(JOINT_STATES, 0))
    writer.flush()
    writer.close()
    assert "nearly full" in writer.failure
    assert not writer.write(JOINT_STATES, 1, maker.raw(JOINT_STATES, 1))
    with Bag(tmp_path / "bag") as bag:
        assert bag.count == 1


def test_a_disk_that_fails_is_told(tmp_path, maker, monkeypatch):
    def broken(*_):
        raise OSError("no space left on device")

    writer = BackgroundWriter(tmp_path / "bag")
    writer.add_topic(JOINT_STATES, KINDS[JOINT_STATES])
    monkeypatch.setattr(BagWriter, "write", broken)
    writer.write(JOINT_STATES, 0, maker.raw(JOINT_STATES, 0))
    writer.close()
    assert writer.failure.startswith("cannot write") and "no space left" in writer.failure
