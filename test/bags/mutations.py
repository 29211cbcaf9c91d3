# SPDX-License-Identifier: Apache-2.0
"""What may happen to the bytes of a bag, by accident and on purpose; with one rng always the same."""

import math
import random
import re
import struct
from dataclasses import replace
from functools import cache
from io import BytesIO
from zlib import crc32

import lz4.frame
import yaml
import zstandard
from bag_helpers import IMAGES, JOINT_STATES, START
from bags.seeds import WRITERS, Files, Topic, content, seed_files, with_mcap, with_sqlite
from mcap.data_stream import ReadDataStream, RecordBuilder
from mcap.records import Channel, Chunk, DataEnd, Footer, Header, Message, Schema

# Bytes ----------------------------------------------------------------------------------------------

NUMBERS = [
    *(0, 1, 2, 7, 8, 9, 22, 255, 2**16, 2**20, 2**28, 2**28 + 1),
    *(2**power + off for power in (31, 32, 40, 62, 63) for off in (-1, 0, 1)),
    *(-1, -2, -9, -(2**31), -(2**63)),
]


def number(rng: random.Random, size: int) -> bytes:
    value = rng.choice(NUMBERS) if rng.random() < 0.8 else rng.getrandbits(64)
    return (value % 2 ** (8 * size)).to_bytes(size, rng.choice(["little", "little", "big"]))


def part(rng: random.Random, data: bytes) -> tuple[int, int]:
    """Where a stretch begins and ends, short ones more often than long ones."""
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + int(2 ** rng.uniform(0, 10)))


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def truncate(rng, data):
    return data[: rng.randrange(len(data) + 1)]


def flip(rng, data):
    changed = bytearray(data)
    for _ in range(int(2 ** rng.uniform(0, 5)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng, data):
    begin, end = part(rng, data)
    size = end - begin
    return put(data, begin, rng.choice([rng.randbytes(size), bytes(size), b"\xff" * size]))


def delete(rng, data):
    begin, end = part(rng, data)
    return data[:begin] + data[end:]


def double(rng, data):
    begin, end = part(rng, data)
    return data[:end] + data[begin:end] * rng.choice([1, 1, 2, 20]) + data[end:]


def insert(rng, data):
    begin, end = part(rng, data)
    size = end - begin
    return data[:begin] + rng.choice([rng.randbytes(size), bytes(size)]) + data[begin:]


def move(rng, data):
    begin, end = part(rng, data)
    rest = data[:begin] + data[end:]
    to = rng.randrange(len(rest) + 1)
    return rest[:to] + data[begin:end] + rest[to:]


def lie(rng, data):
    size = rng.choice([1, 2, 4, 8])
    return put(data, rng.randrange(max(1, len(data) - size)), number(rng, size))


BYTES = [truncate, flip, flip, overwrite, delete, double, insert, move, lie, lie]


def any_bytes(rng, data):
    return rng.choice(BYTES)(rng, data)


# MCAP -----------------------------------------------------------------------------------------------

MAGIC = b"\x89MCAP0\r\n"
CHUNK = 6


def walk(data: bytes) -> list[tuple[int, int, int]]:
    """(opcode, begin, end) of records, their headers included."""
    found, position = [], 0
    while position + 9 <= len(data):
        opcode, length = struct.unpack_from("<BQ", data, position)
        if position + 9 + length > len(data):
            break
        found.append((opcode, position, position + 9 + length))
        position += 9 + length
    return found


def outer(data: bytes) -> list[tuple[int, int, int]]:
    return [(opcode, begin + 8, end + 8) for opcode, begin, end in walk(data[8:])]


def record_field(rng, data):
    """A number in a record: its length, or one of the first that it holds."""
    records = outer(data)
    if not records:
        return data
    opcode = rng.choice(sorted({opcode for opcode, _, _ in records}))  # or nearly all would be messages
    _, begin, end = rng.choice([record for record in records if record[0] == opcode])
    at = rng.choice([0, 1, 1, 1, *range(9, 60)])
    return put(data, begin + at, number(rng, rng.choice([1, 2, 4, 8, 8]))) if begin + at < end else data


def swap_records(rng, data):
    records = outer(data)
    if len(records) < 2:
        return data
    (_, a, b), (_, c, d) = sorted(rng.sample(records, 2), key=lambda record: record[1])
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def drop_record(rng, data):
    _, begin, end = rng.choice(outer(data) or [(0, 0, 0)])
    return data[:begin] + data[end:]


def double_record(rng, data):
    _, begin, end = rng.choice(outer(data) or [(0, 0, 0)])
    return data[:begin] + data[begin:end] * rng.choice([2, 2, 50]) + data[end:]


def footer(rng, data):
    at = len(data) - len(MAGIC) - rng.choice([4, 12, 12, 20, 20, 28])
    return put(data, at, number(rng, rng.choice([4, 8])))


def record(kind, *values, **named) -> bytes:
    builder = RecordBuilder()
    kind(*values, **named).write(builder)
    return builder.end()


def assembled(records: list[bytes]) -> bytes:
    """A file that was closed and has no index."""
    end = [record(DataEnd, 0), record(Footer, 0, 0, 0), MAGIC]
    return b"".join([MAGIC, record(Header, "ros2", ""), *records, *end])


PACK = {"": bytes, "zstd": zstandard.compress, "lz4": lz4.frame.compress}
UNPACK = {"": bytes, "zstd": zstandard.decompress, "lz4": lz4.frame.decompress}


def chunk_of(data: bytes, how: str) -> bytes:
    return record(Chunk, how, PACK[how](data), START, START, crc32(data), len(data))


def inside_chunk(rng, data):
    """Within a chunk, whose checksum is then right."""
    records = [data[begin:end] for opcode, begin, end in outer(data) if opcode in (3, 4, 5, CHUNK)]
    chunks = [i for i, raw in enumerate(records) if raw[0] == CHUNK]
    if not chunks:
        return any_bytes(rng, data)
    at = rng.choice(chunks)
    chunk = Chunk.read(ReadDataStream(BytesIO(records[at][9:])))
    raw = UNPACK[chunk.compression](chunk.data)
    if rng.random() < 0.5:
        raw = any_bytes(rng, raw)
    elif inner := walk(raw):
        _, begin, end = rng.choice(inner)
        raw = rng.choice([
            put(raw, begin + rng.choice([0, 1, 1, *range(9, 31)]), number(rng, rng.choice([1, 2, 4, 8]))),
            raw[:begin] + raw[end:],
            raw[:end] + raw[begin:end] * 30 + raw[end:],
        ])  # fmt: skip
    records[at] = chunk_of(raw, chunk.compression)
    return assembled(records)


def zstd_bomb(size: int) -> bytes:
    """Blocks of 128 KiB, each of one byte that is to be repeated; the size is not told."""
    block = (1 << 1 | 2**17 << 3).to_bytes(3, "little") + b"\0"
    last = (1 | 1 << 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block * (size // 2**17) + last


def lz4_bomb(size: int) -> bytes:
    frame = lz4.frame.compress(bytes(2**22), block_size=7, block_linked=False, store_size=False)
    return frame[:7] + frame[7:-4] * (size // 2**22) + frame[-4:]


@cache
def bombs() -> list[bytes]:
    """Files of which little unpacks to more than there is room for."""
    topics, _ = content()
    told = b"".join(
        record(Schema, id=i, name=t.kind, encoding="ros2msg", data=t.definition.encode())
        + record(Channel, id=i, schema_id=i, topic=t.name, message_encoding="cdr", metadata={})
        for i, t in enumerate(topics, 1)
    )

    def message(channel: int, time: int, raw: bytes) -> bytes:
        return record(Message, channel_id=channel, sequence=0, log_time=time, publish_time=time, data=raw)

    def packed(raw: bytes, how: str, size: int) -> bytes:
        return record(Chunk, how, raw, START, START, 0, size)

    def chunk(raw: bytes) -> bytes:
        return packed(zstandard.compress(raw), "zstd", len(raw))

    huge, big = 2**31, bytes(200 * 2**20)
    zstd = zstd_bomb(huge)
    # Chunks that all reach from the beginning to the end.
    wide = chunk(message(1, START, b"") + message(1, START + 10**12, big))
    # Sequences that claim what the bytes just hold: of text, of points; and a long text.
    header = b"\0\1\0\0" + bytes(8) + b"\1\0\0\0\0\0\0\0"
    names = header + struct.pack("<I", 10**7) + b"\1\0\0\0\0\0\0\0" * 10**7
    points = header + bytes(4) + struct.pack("<I", 4 * 10**6) + bytes(10**8)
    encoding = header + bytes(8) + struct.pack("<I", 10**8) + b"a" * (10**8 - 1) + b"\0"
    return [
        *[assembled([told, packed(zstd, "zstd", size)]) for size in (100, 2**28, huge, 2**60)],
        *[assembled([told, packed(lz4_bomb(huge), "lz4", size)]) for size in (100, huge)],
        assembled([told, message(1, START, zstd)]),
        assembled([told, *[wide] * 6]),
        assembled([told, chunk(big)]),  # which is records of nine bytes
        assembled([chunk(record(Schema, id=i, name="a", encoding="b", data=big)) for i in range(1, 7)]),
        assembled([told, chunk(message(1, START, names))]),
        assembled([told, chunk(message(5, START, points))]),
        assembled([told, chunk(message(2, START, encoding))]),
        # An index that begins at a bomb.
        assembled([packed(zstd, "zstd", huge)])[: -8 - 20] + struct.pack("<QQI", 8 + 9 + 12, 0, 0) + MAGIC,
    ]


MCAP = [
    *[record_field] * 3, *[inside_chunk] * 2, swap_records, drop_record, double_record, footer,
]  # fmt: skip


# SQLite ---------------------------------------------------------------------------------------------


def sqlite_header(rng, data):
    return put(data, rng.choice([16, 18, 19, 20, 21, *range(24, 100, 4)]), number(rng, rng.choice([1, 2, 4])))


def sqlite_page(rng, data):
    """The header of a page or the pointers to its cells, which begin it."""
    size = int.from_bytes(data[16:18], "big") or 4096
    page = rng.randrange(max(1, len(data) // size))
    return put(data, page * size + 100 * (page == 0) + rng.randrange(16), number(rng, rng.choice([1, 2, 4])))


def swap_pages(rng, data):
    size = int.from_bytes(data[16:18], "big") or 4096
    pages = [data[at : at + size] for at in range(0, len(data), size)]
    a, b = rng.randrange(len(pages)), rng.randrange(len(pages))
    if rng.random() < 0.5:
        pages[a] = pages[b]
    else:
        pages[a], pages[b] = pages[b], pages[a]
    return b"".join(pages)


SQLITE = [sqlite_header, sqlite_page, sqlite_page, sqlite_page, swap_pages]

STATEMENTS = [
    "UPDATE messages SET timestamp = 'soon' WHERE id % 3 = 0",
    "UPDATE messages SET timestamp = 1.5 WHERE id % 3 = 0",
    "UPDATE messages SET timestamp = -timestamp WHERE id % 3 = 0",
    f"UPDATE messages SET timestamp = {2**63 - 1} WHERE id % 3 = 0",
    "UPDATE messages SET data = 'text' WHERE id % 3 = 0",
    "UPDATE messages SET data = 5 WHERE id % 3 = 0",
    "UPDATE messages SET data = zeroblob(100000000) WHERE id = 9",
    "UPDATE messages SET topic_id = 99 WHERE id % 3 = 0",
    "UPDATE messages SET topic_id = 'one' WHERE id % 3 = 0",
    "UPDATE topics SET name = x'ff00' WHERE id = 2",
    "UPDATE topics SET name = CAST(x'fffe41' AS TEXT) WHERE id = 2",
    "UPDATE topics SET name = CAST(zeroblob(10000000) AS TEXT) WHERE id = 2",
    "UPDATE topics SET type = 7 WHERE id = 2",
    "UPDATE topics SET serialization_format = x'00' WHERE id = 2",
    "UPDATE topics SET offered_qos_profiles = 9 WHERE id = 2",
    "UPDATE topics SET name = '/joint_states'",
    "DELETE FROM topics",
    "DELETE FROM messages",
    "DROP TABLE topics",
    "DROP TABLE messages",
    "DROP TABLE messages; CREATE VIEW messages AS SELECT 1 AS topic_id, 1 AS timestamp, x'00' AS data",
    "DROP TABLE messages; CREATE VIEW messages AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 "
    "FROM n) SELECT x AS id, 1 AS topic_id, x AS timestamp, zeroblob(100000) AS data FROM n",
    "DROP TABLE messages; CREATE VIRTUAL TABLE messages USING fts5(id, topic_id, timestamp, data)",
    "ALTER TABLE messages RENAME TO m; CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id, timestamp,"
    " data AS (zeroblob(900000000))); INSERT INTO messages(topic_id, timestamp)"
    " SELECT topic_id, timestamp FROM m; DROP TABLE m",
    "DROP INDEX timestamp_idx",
    "DROP INDEX timestamp_idx; CREATE INDEX timestamp_idx ON messages (length(data))",
    "ALTER TABLE messages RENAME COLUMN data TO payload",
    "ALTER TABLE topics DROP COLUMN offered_qos_profiles",
    "CREATE TABLE message_definitions(id, topic_type, encoding, encoded_message_definition)",
    "CREATE TABLE message_definitions(id, topic_type, encoding, encoded_message_definition); INSERT INTO"
    " message_definitions VALUES (1, 5, 'ros2msg', 6), (2, 'a', 'odd', 'b'), (3, NULL, NULL, NULL),"
    " (4, 'a', 'ros2msg', CAST(zeroblob(1000000) AS TEXT))",
    "DROP TABLE messages; CREATE TABLE messages(id, topic_id, timestamp, data, PRIMARY KEY (timestamp, id))"
    " WITHOUT ROWID; INSERT INTO messages VALUES (1, 1, 1, x'00')",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET rootpage = 3",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET rootpage = 99999 WHERE name = 'messages'",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = 'CREATE TABLE ' WHERE name = 'topics'",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET type = 'view' WHERE name = 'messages'",
    "PRAGMA journal_mode = WAL",
]


# Metadata -------------------------------------------------------------------------------------------

VALUES = [
    None, True, -1, 2**100, math.nan, math.inf, "", ".", "..", "/", "../../../etc/passwd", "/etc/passwd",
    "a" * 300, "\0", "\x1b[2J", "é", "two\nlines", [], {}, [[]], ["bag.mcap"] * 300, ["bag.mcap/../bag.mcap"],
    [None], [[["x"]]], {"a": [1]}, "file", "message", "zstd", "lz4", "bag.mcap.zstd", "metadata.yaml",
]  # fmt: skip
TEXTS = [
    "!!int ''", "!!float ''", "!!timestamp x", "!!binary '='", "!!bool maybe", "!!set {a}", "!unknown x",
    "!!python/object/apply:os.abort []", "*a", "&a [*a]", "&a [b, *a]", "{? [a] : b}", "{? {a: b} : c}",
    "<<: *x", "{<<: 5}", "190:20:30:40:50:60:70:80.5", "0o9", "1e999", "2001-99-99", "'", '"', "[" * 3000,
    "{a: " * 3000, "- " * 3000, "? " * 3000, "\t", "%TAG ! x", "@", "`", "|", ">", "\u2028", "\ufeff",
    "--- a\n--- b", "[" + "a, " * 20000 + "]",
]  # fmt: skip


def metadata_value(rng, data):
    """Another value somewhere in it."""
    tree = yaml.load(data, yaml.CSafeLoader)
    node = tree["rosbag2_bagfile_information"]
    while True:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        # The few keys that are read, more often than the others.
        names = "relative_file_paths"
        key = names if names in keys and rng.random() < 0.3 else rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.6:
            node = node[key]
            continue
        if rng.random() < 0.2 and isinstance(node, dict):
            del node[key]
        else:
            node[key] = rng.choice(VALUES)
        return yaml.dump(tree, Dumper=yaml.CSafeDumper, allow_unicode=True).encode(errors="replace")


def metadata_text(rng, data):
    """Something odd in the place of a value, or a line twice."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.2:
        lines.insert(at, rng.choice(lines))
    else:
        lines[at] = re.sub(r"(:|-) .*|:$", lambda match: f"{match[0][0]} {rng.choice(TEXTS)}", lines[at])
    return "\n".join(lines).encode()


METADATA = [metadata_value, metadata_value, metadata_text, any_bytes]


# Contents -------------------------------------------------------------------------------------------


def payloads(rng, content):
    """Messages whose bytes are others."""
    topics, entries = content
    changed = list(entries)
    topic = rng.choice(topics).name
    of_topic = [i for i, (_, name, _) in enumerate(entries) if name == topic] or [0]
    for at in rng.sample(of_topic, rng.randint(1, len(of_topic))):
        stamp, name, raw = changed[at]
        if rng.random() < 0.6:
            raw = put(raw, rng.randrange(0, max(1, len(raw) - 3), 4), number(rng, 4))
        else:
            raw = any_bytes(rng, raw)
        changed[at] = stamp, name, raw
    return topics, changed


STAMPS = [0, 1, START, START - 10**10, START + 10**12, 2**61, 2**62, 2**62 + 1, 2**63 - 2, 2**64 - 1]


def stamps(rng, content):
    """Times in the headers or of reception that no clock has, and orders that are none."""
    topics, entries = content
    changed = list(entries)
    for at in rng.sample(range(len(entries)), rng.choice([1, 3, len(entries)])):
        stamp, name, raw = changed[at]
        if rng.random() < 0.5:
            raw = put(raw, 4, number(rng, 4) + number(rng, 4))
        else:
            stamp = rng.choice(STAMPS)
        changed[at] = stamp, name, raw
    return topics, changed


def other_topics(rng, content):
    """Messages under other topics than their own."""
    topics, entries = content
    names = [topic.name for topic in topics]
    others = dict(zip(names, rng.sample(names, len(names)), strict=True))
    return topics, [
        (stamp, others[name] if rng.random() < 0.5 else name, raw) for stamp, name, raw in entries
    ]


NAMES = [
    "", "/", "a\nb", "\x1b[2J", "/" + "n" * 1000, "/é", "joint_states", "/ns/joint_states", JOINT_STATES,
    IMAGES,
]  # fmt: skip
KINDS = [
    "", "x", "a/msg/B", "a/msg/1", "../../msg/Up", "sensor_msgs/msg/Image", "a/msg/B\nint32 x", "a\0b",
    "sensor_msgs/msg/" + "I" * 500, "smolvla_mem_ros/msg/Nothing", "action_msgs/msg/GoalInfo",
]  # fmt: skip
ENCODINGS = ["", "json", "cdr_be", "x" * 10**6, "\n"]
PROFILES = [*TEXTS, "- {reliability: [1], durability: {}}", "- 5", "5", "a: b", "- {}", "- {" * 999]


def also(*definitions: str) -> str:
    """Types after the first."""
    return "".join(f"\n{'=' * 80}\nMSG: {definition}" for definition in definitions)


def chain(length: int, line: str, last: str = "int32 x") -> str:
    """A field of a type that is made of the next, and so on."""
    types = [f"a/A{i}\n" + line.replace("NEXT", f"A{i + 1}") for i in range(length)]
    return "a/A0 a" + also(*types, f"a/A{length}\n{last}")


# Lines of definitions.
LINES = [
    "string[1000000000] a", "float64[2000000000] a", "int32[0] a", "int32[-1] a", "string<=99999999999 a",
    "EpisodeEvent again", "smolvla_mem_ros/EpisodeEvent[] again", "nothing/Here a",
    "nothing/H" + "e" * 300 + " a", "float32 X=1e999", "int32 X=" + "9" * 5000, "int32 X=[1, 2]",
    "string X='''", "int32 class", "int32 header", "int32 a\nint32 a", also("1a/2b\nint32 x"),
    also("a/B\nB again"), "a/B b" + also("a/B\nB b"), also(""), "# " + "c" * 300_000, chain(6, "NEXT[100] a"),
    chain(6, "NEXT[100] a", "int32[0] x"), chain(60, "NEXT a\nNEXT b"), chain(700, "NEXT a"),
]  # fmt: skip


def misnomer(rng, content):
    """A topic that is told wrongly."""
    topics, entries = list(content[0]), content[1]
    at = rng.randrange(len(topics))
    topic = topics[at]
    wrong = rng.choice(["definition", "name", "kind", "schema", "encoding", "profiles"])
    # Those of ROS are known and not looked at.
    if wrong == "definition" or topic.kind.startswith("smolvla"):
        wrong = "definition"
        lines = topic.definition.splitlines() or [""]
        line = rng.randrange(len(lines))
        changed = rng.choice([
            *["\n".join([*lines[:line], rng.choice(LINES), *lines[line:]])] * 2,
            "\n".join(lines[:line] + lines[line + 1 :]),
            any_bytes(rng, topic.definition.encode()).decode(errors="replace"),
        ])  # fmt: skip
    else:
        changed = rng.choice({
            "name": NAMES,
            "kind": [*KINDS, *(other.kind for other in topics)],
            "schema": ["", "ros2idl", "jsonschema", "ros1msg"],
            "encoding": ENCODINGS,
            "profiles": PROFILES,
        }[wrong])  # fmt: skip
    topics[at] = replace(topic, **{wrong: changed})
    names = {old.name: new.name for old, new in zip(content[0], topics, strict=True)}
    return topics, [(stamp, names[name], raw) for stamp, name, raw in entries]


CONTENTS = [payloads, payloads, payloads, stamps, other_topics, misnomer, misnomer]
# These take whatever they are given; the others know what a bag is.
ANYTHING = {"unchunked", "chunked", "zstd", "lz4", "unindexed", "humble_sqlite"}


# Cases ----------------------------------------------------------------------------------------------


def defined(number: int) -> Files:
    """A bag with a type of its own, whose definition is one of LINES."""
    topics, entries = content()
    grip = Topic("/grip", "their_robot/msg/Grip", f"int32 x\n{LINES[number]}")
    return with_mcap(([*topics, grip], [*entries, *[(entries[-1][0], grip.name, bytes(2**16))] * 50]))


# Seeds of what is not left to chance: how many there are, and their files.
NAMED = {"bomb": (14, lambda number: {"bag.mcap": bombs()[number]}), "definition": (len(LINES), defined)}


def journal(rng, files: Files) -> Files:
    """What a recorder that was killed leaves beside a file."""
    (name,) = (name for name in files if name.endswith(".db3"))
    size = int.from_bytes(files[name][16:18], "big")
    magic = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
    head = magic + struct.pack(">IIIII", 0xFFFFFFFF, 5, len(files[name]) // max(size, 1), 512, size)
    first = struct.pack(">I", 1) + files[name][:size]
    # A page's checksum is the nonce and every 200th byte from the end.
    check = (5 + sum(files[name][size - 200 : 0 : -200])) % 2**32
    whole = head.ljust(512, b"\0") + first + struct.pack(">I", check)
    others = whole + b"/x" + bytes(8) + magic
    left = rng.choice([b"", rng.randbytes(600), whole, any_bytes(rng, whole), others])
    return {**files, name + rng.choice(["-journal", "-journal", "-wal"]): left}


def changes(name: str) -> list:
    """What may be done to a file of that name."""
    if name.endswith(".zstd"):
        inner = changes(name.removesuffix(".zstd"))
        return [*[any_bytes] * 2, *[unpacked(change) for change in inner]]
    for end, known in ((".yaml", METADATA), (".mcap", MCAP), (".db3", SQLITE)):
        if name.endswith(end):
            return [*known, *[any_bytes] * (len(known) // 2)]
    return [any_bytes]


def unpacked(change):
    def within(rng, data):
        return zstandard.compress(change(rng, zstandard.decompress(data)))

    within.__name__ = f"{change.__name__} within"
    return within


def case(seed: str, number: int) -> tuple[str, Files]:
    """What was done, and a bag's files."""
    if seed in NAMED:
        return seed, NAMED[seed][1](number)
    rng = random.Random(f"{seed} {number}")
    done = []
    if rng.random() < (0.4 if seed in ANYTHING else 0.04):
        change = rng.choice(CONTENTS if seed in ANYTHING else [payloads, stamps])
        done.append(change.__name__)
        if seed == "humble_sqlite" and rng.random() < 0.5:
            done = [rng.choice(STATEMENTS)]
            files = with_sqlite(content(), tuple(done))
        else:
            files = WRITERS[seed](change(rng, content()))
        if rng.random() < 0.8:
            return done[0], files
    else:
        files = dict(seed_files(seed))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        # The file that tells of the others is smaller than what can go wrong in it.
        told = "metadata.yaml" in files and rng.random() < 0.3
        name = "metadata.yaml" if told else rng.choice(sorted(files))
        if name.endswith(".db3") and rng.random() < 0.1:
            files, change = journal(rng, files), journal
        else:
            change = rng.choice(changes(name))
            try:
                files[name] = change(rng, files[name])
            except Exception:  # of what was changed before this, it expects too much
                files[name] = any_bytes(rng, files[name])
        done.append(change.__name__)
    return ", ".join(done), files
