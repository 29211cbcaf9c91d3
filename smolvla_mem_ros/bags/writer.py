# SPDX-License-Identifier: Apache-2.0
"""Writes rosbag2 folders of serialised messages, so that a crash loses little."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer, WriterError

from smolvla_mem_ros.bags.types import ensure_type, new_typestore

STORAGES = ("mcap", "sqlite3")
_FOREVER = QosTime(0x7FFFFFFF, 0xFFFFFFFF)


class BagWriter:
    """One bag, closed by :meth:`close` or at the end of a ``with`` block.

    A killed process leaves what was written up to the last :meth:`flush`; reading that needs
    ``Bag(..., salvage=True)`` of an MCAP file, because its index is written at the end.

    Args:
        folder: must not exist yet.
        zstd_chunks: compress the chunks of MCAP.

    Raises:
        OSError: ``folder`` is there already or cannot be made.
        ValueError: ``storage`` is unknown.
    """

    def __init__(self, folder: Path, storage: str = "mcap", zstd_chunks: bool = False) -> None:
        if storage not in STORAGES:
            raise ValueError(f"storage {storage!r} is not one of {', '.join(STORAGES)}")
        if folder.exists():
            raise FileExistsError(f"{folder} is there already; name a new folder")
        self._store = new_typestore()
        self._writer = Writer(folder, version=9, storage_plugin=StoragePlugin[storage.upper()])
        if zstd_chunks:
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        try:
            self._writer.open()
        except WriterError as error:
            raise OSError(str(error)) from error
        self._mcap = storage == "mcap"
        self._topics: dict[str, Connection] = {}
        self.messages = 0
        self.bytes = 0

    def add_topic(self, topic: str, kind: str, reliable: bool = True, latched: bool = False) -> None:
        """Announce a topic before its first message; again is no mistake.

        Args:
            kind: such as ``sensor_msgs/msg/Image``; its definition goes into the bag.
            reliable, latched: the QoS that a player is to offer.

        Raises:
            UnknownType: nothing here defines ``kind``.
        """
        if topic in self._topics:
            return
        ensure_type(self._store, kind)
        qos = Qos(
            QosHistory.KEEP_LAST,
            10,
            QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
            QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
            _FOREVER,
            _FOREVER,
            QosLiveliness.AUTOMATIC,
            _FOREVER,
            False,
        )
        self._topics[topic] = self._writer.add_connection(
            topic, kind, typestore=self._store, offered_qos_profiles=[qos]
        )

    def write(self, topic: str, stamp: int, raw: bytes) -> None:
        """Add a serialised message (CDR, as rclpy hands it over) that was received at ``stamp`` (ns)."""
        self._writer.write(self._topics[topic], stamp, raw)
        self.messages += 1
        self.bytes += len(raw)

    def flush(self) -> None:
        """Hand all that was written over to the system: from then on it outlives this process."""
        storage = self._writer.storage
        if not self._mcap:
            storage.conn.commit()
            return
        if storage.chunk.msgs:
            storage.close_chunk()
        storage.bio.flush()

    def close(self) -> None:
        if self._writer.storage is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False
