# SPDX-License-Identifier: Apache-2.0
"""Bags that are made to do harm: sizes that are lies, what contains itself, names that lead elsewhere."""

import math
import os
import shutil
import sqlite3
import struct
import time
from collections import Counter
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import pytest
import zstandard
from bag_helpers import COMMANDS, EVENTS, JOINT_STATES, START
from bags.fuzzing import Still
from bags.mutations import MAGIC, PROFILES, STATEMENTS, outer, put, record, walk
from bags.seeds import COMMITS, content, contract, lay_out, seed_files, with_mcap, with_sqlite
from mcap.data_stream import ReadDataStream
from mcap.records import Attachment, ChunkIndex, Footer, Statistics

from smolvla_mem_ros.bags import mcap_file, storage
from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.frames import Framer
from smolvla_mem_ros.bags.replay import Replay
from smolvla_mem_ros.bags.storage import BagError, offered, plain, tally
from smolvla_mem_ros.bags.streams import find_topics


def came(path, salvage=False):
    with Bag(path, salvage=salvage) as bag:
        return [(m.stamp, m.topic, m.raw) for m in bag.messages()]


def refused(path, says, salvage=False):
    with pytest.raises(BagError, match=says) as raised:
        came(path, salvage)
    assert str(raised.value).isprintable()


# Metadata -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("relative_file_paths: [bag.mcap, ./bag.mcap]", "names a file twice"),
        ("relative_file_paths: bag.mcap", "no list of names"),
        ("relative_file_paths: [[bag.mcap]]", "no list of names"),
        (f"relative_file_paths: [{'a' * 300}]", "File name too long"),
        ("relative_file_paths: ['a\\0b']", "damaged|lacks"),
        ("relative_file_paths: [..]", "lacks"),
        ("relative_file_paths: [bag.mcap], custom: !!int ''", ""),
        ("relative_file_paths: [bag.mcap], custom: 190:20:30:40:50:60.5", ""),
        (f"relative_file_paths: [bag.mcap], custom: {'[' * 100}", "nested too deep"),
        (f"relative_file_paths: [bag.mcap], custom: '{'a' * 2**20}'", "bytes long"),
    ],
    ids=range(10),
)
def test_metadata_is_texts_and_a_list_of_names(tmp_path, text, says):
    data = ("rosbag2_bagfile_information: {" + text + "}").encode()
    path = lay_out({**seed_files("ours"), "metadata.yaml": data}, tmp_path)
    if says:
        refused(path, says)
    assert came(path, salvage=bool(says)) == content()[1]


def test_any_digits_may_be_in_a_name(tmp_path):
    data = seed_files("zstd")["bag.mcap"]
    path = lay_out({"bag1²3.mcap": data, "bag٣.mcap": data}, tmp_path)
    assert len(came(path)) == 2 * len(content()[1])


@pytest.mark.parametrize("name", ["pipe.mcap", "pipe.db3", "pipe.mcap.zstd"])
def test_nobody_waits_for_a_pipe(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "neither a folder nor a file")
    refused(tmp_path, "holds no .mcap or .db3 file")


# Files that are compressed as a whole ---------------------------------------------------------------


def test_a_file_is_not_unpacked_beyond_half_of_what_is_free(tmp_path, monkeypatch):
    path = lay_out({"bag.mcap.zstd": zstandard.compress(MAGIC + bytes(2**25))}, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**22))
    refused(path, "does not fit on the disk")
    refused(path, "does not fit on the disk", salvage=True)


def test_a_file_of_several_frames_is_whole(tmp_path):
    """As programs write it that compress on several processors."""
    data = seed_files("zstd")["bag.mcap"]
    parts = [zstandard.compress(data[:500]), zstandard.compress(data[500:])]
    assert came(lay_out({"bag.mcap.zstd": b"".join(parts)}, tmp_path)) == content()[1]


def test_what_is_wrong_with_a_packed_file_names_that_file(tmp_path):
    path = lay_out({"bag.mcap.zstd": zstandard.compress(b"hello")}, tmp_path)
    refused(path, f"{path} is no MCAP file")


# MCAP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(0, 60, 4))
def test_a_file_of_few_bytes_is_no_accident(tmp_path, size):
    path = lay_out({"bag.mcap": seed_files("zstd")["bag.mcap"][:size]}, tmp_path)
    refused(path, "empty|no MCAP file|never closed")


def test_what_lies_between_messages_is_not_read(tmp_path, monkeypatch):
    """An attachment may be larger than memory."""
    data = seed_files("unchunked")["bag.mcap"]
    messages = [begin for opcode, begin, _ in outer(data) if opcode == 5]
    attachment = record(Attachment, create_time=0, log_time=0, name="", media_type="", data=bytes(40_000))
    path = lay_out({"bag.mcap": data[: messages[9]] + attachment + data[messages[9] :]}, tmp_path)
    monkeypatch.setattr(mcap_file, "MAX_BYTES", 20_000)
    monkeypatch.setattr(mcap_file, "PIECE", 2000)
    assert came(path) == content()[1]


def test_a_record_that_is_too_large_is_told(tmp_path, monkeypatch):
    topics, entries = content()
    big = (START, JOINT_STATES, bytes(30_000))
    path = lay_out(with_mcap((topics, [big, *entries]), use_chunking=False), tmp_path)
    monkeypatch.setattr(mcap_file, "MAX_BYTES", 20_000)
    refused(path, "claims .* bytes")
    assert came(path, salvage=True) == entries


def index(data, change):
    """The file with other entries for its chunks at its end, as many as the statistics then say."""
    (begin,) = struct.unpack_from("<Q", data, len(data) - 8 - 20)
    records = []
    for opcode, start, end in walk(data[begin:]):
        raw = data[begin + start : begin + end]
        if opcode == 8:
            entry = ChunkIndex.read(ReadDataStream(BytesIO(raw[9:])))
            records += [record(ChunkIndex, **vars(other)) for other in change(entry)]
        elif opcode == 11:
            statistics = Statistics.read(ReadDataStream(BytesIO(raw[9:])))
        elif opcode in (3, 4):
            records.append(raw)
    chunks = sum(raw[0] == 8 for raw in records)
    records.append(record(Statistics, **{**vars(statistics), "chunk_count": max(1, chunks)}))
    return data[:begin] + b"".join(records) + record(Footer, begin, 0, 0) + MAGIC


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: [entry] * 50,
        lambda entry: [],
        lambda entry: [replace(entry, chunk_start_offset=2**64 - 1)],
        lambda entry: [replace(entry, chunk_length=2**63)],
        lambda entry: [replace(entry, chunk_length=0)],
        lambda entry: [replace(entry, message_start_time=2**64 - 1, message_end_time=0)],
        lambda entry: [replace(entry, message_end_time=2**64 - 1)],
    ],
    ids=["again", "none", "elsewhere", "long", "short", "backwards", "later"],
)
def test_an_index_that_cannot_be_is_not_needed(tmp_path, change):
    path = lay_out({"bag.mcap": index(seed_files("zstd")["bag.mcap"], change)}, tmp_path)
    for salvage in (False, True):
        assert came(path, salvage) == content()[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda entry: [replace(entry, chunk_start_offset=entry.chunk_start_offset - 1)], "damaged"),
        (lambda entry: [replace(entry, message_start_time=START + 10**12 - entry.chunk_start_offset,
                                message_end_time=START + 10**12)], "does not tell where messages begin"),
    ],
    ids=["aside", "reversed"],
)  # fmt: skip
def test_an_index_that_lies_is_told(tmp_path, change, says):
    path = lay_out({"bag.mcap": index(seed_files("zstd")["bag.mcap"], change)}, tmp_path)
    refused(path, says)
    assert came(path, salvage=True) == content()[1]


def test_an_index_of_fewer_chunks_than_there_are_is_not_believed(tmp_path):
    data = seed_files("ours")["bag.mcap"]
    (begin,) = struct.unpack_from("<Q", data, len(data) - 8 - 20)
    first = next(start for opcode, start, _ in walk(data[begin:]) if opcode == 8)
    assert came(lay_out({"bag.mcap": put(data, begin + first, b"\x0d")}, tmp_path)) == content()[1]


def test_an_index_that_was_damaged_is_not_believed(tmp_path):
    data = seed_files("zstd")["bag.mcap"]
    (begin,) = struct.unpack_from("<Q", data, len(data) - 8 - 20)
    first = next(start for opcode, start, _ in walk(data[begin:]) if opcode == 8)
    broken = put(data, begin + first + 9, struct.pack("<Q", START + 10**9))  # when the first chunk begins
    assert came(lay_out({"bag.mcap": broken}, tmp_path)) == content()[1]


def test_chunks_that_all_overlap_do_not_fill_the_memory(tmp_path, monkeypatch):
    topics, entries = content()
    mixed = [entry for pair in zip(entries, entries[::-1], strict=True) for entry in pair][: len(entries)]
    path = lay_out(with_mcap((topics, mixed)), tmp_path)
    stamps = sorted(stamp for stamp, _, _ in mixed)
    assert [stamp for stamp, _, _ in came(path)] == stamps
    monkeypatch.setattr(storage, "MAX_WAITING", 8000)
    refused(path, "overlap in time")
    with Bag(path, salvage=True) as bag:
        for _ in range(2):  # what was taken is given back
            some = [message.stamp for message in bag.messages()]
            assert 10 < len(some) < len(stamps) and some == sorted(some)


def test_messages_of_no_topic_are_told(tmp_path):
    data = seed_files("unchunked")["bag.mcap"]
    begin = next(begin for opcode, begin, _ in outer(data) if opcode == 4)
    path = lay_out({"bag.mcap": put(data, begin, b"\x0c")}, tmp_path)  # the first channel is metadata now
    refused(path, "a topic that is not told")
    lost = content()[0][0].name
    assert came(path, salvage=True) == [entry for entry in content()[1] if entry[1] != lost]


@pytest.mark.parametrize(
    ("write", "says"), [(with_mcap, "which no clock says"), (with_sqlite, "rows that are no")]
)
def test_a_time_that_no_clock_has_is_told(tmp_path, write, says):
    topics, entries = content()
    late = (2**63 - 2, COMMANDS, next(raw for _, name, raw in entries if name == COMMANDS))
    path = lay_out(write((topics, [*entries, late])), tmp_path)
    refused(path, says)
    assert came(path, salvage=True) == entries


# Topics and what is told of them --------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"name": "/two\nlines"},
        {"name": "/" + "n" * 300},
        {"name": "/\x1b[2Jclear"},
        {"kind": "a/msg/\x07"},
        {"name": EVENTS},  # the same as another of another type
    ],
    ids=range(5),
)
@pytest.mark.parametrize("write", [with_mcap, with_sqlite])
def test_a_topic_that_is_none_is_told_and_left_out(tmp_path, write, change):
    topics, entries = content()
    odd = [replace(topic, **change) if topic.name == JOINT_STATES else topic for topic in topics]
    path = lay_out(write((odd, [e for e in entries if e[1] != JOINT_STATES])), tmp_path)
    refused(path, "damaged")
    with Bag(path, salvage=True) as bag:
        assert set(bag.topics) == {topic.name for topic in topics} - {JOINT_STATES}
        assert all(problem.isprintable() for problem in bag.problems)


@pytest.mark.parametrize("text", PROFILES, ids=range(len(PROFILES)))
def test_odd_profiles_are_those_of_nobody(text):
    assert offered(text) == {"reliable": True, "latched": False}


def test_an_event_of_another_version_is_told(tmp_path):
    topics, entries = content()
    other = [replace(t, definition=t.definition.replace("string task", "int32 task")) for t in topics]
    with Bag(lay_out(with_mcap((other, entries)), tmp_path)) as bag:
        (event, *_) = bag.messages([EVENTS])
        with pytest.raises(BagError, match=r"no such task as here: it is of another version"):
            bag.decode(event)


def test_a_message_that_would_be_millions_of_objects_is_not_decoded(tmp_path):
    topics, _ = content()
    text = b"\1\0\0\0\0\0\0\0"
    raw = b"\0\1\0\0" + bytes(8) + text + struct.pack("<I", 2 * 10**6) + text * 2 * 10**6
    with Bag(lay_out(with_mcap((topics, [(START, JOINT_STATES, raw)])), tmp_path)) as bag:
        (message,) = bag.messages()
        with pytest.raises(BagError, match="bytes, which no robot's has"):
            bag.decode(message)


# SQLite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [s for s in STATEMENTS if "CREATE VI" in s or "data AS" in s])
def test_a_table_that_computes_its_rows_is_refused(tmp_path, statement):
    path = lay_out(with_sqlite(content(), (statement,)), tmp_path)
    for salvage in (False, True):
        refused(path, "has no table messages as rosbag2 writes it", salvage)


def test_pages_that_contain_one_another_have_an_end(tmp_path):
    """A few pages of which each names the next a hundred times are more rows than there are atoms."""
    path = lay_out(seed_files("humble_sqlite"), tmp_path)
    connection = sqlite3.connect(path)
    (leaf,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.executescript(
        f"PRAGMA writable_schema = 1; UPDATE sqlite_master SET rootpage = {pages + 1} WHERE name = 'messages'"
    )
    connection.commit()
    connection.close()
    data = path.read_bytes()
    levels = 15
    for level in range(levels):
        child = pages + 2 + level if level < levels - 1 else leaf
        cells = struct.pack(">IB", child, 1) * 100
        pointers = struct.pack(">100H", *range(1024 - 500, 1024, 5))
        head = struct.pack(">BHHHBI", 5, 0, 100, 1024 - 500, 0, child)
        data += (head + pointers).ljust(1024 - 500, b"\0") + cells
    path.write_bytes(put(data, 28, struct.pack(">I", pages + levels)))
    began = time.process_time()
    refused(path, "interrupted|malformed")
    assert time.process_time() - began < 5
    with Bag(path, salvage=True) as bag:
        rows = [(m.stamp, m.topic, m.raw) for m in bag.messages()]
        assert bag.problems and len(rows) <= len(content()[1])


def test_a_journal_that_names_a_file_deletes_nothing(tmp_path):
    path = lay_out(seed_files("humble_sqlite"), tmp_path)
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    data, magic = path.read_bytes(), b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
    size = 1024
    head = magic + struct.pack(">IIIII", 1, 0, len(data) // size, 512, size)
    checksum = sum(data[at] for at in range(size - 200, 0, -200))
    first = struct.pack(">I", 1) + data[:size] + struct.pack(">I", checksum)
    name = os.fsencode(precious)
    last = struct.pack(">I", 2**30 // size + 1) + name + struct.pack(">II", len(name), sum(name)) + magic
    path.with_name("bag.db3-journal").write_bytes(head.ljust(512, b"\0") + first + last)
    refused(path, "names another file", salvage=True)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["what?.db3", "100%41.db3", "a#b.db3", "file:x?mode=rw.db3"])
def test_a_name_is_no_address(tmp_path, name):
    assert came(lay_out({name: seed_files("humble_sqlite")["bag.db3"]}, tmp_path)) == content()[1]


# What is told ---------------------------------------------------------------------------------------


def test_there_is_an_end_of_problems(tmp_path):
    topics, _ = content()
    raws = [b"\0\1\0\0" + struct.pack("<I", i) * 5 for i in range(300)]
    many = [(START + i, JOINT_STATES, raw) for i, raw in enumerate(raws)]
    data = with_mcap((topics, many), use_chunking=False)["bag.mcap"]
    for opcode, begin, _ in outer(data):
        if opcode == 5:
            data = put(data, begin + 9 + 6, b"\xff" * 8)
    with Bag(lay_out({"bag.mcap": data}, tmp_path), salvage=True) as bag:
        assert len(bag.problems) == storage.MAX_PROBLEMS + 1 and bag.problems[-1] == "and more"


def test_problems_of_messages_are_counted_without_end():
    problems = Counter()
    for i in range(1000):
        tally(problems, f"problem {i}")
    tally(problems, "problem 1")
    assert problems["problem 1"] == 2 and problems["other problems"] == 1000 - storage.MAX_PROBLEMS
    assert problems.total() == 1001


def test_what_people_read_is_one_line():
    assert plain("a\x1b[2J\n b\u202e") == "a [2J b"
    assert plain(MemoryError()) == "MemoryError"
    assert str(BagError("x" * 5000 + "; --salvage")).endswith("; --salvage")
    assert len(str(BagError("x" * 5000))) < 1100


# Replaying ------------------------------------------------------------------------------------------


def played(content, folder, **options):
    with Bag(lay_out(with_mcap(content), folder)) as bag:
        replay = Replay(bag, contract(), find_topics(bag, contract()), Still(), **options)
        replay.run()
    return replay


@pytest.mark.parametrize("stamp", [bytes(8), b"\xff" * 8, struct.pack("<iI", 2**31 - 1, 0)], ids=range(3))
def test_an_event_that_no_clock_stamped_does_not_make_it_tick_for_ever(tmp_path, stamp):
    topics, entries = content()
    odd = [(at, name, put(raw, 4, stamp) if name == EVENTS else raw) for at, name, raw in entries]
    began = time.process_time()
    (as_it_was,) = played((topics, entries), tmp_path / "a").played
    (as_it_is,) = played((topics, odd), tmp_path / "b").played
    assert time.process_time() - began < 5
    # Those of this bag are stamped when they are received.
    assert (as_it_is.start, as_it_is.end) == (as_it_was.start, as_it_was.end)
    assert [i.stamp for i in as_it_is.inferences["on"]] == [i.stamp for i in as_it_was.inferences["on"]]


def test_a_commit_that_contradicts_itself_is_counted(tmp_path):
    topics, entries = content()
    # A list of no stamps, of which there were three; what follows it is a list of tokens, which is empty now.
    odd = [
        (at, name, raw[: raw.index(b"wrist\0") + 8] + bytes(8) if name == COMMITS else raw)
        for at, name, raw in entries
    ]
    replay = played((topics, odd), tmp_path, recorded_ticks=True)
    assert replay.unused == {"commit: 3 streams but 0 stamps": 3}


def test_reasons_name_streams_whatever_joints_are_called(tmp_path):
    topics, entries = content()
    odd = [
        (at, name, raw.replace(b"elbow_flex", b"a; b%02d: cc" % i))
        for i, (at, name, raw) in enumerate(entries)
    ]
    skips = played((topics, odd), tmp_path).played[0].skips
    assert {stream for key in skips for stream in key.split(": ")[1].split(", ")} <= set(contract().streams)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(struct.pack("<d", 0.2), struct.pack("<d", math.nan)),
        lambda raw: raw.replace(struct.pack("<d", 0.2), struct.pack("<d", math.inf)),
        lambda raw: raw.replace(struct.pack("<d", 0.2), struct.pack("<d", -1e300)),
        lambda raw: raw[:-8] + struct.pack("<iI", -1, 0),  # the time of the last point
    ],
    ids=["nan", "inf", "far", "before"],
)
def test_a_command_that_no_joint_can_follow_is_no_action(tmp_path, change):
    topics, entries = content()
    bad = [(at, name, change(raw) if name == COMMANDS else raw) for at, name, raw in entries]
    with Bag(lay_out(with_mcap((topics, bad)), tmp_path)) as bag:
        framer = Framer(bag, contract(), task="sway")
        assert list(framer.frames()) == [] and framer.actions_from == "commands"
    assert sum(problem.startswith("command: ") for problem in framer.quality.unused) == 1
