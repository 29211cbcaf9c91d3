# SPDX-License-Identifier: Apache-2.0
"""Of a damaged bag all comes that lies whole in it: in order, byte for byte, and nothing else."""

import random
import sqlite3
from io import BytesIO

import pytest
from bag_helpers import JOINT_STATES, START
from bags.mutations import CHUNK, UNPACK, outer, put, walk
from bags.seeds import content, lay_out, seed_files, with_sqlite
from mcap.data_stream import ReadDataStream
from mcap.records import Chunk

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.storage import BagError

MESSAGE = 5


def saved(files, folder):
    """(time, topic, bytes) that come with salvage."""
    with Bag(lay_out(files, folder), salvage=True) as bag:
        came = [(m.stamp, m.topic, m.raw) for m in bag.messages()]
        assert bag.count >= len(came)  # some are found to be damaged only when they are read
        return came


def refused(files, folder):
    with pytest.raises(BagError, match="--salvage"), Bag(lay_out(files, folder)) as bag:
        list(bag.messages())


def in_record(data, opcode, begin, end):
    """How many messages a record holds."""
    if opcode != CHUNK:
        return int(opcode == MESSAGE)
    chunk = Chunk.read(ReadDataStream(BytesIO(data[begin + 9 : end])))
    return sum(inner == MESSAGE for inner, _, _ in walk(UNPACK[chunk.compression](chunk.data)))


@pytest.mark.parametrize("seed", ["unchunked", "chunked", "zstd", "lz4", "unindexed"])
def test_a_truncated_mcap_file_gives_its_whole_records(tmp_path, seed):
    entries, data = content()[1], seed_files(seed)["bag.mcap"]
    records = [record for record in outer(data) if in_record(data, *record)]
    ends = [end for _, _, end in records]
    rng = random.Random(seed)
    for number, cut in enumerate([ends[0] - 1, ends[0], *rng.sample(range(ends[0], ends[-1]), 20), ends[-1]]):
        whole = sum(in_record(data, *record) for record, end in zip(records, ends, strict=True) if end <= cut)
        files = {"bag.mcap": data[:cut]}
        assert saved(files, tmp_path / str(number)) == entries[:whole]
        with Bag(tmp_path / str(number) / "bag.mcap", salvage=True) as bag:
            assert bag.count == whole and any("never closed" in problem for problem in bag.problems)
        refused(files, tmp_path / str(number))


def test_what_lies_beyond_a_broken_length_is_found_through_the_index(tmp_path):
    data = seed_files("zstd")["bag.mcap"]
    chunks = [record for record in outer(data) if record[0] == CHUNK]
    _, begin, _ = chunks[3]
    sizes = [in_record(data, *chunk) for chunk in chunks]
    # The header lies; what is in the chunk is whole.
    assert saved({"bag.mcap": put(data, begin + 1, b"\xff" * 8)}, tmp_path / "a") == content()[1]
    # Its content is damaged too.
    broken = put(data, begin + 1, b"\xff" * 60)
    left = content()[1][: sum(sizes[:3])] + content()[1][sum(sizes[:4]) :]
    assert saved({"bag.mcap": broken}, tmp_path / "b") == left
    refused({"bag.mcap": broken}, tmp_path / "b")


def test_a_damaged_record_costs_no_other(tmp_path):
    data = seed_files("unchunked")["bag.mcap"]
    messages = [begin for opcode, begin, _ in outer(data) if opcode == MESSAGE]
    broken = put(data, messages[5] + 9 + 6, b"\xff" * 8)  # a time that no clock has
    assert saved({"bag.mcap": broken}, tmp_path) == content()[1][:5] + content()[1][6:]
    refused({"bag.mcap": broken}, tmp_path)


def test_a_damaged_definition_costs_no_message(tmp_path):
    """The writer tells definitions again in each chunk, and has no checksums."""
    files = seed_files("ours")
    at = files["bag.mcap"].index(b"liveliness_lease_duration")
    assert saved({**files, "bag.mcap": put(files["bag.mcap"], at, b"\xf6")}, tmp_path) == content()[1]


def test_messages_that_cannot_be_unpacked_cost_no_others(tmp_path):
    files = seed_files("message_zstd")
    at = files["bag.mcap"].index(b"\x28\xb5\x2f\xfd") + 12
    broken = {**files, "bag.mcap": put(files["bag.mcap"], at, b"\xff" * 4)}
    assert len(saved(broken, tmp_path)) == len(content()[1]) - 1
    refused(broken, tmp_path)


def test_one_file_of_several_that_is_damaged_costs_no_other(tmp_path):
    files, entries = seed_files("split"), content()[1]
    broken = {**files, "bag_0.mcap": files["bag_0.mcap"][:100]}
    assert saved(broken, tmp_path / "a") == entries[len(entries) // 2 :]
    refused(broken, tmp_path / "a")
    del broken["bag_0.mcap"]
    assert saved(broken, tmp_path / "b") == entries[len(entries) // 2 :]
    refused(broken, tmp_path / "b")


# SQLite ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long():
    """2000 messages and the pages of their file."""
    topics, entries = content()
    raws = [raw for _, name, raw in entries if name == JOINT_STATES]
    many = [(START + i, JOINT_STATES, raws[i % len(raws)]) for i in range(2000)]
    data = with_sqlite((topics, many))["bag.db3"]
    return many, [data[at : at + 1024] for at in range(0, len(data), 1024)]


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_truncated_sqlite_file_gives_its_beginning(tmp_path, long, part):
    many, pages = long
    files = {"bag.db3": b"".join(pages[: int(part * len(pages))])}
    came = saved(files, tmp_path)
    assert came == many[: len(came)] and len(came) > 0.8 * part * len(many)
    refused(files, tmp_path)


def test_a_page_that_is_lost_costs_only_what_was_in_it(tmp_path, long):
    many, pages = long
    at = next(i for i, page in enumerate(pages) if i > 300 and page[0] == 13)  # of a table, not of an index
    files = {"bag.db3": b"".join([*pages[:at], b"\xff" * 1024, *pages[at + 1 :]])}
    came = saved(files, tmp_path)
    assert len(many) - 10 < len(came) < len(many)
    left = iter(many)
    assert all(message in left for message in came)  # in order
    refused(files, tmp_path)


def test_without_its_index_a_sqlite_file_is_salvaged_in_order(tmp_path):
    topics, entries = content()
    files = with_sqlite((topics, entries[::-1]))
    path = lay_out(files, tmp_path)
    with sqlite3.connect(path) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'timestamp_idx'"
        ((root,),) = connection.execute(query)
    connection.close()
    broken = {"bag.db3": put(files["bag.db3"], (root - 1) * 1024, b"\xff" * 1024)}
    refused(broken, tmp_path)
    came = saved(broken, tmp_path)
    assert sorted(came) == sorted(entries) and [m[0] for m in came] == [m[0] for m in entries]


def test_a_message_that_the_index_does_not_tell_is_missed(tmp_path):
    path = lay_out(seed_files("humble_sqlite"), tmp_path)
    # An index of some messages that says that it is of all.
    some = "CREATE INDEX timestamp_idx ON messages (timestamp ASC)"
    for statements in (
        f"DROP INDEX timestamp_idx; {some} WHERE id <> 20",
        f"PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = '{some}' WHERE name = 'timestamp_idx'",
    ):
        connection = sqlite3.connect(path)
        connection.executescript(statements)
        connection.commit()
        connection.close()
    files = {"bag.db3": path.read_bytes()}
    refused(files, tmp_path)
    assert saved(files, tmp_path) == content()[1]


def test_what_a_killed_recorder_left_in_a_log_beside_the_file_is_read(tmp_path):
    """rosbag2 writes so with its profile "resilient"."""
    path = lay_out(seed_files("humble_sqlite"), tmp_path)
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute(
        "INSERT INTO messages(topic_id, timestamp, data) VALUES (1, ?, ?)", (START + 10**12, b"last")
    )
    writer.commit()
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir() if not file.name.endswith("-shm")}
    writer.close()
    assert set(files) == {"bag.db3", "bag.db3-wal"}
    refused(files, tmp_path / "left")
    assert saved(files, tmp_path / "left") == [*content()[1], (START + 10**12, JOINT_STATES, b"last")]
