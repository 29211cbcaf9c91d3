# SPDX-License-Identifier: Apache-2.0
"""One SQLite file, as rosbag2's sqlite3 storage writes it, through the rosbags library."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

import apsw
from rosbags.interfaces import MessageDefinitionFormat
from rosbags.rosbag2 import Reader, ReaderError

from smolvla_mem_ros.bags.storage import MAX_BYTES, BagError, StoredTopic, offered

# What rosbags and SQLite raise on a file that is not what it says.
BROKEN = (
    ReaderError,
    apsw.Error,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)


class SqliteFile:
    """See the module; the interface is that of storage.Storage.

    Raises:
        BagError: it is no such file, or damaged and ``salvage`` is not given.
    """

    def __init__(self, path: Path, salvage: bool = False) -> None:
        self.path = path
        self.problems: list[str] = []
        self._salvage = salvage
        if not path.is_file() or not path.stat().st_size:
            raise BagError(f"{path} is {'empty' if path.is_file() else 'not there'}")
        if path.with_name(path.name + "-journal").exists():
            self._problem("it was never closed (a recorder that was killed, or is still at work)")
            self._roll_back()
        self._reader = Reader(path)
        try:
            self._reader.open()
        except BROKEN as error:
            raise BagError(f"{path} cannot be read: {error}") from error

    def close(self) -> None:
        self._reader.close()

    @property
    def topics(self) -> list[StoredTopic]:
        return [
            StoredTopic(
                c.topic,
                c.msgtype,
                c.msgdef.data if c.msgdef.format is MessageDefinitionFormat.MSG else "",
                c.msgcount,
                c.ext.serialization_format,
                **offered(c.ext.offered_qos_profiles),
            )
            for c in self._reader.connections
        ]

    @property
    def span(self) -> tuple[int, int] | None:
        """Nanoseconds of the first and last message; None when there is none."""
        if not self._reader.message_count:
            return None
        return self._reader.start_time, self._reader.end_time - 1

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
        """(nanoseconds, topic, bytes) of ``topics`` with start <= time < stop, in order of time."""
        wanted = [c for c in self._reader.connections if c.topic in topics]
        if not wanted:
            return
        limit = 2**63 - 1
        try:
            for connection, stamp, raw in self._reader.messages(wanted, max(start, -limit), min(stop, limit)):
                if not isinstance(raw, bytes) or len(raw) > MAX_BYTES:
                    self._problem(f"a message of {connection.topic} is no message")
                    continue
                yield stamp, connection.topic, raw
        except BROKEN as error:
            self._problem(f"it ends in the middle ({error})")

    def _roll_back(self) -> None:
        """Take back what was half written: SQLite does so when a file is opened to write."""
        try:
            connection = sqlite3.connect(self.path)
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection.close()
        except sqlite3.Error as error:
            raise BagError(f"{self.path} cannot be read: {error}") from error

    def _problem(self, problem: str) -> None:
        if not self._salvage:
            raise BagError(f"{self.path} is damaged: {problem}; --salvage reads what there is")
        if problem not in self.problems:
            self.problems.append(problem)
