# SPDX-License-Identifier: Apache-2.0
"""One MCAP file: through its index where it has one, else from beginning to end.

The records are parsed by the mcap library; here stands what it leaves open: files that were never closed,
chunks that are damaged, and sizes that are a lie.
"""

from __future__ import annotations

import heapq
import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zlib import crc32

import lz4.frame
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.reader import SeekingReader
from mcap.records import Channel, Chunk, Message, Schema
from mcap.stream_reader import breakup_chunk
from rosbags.rosbag2 import ReaderError
from rosbags.rosbag2.metadata import parse_qos

from smolvla_mem_ros.bags.storage import MAX_BYTES, BagError, StoredTopic, offered

MAGIC = b"\x89MCAP0\r\n"
HEADER = struct.Struct("<BQ")  # of a record: opcode, length
PIECE = 2**20  # bytes of messages outside chunks that are read in one go

# What the mcap library and the decompressors raise on bytes that are not what they say.
BROKEN = (
    McapError, struct.error, ValueError, KeyError, OverflowError, MemoryError, RuntimeError,
    zstandard.ZstdError,
)  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """Messages that lie together: a chunk, or records outside of any.

    Args:
        offset, size: bytes in the file, the header of a chunk's record left out.
        start, end: nanoseconds of the first and last message.
    """

    offset: int
    size: int
    start: int
    end: int
    is_chunk: bool


class McapFile:
    """See the module; the interface is that of storage.Storage.

    Raises:
        BagError: it is no MCAP file, or damaged and ``salvage`` is not given.
    """

    def __init__(self, path: Path, salvage: bool = False) -> None:
        self.path = path
        self.problems: list[str] = []
        self._salvage = salvage
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._counts: dict[int, int] = {}
        self._pieces: list[Piece] = []
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise BagError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    @property
    def topics(self) -> list[StoredTopic]:
        found = []
        for number, channel in self._channels.items():
            schema = self._schemas.get(channel.schema_id)
            definition = schema.data.decode(errors="replace") if schema else ""
            is_msg = bool(schema) and schema.encoding == "ros2msg"
            found.append(
                StoredTopic(
                    channel.topic,
                    schema.name if schema else "",
                    definition if is_msg else "",
                    self._counts.get(number, 0),
                    channel.message_encoding,
                    **_offered(channel),
                )
            )
        return found

    @property
    def span(self) -> tuple[int, int] | None:
        """Nanoseconds of the first and last message; None when there is none."""
        if not any(self._counts.values()):
            return None
        return min(p.start for p in self._pieces), max(p.end for p in self._pieces)

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
        """(nanoseconds, topic, bytes) of ``topics`` with start <= time < stop, in order of time.

        As much is in memory as overlaps in time.
        """
        wanted = {number: c.topic for number, c in self._channels.items() if c.topic in topics}
        waiting = sorted(
            (p for p in self._pieces if p.end >= start and p.start < stop), key=lambda p: (p.start, p.offset)
        )
        heap: list[tuple[int, int, str, bytes]] = []
        count = 0
        for i, piece in enumerate(waiting):
            for message in self._load(piece):
                if message.channel_id in wanted and start <= message.log_time < stop:
                    # The count keeps messages of one instant in the order in which they were written.
                    entry = (message.log_time, count, wanted[message.channel_id], message.data)
                    heapq.heappush(heap, entry)
                    count += 1
            until = waiting[i + 1].start if i + 1 < len(waiting) else stop
            while heap and heap[0][0] < until:
                stamp, _, topic, raw = heapq.heappop(heap)
                yield stamp, topic, raw
        while heap:
            stamp, _, topic, raw = heapq.heappop(heap)
            yield stamp, topic, raw

    # Opening ------------------------------------------------------------------------------------

    def _open(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if self._file.read(len(MAGIC)) != MAGIC:
            raise BagError(f"{self.path} is {'empty' if not size else 'no MCAP file'}")
        if self._read_index(size):
            return
        self._file.seek(-min(size, len(MAGIC)), os.SEEK_END)
        if self._file.read() != MAGIC or size < 2 * len(MAGIC):
            self._problem("it was never closed (a recorder that was killed, or an incomplete copy)")
        self._scan(size)

    def _read_index(self, size: int) -> bool:
        try:
            summary = SeekingReader(_Limited(self._file), record_size_limit=MAX_BYTES).get_summary()
        except BROKEN:
            return False
        if summary is None or summary.statistics is None or not summary.channels or not summary.chunk_indexes:
            return False
        self._schemas, self._channels = summary.schemas, summary.channels
        self._counts = summary.statistics.channel_message_counts
        for index in summary.chunk_indexes:
            offset = index.chunk_start_offset + HEADER.size
            length = index.chunk_length - HEADER.size
            if length < 0 or offset + length > size:
                self._problem("its index points outside the file")
                continue
            if index.message_index_length or index.message_end_time:
                self._pieces.append(
                    Piece(offset, length, index.message_start_time, index.message_end_time, True)
                )
        return True

    def _scan(self, size: int) -> None:
        """Find all pieces without an index."""
        self._schemas, self._channels, self._counts, self._pieces = {}, {}, {}, []
        position, loose = len(MAGIC), 0  # where messages outside chunks began, 0: nowhere
        times: list[int] = []

        def end_of_loose(end: int) -> None:
            nonlocal loose, times
            if loose and times:
                self._pieces.append(Piece(loose, end - loose, min(times), max(times), False))
            loose, times = 0, []

        while position + HEADER.size <= size:
            self._file.seek(position)
            opcode, length = HEADER.unpack(self._file.read(HEADER.size))
            after = position + HEADER.size + length
            if opcode == Opcode.DATA_END or (opcode == 0x89 and size - position <= len(MAGIC)):
                break
            if not 0 < opcode <= Opcode.DATA_END or after > size:
                end_of_loose(position)
                self._problem(f"after {position} of {size} bytes there is nothing that can be read")
                return
            if opcode == Opcode.CHUNK:
                end_of_loose(position)
                self._scan_chunk(position + HEADER.size, length)
            elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE) and length <= MAX_BYTES:
                loose = loose or position
                try:
                    for record in _records(HEADER.pack(opcode, length) + self._file.read(length)):
                        self._note(record, times)
                except BROKEN as error:
                    self._problem(f"the record at byte {position} is damaged ({error!r})")
                if after - loose > PIECE:
                    end_of_loose(after)
            position = after
        end_of_loose(position)

    def _scan_chunk(self, offset: int, length: int) -> None:
        times: list[int] = []
        try:
            for record in _records(self._chunk_bytes(offset, length)):
                self._note(record, times)
        except BROKEN as error:
            self._problem(f"the chunk at byte {offset} is damaged ({error!r})")
        if times:
            self._pieces.append(Piece(offset, length, min(times), max(times), True))

    def _note(self, record: Schema | Channel | Message, times: list[int]) -> None:
        if isinstance(record, Schema):
            self._schemas[record.id] = record
        elif isinstance(record, Channel):
            self._channels[record.id] = record
        else:
            self._counts[record.channel_id] = self._counts.get(record.channel_id, 0) + 1
            times.append(record.log_time)

    # Reading ------------------------------------------------------------------------------------

    def _load(self, piece: Piece) -> list[Message]:
        try:
            if piece.is_chunk:
                raw = self._chunk_bytes(piece.offset, piece.size)
            else:
                self._file.seek(piece.offset)
                raw = self._file.read(piece.size)
            return [record for record in _records(raw) if isinstance(record, Message)]
        except BROKEN as error:
            self._problem(f"the chunk at byte {piece.offset} is damaged ({error!r})")
            return []

    def _chunk_bytes(self, offset: int, length: int) -> bytes:
        if length > MAX_BYTES:
            raise ValueError(f"it claims {length} bytes")
        self._file.seek(offset)
        chunk = Chunk.read(ReadDataStream(BytesIO(self._file.read(length))))
        raw = decompress(chunk.data, chunk.compression, chunk.uncompressed_size)
        if chunk.uncompressed_crc not in (0, crc32(raw)):
            raise ValueError("its checksum is wrong")
        return raw

    def _problem(self, problem: str) -> None:
        if not self._salvage:
            raise BagError(f"{self.path} is damaged: {problem}; --salvage reads what there is")
        if problem not in self.problems:
            self.problems.append(problem)


class _Limited:
    """A file from which nobody reads more at a time than a record may have."""

    def __init__(self, file) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_BYTES:
            raise ValueError(f"a record claims {size} bytes")
        return self._file.read(size)


def decompress(data: bytes, how: str, size: int | None) -> bytes:
    """``data`` as it was: ``size`` bytes and no more, or if None whatever it is up to MAX_BYTES.

    Raises:
        one of BROKEN: it has another size, or is damaged.
    """
    most = MAX_BYTES if size is None else size
    if most > MAX_BYTES:
        raise ValueError(f"it claims {size} bytes")
    if how == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(data) as stream:
            raw = stream.read(most + 1)
    elif how == "lz4":
        raw = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=most + 1)
    elif how == "":
        raw = data
    else:
        raise ValueError(f"it is compressed with {how!r}, which is not known here")
    if len(raw) > most or (size is not None and len(raw) < size):
        raise ValueError(f"it has {'more' if len(raw) > most else 'less'} than the {most} bytes it should")
    return raw


def _offered(channel: Channel) -> dict[str, bool]:
    try:
        return offered(parse_qos(channel.metadata.get("offered_qos_profiles", "")))
    except (ReaderError, TypeError, AttributeError):
        return offered([])


def _records(raw: bytes) -> list[Schema | Channel | Message]:
    position = 0
    while position < len(raw):
        _, length = HEADER.unpack_from(raw, position)
        position += HEADER.size + length
    if position != len(raw):
        raise ValueError("a record reaches beyond its end")
    return breakup_chunk(Chunk("", raw, 0, 0, 0, len(raw)))
