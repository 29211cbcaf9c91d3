# SPDX-License-Identifier: Apache-2.0
"""Any rosbag2: a folder of one or more files, with metadata.yaml or without, or a bare file."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

import yaml
import zstandard
from rosbags.typesys import TypesysError, get_types_from_msg

from smolvla_mem_ros.bags.mcap_file import BROKEN, McapFile, decompress
from smolvla_mem_ros.bags.sqlite_file import SqliteFile
from smolvla_mem_ros.bags.storage import BagError, Storage, StoredTopic
from smolvla_mem_ros.bags.types import UnknownType, ensure_type, new_typestore

METADATA = "metadata.yaml"
MAX_METADATA = 16 * 2**20  # bytes
STORAGES: dict[str, type] = {".mcap": McapFile, ".db3": SqliteFile}
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
        self._own_problems: list[str] = []
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
        self._store = new_typestore()
        self._known: set[str] = set()

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
        return [*self._own_problems, *(problem for file in self._files for problem in file.problems)]

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
        for file in self._files:
            for stamp, topic, raw in file.messages(wanted, start, stop):
                if self._compression == "message":
                    raw = self._inflate(topic, raw)
                    if raw is None:
                        continue
                yield Message(topic, stamp, raw)

    def decode(self, message: Message) -> Any:
        """The message with the fields that its type has.

        Raises:
            BagError: its type is not known here, or the bytes are no such message.
        """
        topic = self.topics[message.topic]
        if topic.encoding != "cdr":
            raise BagError(f"{topic.name} is encoded as {topic.encoding!r}; only cdr is known here")
        self._ensure_type(topic)
        try:
            return self._store.deserialize_cdr(message.raw, topic.kind)
        except Exception as error:  # whatever a parser raises on bytes that are something else
            raise BagError(f"a message of {topic.name} is no {topic.kind}: {error!r}") from error

    def _ensure_type(self, topic: StoredTopic) -> None:
        if topic.kind in self._known:
            return
        # What ROS ships is the same in every bag; what is embedded counts for all others.
        if topic.kind not in self._store.types and topic.definition:
            try:
                types = get_types_from_msg(topic.definition, topic.kind)
                self._store.register({k: v for k, v in types.items() if k not in self._store.types})
            except (TypesysError, ValueError, RecursionError) as error:
                raise BagError(f"the definition of {topic.kind} in the bag is damaged: {error}") from error
        try:
            ensure_type(self._store, topic.kind)
        except UnknownType as error:
            raise BagError(f"{topic.name}: {error}; and the bag holds no definition") from error
        self._known.add(topic.kind)

    # Opening ------------------------------------------------------------------------------------

    def _find_files(self) -> tuple[list[Path], str]:
        """The files in their order, and the compression: "file", "message" or ""."""
        if not self.path.exists():
            raise BagError(f"{self.path} is not there")
        if not self.path.is_dir():
            return [self.path], ""
        metadata = self.path / METADATA
        if metadata.is_file():
            try:
                return self._read_metadata(metadata)
            except BagError as error:
                if not self._salvage:
                    raise
                self._own_problems.append(str(error))
        found = [p for p in self.path.iterdir() if self._suffix(p) in STORAGES and p.is_file()]
        if not found:
            raise BagError(f"{self.path} holds no .mcap or .db3 file; name a rosbag2 folder or such a file")
        return sorted(found, key=_natural), ""

    def _read_metadata(self, path: Path) -> tuple[list[Path], str]:
        try:
            if path.stat().st_size > MAX_METADATA:
                raise ValueError(f"it is {path.stat().st_size} bytes long")
            information = yaml.load(path.read_text(), _Loader)["rosbag2_bagfile_information"]
            # A name only: older bags put the folder before it, and a hostile one might point elsewhere.
            names = [PurePath(str(name)).name for name in information["relative_file_paths"]]
            mode = str(information.get("compression_mode") or "").lower()
            form = information.get("compression_format")
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError,
                RecursionError) as error:  # fmt: skip
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BagError(f"{path} is damaged: {reason}; --salvage goes without it") from error
        mode = "" if mode == "none" else mode
        if mode not in ("", "file", "message", "storage"):
            raise BagError(f"{path} names the compression mode {mode!r}; file, message and none are known")
        if mode in ("file", "message") and form != "zstd":
            raise BagError(f"{self.path} is compressed with {form!r}; only zstd is known here")
        files = [self.path / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            missed = f"lacks {', '.join(missing[:5])}" if missing else "names no file"
            raise BagError(f"{self.path} {missed}; copy the whole folder, or --salvage reads what is there")
        return files, mode if mode == "message" else ""

    def _open(self, path: Path) -> None:
        try:
            if path.suffix == ".zstd":
                path = self._unpack(path)
            storage = STORAGES.get(path.suffix)
            if storage is None:
                raise BagError(f"{path} ends in neither .mcap nor .db3; name a rosbag2 folder or such a file")
            file = storage(path, self._salvage)
        except BagError as error:
            if not self._salvage:
                raise
            self._own_problems.append(str(error))
            return
        self._stack.callback(file.close)
        self._files.append(file)

    def _unpack(self, path: Path) -> Path:
        """A file that was compressed as a whole, in a temporary folder."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="smolvla_mem_ros_")))
        left = shutil.disk_usage(folder).free // 2
        whole = folder / path.stem
        try:
            with path.open("rb") as packed, whole.open("wb") as out:
                reader = zstandard.ZstdDecompressor().stream_reader(packed)
                while part := reader.read(2**20):
                    left -= len(part)
                    if left < 0:
                        raise BagError(f"{path} does not fit on the disk when it is unpacked")
                    out.write(part)
        except (zstandard.ZstdError, OSError) as error:
            if not self._salvage:
                raise BagError(f"{path} is damaged: {error}; --salvage reads what there is") from error
            self._own_problems.append(f"{path} is damaged: {error}")
        return whole

    def _inflate(self, topic: str, raw: bytes) -> bytes | None:
        try:
            return decompress(raw, "zstd", None)
        except BROKEN as error:
            if not self._salvage:
                raise BagError(f"a message of {topic} cannot be unpacked: {error}") from error
            self._own_problems.append(f"messages of {topic} cannot be unpacked")
            return None

    def _merge_topics(self) -> dict[str, StoredTopic]:
        merged: dict[str, StoredTopic] = {}
        for file in self._files:
            for topic in file.topics:
                before = merged.get(topic.name)
                if before and before.kind != topic.kind:
                    raise BagError(
                        f"{topic.name} of {self.path} is {before.kind} in one file, {topic.kind} in another"
                    )
                count = topic.count + (before.count if before else 0)
                merged[topic.name] = replace(before or topic, count=count)
        return merged

    @staticmethod
    def _suffix(path: Path) -> str:
        return PurePath(path.stem).suffix if path.suffix == ".zstd" else path.suffix


class _Loader(yaml.SafeLoader):
    """Metadata needs no aliases, and with them a few lines can mean billions."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


def _natural(path: Path) -> list:
    """For sorting bag_2 before bag_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
