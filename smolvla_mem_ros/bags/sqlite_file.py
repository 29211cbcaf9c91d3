# SPDX-License-Identifier: Apache-2.0
"""One SQLite file, as rosbag2's sqlite3 storage writes it in all its versions."""

from __future__ import annotations

import math
import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import apsw
import numpy as np

from smolvla_mem_ros.bags.storage import (
    LATEST,
    MAX_BYTES,
    MAX_DEFINITION,
    MAX_DEFINITIONS,
    BagError,
    Damage,
    Room,
    StoredTopic,
    offered,
    plain,
)

# What SQLite raises on a file that is not what it says, and apsw on text that is none.
BROKEN = (apsw.Error, UnicodeDecodeError)

JOURNAL_MAGIC = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
COLUMNS = {
    "topics": {"id", "name", "type", "serialization_format"},
    "messages": {"topic_id", "timestamp", "data"},
}
MAX_NAME = 1000
# Looking at the type of data does not read it.
IS_MESSAGE = (
    "typeof(topic_id) = 'integer' AND typeof(timestamp) = 'integer' AND typeof(data) = 'blob' "
    f"AND timestamp BETWEEN 0 AND {LATEST}"
)


class SqliteFile:
    """See the module; the interface is that of storage.Storage.

    With ``salvage`` rows are looked for from both ends of the table and read one by one, without an index.

    Raises:
        BagError: it is no such file, or damaged and it is not to be salvaged.
    """

    def __init__(self, path: Path, damage: Damage, room: Room) -> None:
        self.damage = damage
        if not path.stat().st_size:
            raise BagError(f"{damage.path} is empty")
        if any(path.with_name(path.name + end).exists() for end in ("-journal", "-wal")):
            damage.note("it was never closed (a recorder that was killed, or is still at work)")
            self._roll_back(path)
        # Unlike a plain "read only" this one makes no files beside it and heeds none.
        address = f"file:{quote(os.fsencode(path))}?immutable=1"
        self._rows: np.ndarray | None = None
        try:
            self._connection = apsw.Connection(
                address, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            )
            self._harden(path.stat().st_size)
            self._open()
        except apsw.NotADBError as error:
            raise BagError(f"{damage.path} is no SQLite file") from error
        except BROKEN as error:
            hint = "" if damage.salvage else "; --salvage reads what there is"
            raise BagError(f"{damage.path} is damaged: {plain(error)}{hint}") from error

    def close(self) -> None:
        self._connection.close()

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
        """(nanoseconds, topic, bytes) of ``topics`` with start <= time < stop, in order of time."""
        wanted = {number: name for number, name in self._names.items() if name in topics}
        find = self._in_order if self._rows is None else self._one_by_one
        yield from find(wanted, start, stop)

    # Opening ------------------------------------------------------------------------------------

    def _roll_back(self, path: Path) -> None:
        """Take back what was half written: SQLite does so when a file is opened to write."""
        journal = path.with_name(path.name + "-journal")
        try:
            # Some SQLites would delete the file whose name is there.
            if journal.exists() and _ends_with(journal, JOURNAL_MAGIC):
                raise BagError(f"{journal} names another file; a recorder's does not")
            with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except (apsw.Error, OSError) as error:
            raise BagError(f"{self.damage.path} cannot be rolled back: {plain(error)}") from error

    def _harden(self, size: int) -> None:
        connection = self._connection
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, MAX_BYTES)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        connection.pragma("cell_size_check", True)
        if self.damage.salvage:
            connection.pragma("writable_schema", True)  # or a file that was cut off is not opened at all
        # Pages that contain one another have rows without end; true ones need more bytes than steps.
        connection.set_progress_handler(lambda: True, min(1_000_000 + 16 * size, 2**31 - 1))

    def _open(self) -> None:
        for table, needed in COLUMNS.items():
            # Generated columns are not among these.
            columns = {row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")}
            kinds = self._connection.execute(
                "SELECT type FROM pragma_table_list WHERE schema = 'main' AND name = ?", (table,)
            ).fetchall()
            if needed - columns or kinds != [("table",)]:
                raise BagError(f"{self.damage.path} has no table {table} as rosbag2 writes it")
            if table == "topics":
                qos = "offered_qos_profiles" if "offered_qos_profiles" in columns else "NULL"
        counts, self.span = self._salvage_rows() if self.damage.salvage else self._count()
        definitions = self._definitions()
        self.topics: list[StoredTopic] = []
        self._names: dict[int, str] = {}
        for number, *texts in self._select(
            "topics", f"SELECT id, name, type, serialization_format, {qos} FROM topics"
        ):
            name, kind, encoding, profiles = texts
            if not all(isinstance(text, str) and len(text) < MAX_NAME for text in (name, kind, encoding)):
                self.damage.note("a topic's name or type is none")
                continue
            self._names[number] = name
            count, definition = counts.pop(number, 0), definitions.get(kind, "")
            self.topics.append(StoredTopic(name, kind, definition, count, encoding, **offered(profiles)))
        if counts:
            self.damage.note("it has messages of a topic that is not told")

    def _definitions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        left = MAX_DEFINITIONS
        # Not in older bags.
        if self._connection.execute("PRAGMA table_info(message_definitions)").fetchall():
            for kind, text in self._select(
                "definitions",
                "SELECT topic_type, encoded_message_definition FROM message_definitions "
                f"WHERE encoding = 'ros2msg' AND length(encoded_message_definition) <= {MAX_DEFINITION}",
            ):
                if isinstance(text, str) and len(text) <= left:
                    found.setdefault(kind, text)
                    left -= len(text)
        return found

    def _count(self) -> tuple[Counter[int], tuple[int, int] | None]:
        """Messages of each topic, and the times of the first and last."""
        found = self._connection.execute(
            # Without the inner one SQLite carries the data to where it groups.
            "SELECT topic_id, count(*), min(timestamp), max(timestamp), is_message FROM (SELECT topic_id, "
            f"timestamp, {IS_MESSAGE} AS is_message FROM messages LIMIT -1) GROUP BY topic_id, is_message"
        ).fetchall()
        if not all(row[4] for row in found):
            self.damage.note("it has rows that are no messages")
        span = (min(row[2] for row in found), max(row[3] for row in found)) if found else None
        return Counter({row[0]: row[1] for row in found}), span

    def _salvage_rows(self) -> tuple[Counter[int], tuple[int, int] | None]:
        """The same, of all rows that can be reached from one end or the other."""
        listed = array("q")
        for order in ("ASC", "DESC"):
            for row in self._select(
                "messages",
                f"SELECT rowid, topic_id, timestamp FROM messages NOT INDEXED WHERE {IS_MESSAGE} "
                f"ORDER BY rowid {order}",
            ):
                listed.extend(row)
            if not self.damage.problems:
                break
        rows = np.frombuffer(listed, np.int64).reshape(-1, 3)
        rows = rows[np.unique(rows[:, 0], return_index=True)[1]]
        self._rows = rows[np.argsort(rows[:, 2], kind="stable")]
        span = (int(self._rows[0, 2]), int(self._rows[-1, 2])) if len(rows) else None
        return Counter(rows[:, 1].tolist()), span

    # Reading ------------------------------------------------------------------------------------

    def _in_order(self, wanted: dict[int, str], start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
        before, came = (start, -math.inf), 0
        marks = ",".join("?" * len(wanted))
        for number, topic, stamp, in_row, raw in self._select(
            "messages",
            # Where there is no index of times, SQLite sorts: numbers of rows, not the data, of which it would
            # keep half the file in memory.
            "SELECT number, topic, stamp, timestamp, data FROM "
            "(SELECT rowid AS number, topic_id AS topic, timestamp AS stamp "
            f"FROM messages WHERE topic_id IN ({marks}) AND timestamp >= ? AND timestamp < ? "
            f"AND {IS_MESSAGE} ORDER BY timestamp, rowid LIMIT -1) "
            "CROSS JOIN messages ON messages.rowid = number",
            (*wanted, start, stop),
        ):
            # An entry that comes twice hides another.
            if (stamp, number) <= before or stamp != in_row:
                self.damage.note("its index of times is wrong")
            before, came = (stamp, number), came + 1
            yield stamp, wanted[topic], raw
        whole = self.span and start <= self.span[0] and self.span[1] < stop
        if whole and came < sum(topic.count for topic in self.topics if topic.name in wanted.values()):
            self.damage.note("its index of times is not complete")

    def _one_by_one(self, wanted: dict[int, str], start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
        for row, topic, stamp in self._rows:
            if topic in wanted and start <= stamp < stop:
                for (raw,) in self._select(
                    "messages", "SELECT data FROM messages WHERE rowid = ?", (int(row),)
                ):
                    yield int(stamp), wanted[topic], raw

    def _select(self, what: str, query: str, values: tuple[int, ...] = ()) -> Iterator[tuple]:
        """Rows, as far as they can be read."""
        try:
            yield from self._connection.execute(query, values)
            return
        except BROKEN as error:
            reason = plain(error)
        self.damage.note(f"some of its {what} cannot be read ({reason})")


def _ends_with(path: Path, end: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(end)))
        return file.read(len(end)) == end
