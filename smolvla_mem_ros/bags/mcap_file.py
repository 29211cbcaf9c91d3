# SPDX-License-Identifier: Apache-2.0
"""One MCAP file: through its index where it has one, else from beginning to end.

Contents of records are parsed by the mcap library; here stands what it leaves open: files that were never
closed, chunks that are damaged, and sizes that are a lie.
"""

from __future__ import annotations

import heapq
import os
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import lz4.frame
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, ChunkIndex, Schema, Statistics

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

MAGIC = b"\x89MCAP0\r\n"
RECORD = struct.Struct("<BQ")  # opcode, length
FOOTER = struct.Struct("<BQQQI8s")  # opcode, length, where the index and its index begin, checksum, magic
CHUNK = struct.Struct("<QQQII")  # times, size and checksum of what is in it, length of the compression's name
LENGTH = struct.Struct("<Q")
MESSAGE = struct.Struct("<HIQQ")  # channel, number, time of reception and of publication
PIECE = 2**20  # bytes of messages outside chunks that are read in one go
MAX_INDEX = 64 * 2**20  # bytes; those of a terabyte have so many
ENTRY = 250  # bytes that Python takes for a message that waits
TOO_MUCH = "more of its messages overlap in time than fit into memory"

# What the mcap library and the decompressors raise on bytes that are not what they say.
BROKEN = (McapError, struct.error, ValueError, RuntimeError, zstandard.ZstdError, OSError)


@dataclass(frozen=True, slots=True)
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

    With ``salvage`` nothing that the index says is believed but where to look for chunks.

    Raises:
        BagError: it is no MCAP file, or damaged and it is not to be salvaged.
    """

    def __init__(self, path: Path, damage: Damage, room: Room) -> None:
        self.damage, self._room = damage, room
        self._forget()
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise BagError(f"{damage.path} cannot be opened: {error.strerror}") from error
        try:
            self._open()
        except OSError as error:
            self._file.close()
            raise BagError(f"{damage.path} cannot be read: {error.strerror}") from error
        except BaseException:
            self._file.close()
            raise
        pieces = self._pieces
        self.span = (min(p.start for p in pieces), max(p.end for p in pieces)) if pieces else None

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
                    self._counts[number],
                    channel.message_encoding,
                    **offered(channel.metadata.get("offered_qos_profiles", "")),
                )
            )
        return found

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
        """(nanoseconds, topic, bytes) of ``topics`` with start <= time < stop, in order of time.

        As much is in memory as overlaps in time.
        """
        wanted = {number: c.topic for number, c in self._channels.items() if c.topic in topics}
        waiting = sorted(
            (p for p in self._pieces if p.end >= start and p.start < stop), key=lambda p: (p.start, p.offset)
        )
        # The count keeps messages of one instant in the order in which they were written.
        heap: list[tuple[int, int, str, bytes | memoryview]] = []
        count, reached, loaded = 0, start, b""
        try:
            for i, piece in enumerate(waiting):
                until = waiting[i + 1].start if i + 1 < len(waiting) else stop
                loaded = self._load(piece)
                if not self._room.take(len(loaded)):
                    loaded = b""
                    self.damage.note(TOO_MUCH)
                for time, channel, raw in self._messages_in(piece, loaded):
                    if channel not in self._channels:
                        self.damage.note("it has messages of a topic that is not told")
                    if channel not in wanted or not start <= time < stop:
                        continue
                    if time < reached:
                        self.damage.note("its index does not tell where messages begin")
                        continue
                    # What waits for another piece must not keep all of this one.
                    kept = raw if time < until else bytes(raw)
                    if not self._room.take(_weight(kept)):
                        self.damage.note(TOO_MUCH)
                        break
                    heapq.heappush(heap, (time, count, wanted[channel], kept))
                    count += 1
                while heap and heap[0][0] < until:
                    reached, _, topic, raw = heapq.heappop(heap)
                    self._room.give(_weight(raw))
                    yield reached, topic, bytes(raw)
                self._room.give(len(loaded))
                loaded = b""
        finally:
            self._room.give(len(loaded) + sum(_weight(raw) for *_, raw in heap))

    # Opening ------------------------------------------------------------------------------------

    def _open(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if self._file.read(len(MAGIC)) != MAGIC:
            raise BagError(f"{self.damage.path} is {'no MCAP file' if size else 'empty'}")
        indexed = self._read_index(size)
        if indexed and not self.damage.salvage:
            self._pieces = indexed
            return
        if indexed:
            self._counts.clear()
        else:
            self._forget()
        if size < 2 * len(MAGIC) or self._read(size - len(MAGIC), len(MAGIC)) != MAGIC:
            self.damage.note("it was never closed (a recorder that was killed, or an incomplete copy)")
        self._scan(size)
        found = {piece.offset for piece in self._pieces}
        for piece in indexed:
            if piece.offset not in found:  # beyond the damage
                self._scan_chunk(piece.offset, piece.size)

    def _forget(self) -> None:
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._counts: Counter[int] = Counter()
        self._pieces: list[Piece] = []
        self._definitions = 0  # bytes

    def _read_index(self, size: int) -> list[Piece]:
        """The chunks that the end of the file tells; none if that is damaged: the file can do without."""
        if size < len(MAGIC) + FOOTER.size:
            return []
        end = size - FOOTER.size
        footer = self._read(end, FOOTER.size)
        opcode, _, begin, _, checksum, magic = FOOTER.unpack(footer)
        if opcode != Opcode.FOOTER or magic != MAGIC or not len(MAGIC) <= begin <= end <= begin + MAX_INDEX:
            return []
        pieces, chunks, statistics = [], 0, None
        try:
            raw = self._read(begin, end - begin)
            # What it is the checksum of reaches to the checksum.
            if checksum not in (0, crc32(footer[: -len(MAGIC) - 4], crc32(raw))):
                return []
            for opcode, content in _records(raw):
                if opcode == Opcode.STATISTICS:
                    statistics = _parsed(Statistics, content)
                    self._counts.update(statistics.channel_message_counts)
                elif opcode == Opcode.CHUNK_INDEX:
                    chunk = _parsed(ChunkIndex, content)
                    chunks += 1
                    # One without messages has no times.
                    if chunk.message_index_length or chunk.message_end_time:
                        pieces.append(
                            Piece(
                                chunk.chunk_start_offset + RECORD.size,
                                chunk.chunk_length - RECORD.size,
                                chunk.message_start_time,
                                chunk.message_end_time,
                                True,
                            )
                        )
                else:
                    self._note(opcode, content)
        except BROKEN:
            return []
        pieces.sort(key=lambda piece: piece.offset)
        # Or a few bytes could name one chunk a thousand times.
        inside = all(p.size >= 0 and len(MAGIC) < p.offset <= begin - p.size for p in pieces)
        ordered = all(p.start <= p.end <= LATEST for p in pieces)
        apart = all(a.offset + a.size < b.offset for a, b in pairwise(pieces))
        complete = statistics and statistics.chunk_count == chunks and self._channels
        return pieces if complete and inside and ordered and apart else []

    def _scan(self, size: int) -> None:
        """Find all pieces without an index."""
        position = begin = len(MAGIC)
        times: list[int] = []  # of messages outside chunks, from ``begin`` on

        def close(end: int, then: int) -> None:
            nonlocal begin
            if times:
                self._pieces.append(Piece(begin, end - begin, min(times), max(times), False))
            times.clear()
            begin = then

        while position + RECORD.size <= size:
            opcode, length = RECORD.unpack(self._read(position, RECORD.size))
            after = position + RECORD.size + length
            if opcode == Opcode.DATA_END or (opcode == MAGIC[0] and size - position <= len(MAGIC)):
                break
            if not 0 < opcode < Opcode.DATA_END or after > size:
                self.damage.note(f"after {position} of {size} bytes there is nothing that can be read")
                break
            if opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE):
                try:
                    time = self._note(opcode, self._read(position + RECORD.size, length))
                except BROKEN as error:
                    close(position, after)
                    self.damage.note(f"the record at byte {position} is damaged ({plain(error)})")
                else:
                    if time is not None:
                        times.append(time)
                    if after - begin > PIECE:
                        close(after, after)
            else:
                close(position, after)
                if opcode == Opcode.CHUNK:
                    self._scan_chunk(position + RECORD.size, length)
            position = after
        close(position, position)

    def _scan_chunk(self, offset: int, length: int) -> None:
        piece = Piece(offset, length, 0, 0, True)
        first, last = LATEST, -1
        for opcode, content in self._records_in(piece, self._load(piece)):
            try:
                time = self._note(opcode, content)
            except BROKEN as error:
                self._damaged(piece, error)
                continue
            if time is not None:
                first, last = min(first, time), max(last, time)
        if last >= 0:
            self._pieces.append(replace(piece, start=first, end=last))

    def _note(self, opcode: int, content: bytes | memoryview) -> int | None:
        """Count a message and return its time, or keep what tells of topics."""
        if opcode == Opcode.MESSAGE:
            time, channel, _ = _message(content)
            self._counts[channel] += 1
            return time
        if opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
            if len(content) > MAX_DEFINITION:
                raise ValueError(f"a definition claims {len(content)} bytes")
            is_channel = opcode == Opcode.CHANNEL
            record = _parsed(Channel if is_channel else Schema, content)
            known = self._channels if is_channel else self._schemas
            if record.id not in known:  # writers tell it again in each chunk
                self._definitions += len(content)
                if self._definitions > MAX_DEFINITIONS:
                    raise ValueError(f"its definitions are longer than {MAX_DEFINITIONS} bytes")
                known[record.id] = record
        return None

    # Reading ------------------------------------------------------------------------------------

    def _load(self, piece: Piece) -> bytes | memoryview:
        """Its records; nothing if it is damaged."""
        try:
            return (self._chunk_bytes if piece.is_chunk else self._read)(piece.offset, piece.size)
        except BROKEN as error:
            self._damaged(piece, error)
            return b""

    def _messages_in(
        self, piece: Piece, loaded: bytes | memoryview
    ) -> Iterator[tuple[int, int, bytes | memoryview]]:
        """(nanoseconds, channel, bytes of ``loaded``) in the order of the file."""
        for opcode, content in self._records_in(piece, loaded):
            if opcode == Opcode.MESSAGE:
                try:
                    message = _message(content)
                except BROKEN as error:
                    self._damaged(piece, error)
                else:
                    yield message

    def _records_in(self, piece: Piece, loaded: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
        """(opcode, content), up to where there is damage."""
        try:
            yield from _records(loaded)
        except BROKEN as error:
            self._damaged(piece, error)

    def _damaged(self, piece: Piece, error: Exception) -> None:
        self.damage.note(f"the chunk at byte {piece.offset} is damaged ({plain(error)})")

    def _chunk_bytes(self, offset: int, length: int) -> bytes | memoryview:
        """What is in a chunk. The mcap library would copy it once more than is needed."""
        record = memoryview(self._read(offset, length))
        _, _, size, checksum, name_length = CHUNK.unpack_from(record)
        name, begin = CHUNK.size, CHUNK.size + name_length + LENGTH.size
        (packed,) = LENGTH.unpack_from(record, begin - LENGTH.size)
        how = str(record[name : name + name_length], "utf-8")
        raw = decompress(record[begin : begin + packed], how, size)
        if checksum and checksum != crc32(raw):
            raise ValueError("its checksum is wrong")
        return raw

    def _read(self, offset: int, length: int) -> bytes:
        if length > MAX_BYTES:
            raise ValueError(f"it claims {length} bytes")
        self._file.seek(offset)
        return self._file.read(length)


def decompress(data: bytes | memoryview, how: str, size: int | None) -> bytes | memoryview:
    """``data`` as it was: ``size`` bytes and no more, or if None what it says itself, up to MAX_BYTES.

    Raises:
        one of BROKEN: it has another size, or is damaged.
    """
    if how == "zstd" and size is None and (told := zstandard.frame_content_size(data)) >= 0:
        size = told
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


def _records(raw: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """(opcode, content)"""
    view, position = memoryview(raw), 0
    while position < len(raw):
        opcode, length = RECORD.unpack_from(raw, position)
        position += RECORD.size + length
        if position > len(raw):
            raise ValueError("a record reaches beyond its end")
        if opcode == 0:  # of zeros there can be millions
            raise ValueError("there is no such record")
        yield opcode, view[position - length : position]


def _weight(raw: bytes | memoryview) -> int:
    return ENTRY + (len(raw) if isinstance(raw, bytes) else 0)  # the others are in what was loaded


def _parsed(kind: type, content: bytes | memoryview):
    # Out of its own bytes alone: the library reads on when a length inside is a lie.
    return kind.read(ReadDataStream(BytesIO(content)))


def _message(content: bytes | memoryview) -> tuple[int, int, bytes | memoryview]:
    """(nanoseconds, channel, bytes)"""
    channel, _, time, _ = MESSAGE.unpack_from(content)
    if time > LATEST:
        raise ValueError(f"a message came {time} ns after 1970, which no clock says")
    return time, channel, content[MESSAGE.size :]
