# SPDX-License-Identifier: Apache-2.0
"""Any rosbag2: a folder of one or more files, with metadata.yaml or without, or a bare file."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

import yaml
import zstandard
from rosbags.serde import SerdeError
from rosbags.typesys.store import Typestore

from smolvla_mem_ros.bags.mcap_file import BROKEN, McapFile, decompress
from smolvla_mem_ros.bags.sqlite_file import SqliteFile
from smolvla_mem_ros.bags.storage import (
    BagError,
    Damage,
    Room,
    Storage,
    StoredTopic,
    plain,
    plain_yaml,
)
from smolvla_mem_ros.bags.types import UnknownType, typestore_of

METADATA = "metadata.yaml"
MAX_METADATA = 2**20  # bytes; that of a thousand files has a fifth of it
MAX_TOPICS = 10_000
MAX_NAME = 256  # ROS allows no more
# Bytes of what is decoded into objects, which take a hundred times as many. Pictures are not.
MAX_DECODED = 8 * 2**20
PICTURES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
STORAGES: dict[str, type[Storage]] = {".mcap": McapFile, ".db3": SqliteFile}
FOREVER = 2**63 - 1


@dataclass(frozen=True)
class Message:
    """A message as it was recorded.

    Args:
        stamp: nanoseconds, when it was received.
        raw: serialised.
    """

    topic: str
    stamp: int
    raw: bytes


class Bag:
    """A bag that is open for reading; closed by :meth:`close` or at the end of a ``with`` block.

    Args:
        path: a folder, or one file that ends in .mcap or .db3 (or that with .zstd).
        salvage: read what can be read of a damaged bag, and list the rest in ``problems``.

    Attributes:
        topics: name -> StoredTopic, of all files together.
        problems: what was left out, in words.

    Raises:
        BagError: it cannot be read.
    """

    def __init__(self, path: Path | str, salvage: bool = False) -> None:
        self.path = Path(path).expanduser()
        self._salvage = salvage
        self._damage = Damage(self.path, salvage)
        self._room = Room()
        self._files: list[Storage] = []
        self._stack = ExitStack()
        try:
            files, self._compression = self._find_files()
            for path in files:
                self._open(path)
            if not self._files:
                raise BagError(f"no file of {self.path} can be read: {'; '.join(self.problems)}")
            self.topics = self._merge_topics()
        except BaseException:
            self._stack.close()
            raise
        self._stores: dict[str, Typestore | UnknownType] = {}  # of topics

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def problems(self) -> list[str]:
        return [*self._damage.problems, *(p for file in self._files for p in file.damage.problems)]

    @property
    def span(self) -> tuple[int, int] | None:
        """Nanoseconds of the first and last message; None when there is none."""
        spans = [file.span for file in self._files if file.span]
        return (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None

    @property
    def count(self) -> int:
        """Messages."""
        return sum(topic.count for topic in self.topics.values())

    def messages(
        self, topics: Collection[str] | None = None, start: int = -FOREVER, stop: int = FOREVER
    ) -> Iterator[Message]:
        """Messages with start <= stamp < stop (ns), in order of time, of ``topics`` or of all.

        What is in memory does not grow with the length of the bag.

        Raises:
            BagError: damage, without ``salvage``.
        """
        wanted = self.topics.keys() if topics is None else topics
        for stamp, topic, raw in self._in_order(wanted, start, stop):
            # Without metadata it is their first bytes that tell; no message in CDR begins so.
            if self._compression == "message" or raw.startswith(zstandard.FRAME_HEADER):
                raw = self._inflate(topic, raw)
                if raw is None:
                    continue
            yield Message(topic, stamp, raw)

    def _in_order(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
        """From all files, in whatever order they are listed; those that overlap in time side by side."""
        waiting = deque(enumerate(sorted((f for f in self._files if f.span), key=lambda f: f.span[0])))
        heap: list[tuple[int, int, str, bytes, Iterator]] = []
        while waiting or heap:
            # A file waits until its time has come: of a long bag one is read at a time.
            if waiting and (not heap or waiting[0][1].span[0] <= heap[0][0]):
                number, file = waiting.popleft()
                source = file.messages(topics, start, stop)
            else:
                stamp, number, topic, raw, source = heappop(heap)
                yield stamp, topic, raw
            if found := next(source, None):
                heappush(heap, (found[0], number, *found[1:], source))

    def decode(self, message: Message) -> Any:
        """The message with the fields that its type has.

        Raises:
            BagError: its type is not known here, or the bytes are no such message.
        """
        topic = self.topics[message.topic]
        if topic.encoding != "cdr":
            raise BagError(f"{topic.name} is encoded as {plain(topic.encoding)!r}; only cdr is known here")
        if len(message.raw) > MAX_DECODED and topic.kind not in PICTURES:
            raise BagError(f"a message of {topic.name} has {len(message.raw)} bytes, which no robot's has")
        store = self._store_of(topic)
        try:
            return _deserialize(store, message.raw, topic.kind)
        except SerdeError as error:
            raise BagError(f"a message of {topic.name} is no {topic.kind}: {plain(error)}") from error

    def _store_of(self, topic: StoredTopic) -> Typestore:
        if topic.name not in self._stores:
            try:
                self._stores[topic.name] = typestore_of(topic.kind, topic.definition)
            except UnknownType as error:
                self._stores[topic.name] = error
        store = self._stores[topic.name]
        if isinstance(store, UnknownType):
            hint = "" if topic.definition else "; and the bag holds no definition"
            raise BagError(f"{topic.name}: {store}{hint}") from store
        return store

    # Opening ------------------------------------------------------------------------------------

    def _find_files(self) -> tuple[list[Path], str]:
        """The files in their order, and the compression: "file", "message" or ""."""
        if not self.path.exists():
            raise BagError(f"{self.path} is not there")
        if self.path.is_file():
            return [self.path], ""
        if not self.path.is_dir():
            raise BagError(f"{self.path} is neither a folder nor a file")
        metadata = self.path / METADATA
        if metadata.is_file():
            try:
                return self._read_metadata(metadata)
            except BagError as error:
                if not self._salvage:
                    raise
                self._damage.keep(str(error))
        found = [p for p in self.path.iterdir() if self._suffix(p) in STORAGES and p.is_file()]
        if not found:
            raise BagError(f"{self.path} holds no .mcap or .db3 file; name a rosbag2 folder or such a file")
        return sorted(found, key=_natural), ""

    def _read_metadata(self, path: Path) -> tuple[list[Path], str]:
        try:
            if path.stat().st_size > MAX_METADATA:
                raise ValueError(f"it is {path.stat().st_size} bytes long")
            information = plain_yaml(path.read_text())["rosbag2_bagfile_information"]
            names = information["relative_file_paths"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("relative_file_paths is no list of names")
            # A name only: older bags put the folder before it, and a hostile one might point elsewhere.
            files = [self.path / PurePath(name).name for name in names]
            if len(set(files)) < len(files):
                raise ValueError("relative_file_paths names a file twice")
            missing = [file.name for file in files if not file.is_file()]
            mode = str(information.get("compression_mode", "")).lower()
            form = information.get("compression_format")
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, KeyError, TypeError,
                AttributeError) as error:  # fmt: skip
            raise BagError(f"{path} is damaged: {plain(error)}; --salvage goes without it") from error
        mode = "" if mode in ("none", "null", "~") else mode
        if mode not in ("", "file", "message", "storage"):
            raise BagError(f"{path} names the compression mode {mode!r}; file, message and none are known")
        if mode in ("file", "message") and form != "zstd":
            raise BagError(f"{self.path} is compressed with {form!r}; only zstd is known here")
        if missing or not files:
            missed = f"lacks {', '.join(missing[:5])}" if missing else "names no file"
            raise BagError(f"{self.path} {missed}; copy the whole folder, or --salvage reads what is there")
        return files, mode if mode == "message" else ""

    def _open(self, path: Path) -> None:
        damage = Damage(path, self._salvage)
        try:
            storage = STORAGES.get(self._suffix(path))
            if storage is None:
                raise BagError(f"{path} ends in neither .mcap nor .db3; name a rosbag2 folder or such a file")
            file = storage(self._unpack(path, damage) if path.suffix == ".zstd" else path, damage, self._room)
        except BagError as error:
            if not self._salvage:
                raise
            self._damage.keep(str(error))
            return
        self._stack.callback(file.close)
        self._files.append(file)

    def _unpack(self, path: Path, damage: Damage) -> Path:
        """A file that was compressed as a whole, in a temporary folder."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="smolvla_mem_ros_")))
        left = shutil.disk_usage(folder).free // 2
        whole = folder / path.stem
        try:
            with path.open("rb") as packed, whole.open("wb") as out:
                reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
                while part := reader.read(2**20):
                    left -= len(part)
                    if left < 0:
                        raise BagError(f"{path} does not fit on the disk when it is unpacked")
                    out.write(part)
            return whole
        except (zstandard.ZstdError, OSError) as error:
            reason = plain(error)
        damage.note(reason)
        return whole

    def _inflate(self, topic: str, raw: bytes) -> bytes | None:
        try:
            return decompress(raw, "zstd", None)
        except BROKEN as error:
            reason = plain(error)
        self._damage.note(f"a message of {topic} cannot be unpacked ({reason})")
        return None

    def _merge_topics(self) -> dict[str, StoredTopic]:
        merged: dict[str, StoredTopic] = {}
        for topic in (topic for file in self._files for topic in file.topics):
            before = merged.get(topic.name)
            if not all(text.isprintable() and len(text) <= MAX_NAME for text in (topic.name, topic.kind)):
                self._damage.note(f"{plain(topic.name)} of type {plain(topic.kind)} is no topic")
            elif before and before.kind != topic.kind:
                self._damage.note(f"{topic.name} is {before.kind} in one place, {topic.kind} in another")
            elif not before and len(merged) == MAX_TOPICS:
                raise BagError(f"{self.path} has more than {MAX_TOPICS} topics")
            else:
                count = topic.count + (before.count if before else 0)
                merged[topic.name] = replace(before or topic, count=count)
        return merged

    @staticmethod
    def _suffix(path: Path) -> str:
        return PurePath(path.stem).suffix if path.suffix == ".zstd" else path.suffix


def _deserialize(store: Typestore, raw: bytes, kind: str) -> Any:
    """As ``store.deserialize_cdr``, but with bytes after the end: rmw_serialize of Fast DDS counts four too
    many for each empty list of float64, and so programs that write bags leave some.

    Raises:
        SerdeError: the bytes are no such message.
    """
    try:
        return store.deserialize_cdr(raw, kind)
    except SerdeError as error:
        if "size mismatch" not in str(error):
            raise
        definition = store.get_msgdef(kind)
        read = definition.deserialize_cdr_le if raw[1] else definition.deserialize_cdr_be
        message, end = read(raw[4:], 0, definition.cls, store)
        if len(raw) > 4 + 2 * end:
            raise
        return message


def _natural(path: Path) -> list:
    """For sorting bag_2 before bag_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]
