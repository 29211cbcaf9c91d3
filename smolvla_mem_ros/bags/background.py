# SPDX-License-Identifier: Apache-2.0
"""A bag that is written in a thread of its own: who receives messages never waits for the disk."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from smolvla_mem_ros.bags.writer import BagWriter

MAX_WAITING = 512 * 2**20  # bytes in hand for a disk that does not keep up
MIN_FREE = 512 * 2**20  # bytes that are left free on the disk


class BackgroundWriter:
    """As BagWriter; all but the thread of its own is used by one thread.

    Args:
        max_waiting: bytes; what comes while more are waiting is lost, and counted.
        min_free: bytes on the disk, below which it stops.

    Attributes:
        failure: why nothing is written any more, in words; empty while all is well.
        lost: topic -> messages.
    """

    def __init__(
        self, folder: Path, storage: str = "mcap", max_waiting: int = MAX_WAITING, min_free: int = MIN_FREE
    ) -> None:
        self._folder, self._max_waiting, self._min_free = folder, max_waiting, min_free
        # SQLite's connections belong to the thread that made them.
        self._pool = ThreadPoolExecutor(1, "bag writer")
        self._writer = self._pool.submit(BagWriter, folder, storage).result()
        self._put = self._taken = 0
        self.failure = ""
        self.lost: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet."""
        return self._put - self._taken

    @property
    def messages(self) -> int:
        return self._writer.messages

    @property
    def bytes(self) -> int:
        return self._writer.bytes

    def add_topic(self, topic: str, kind: str, reliable: bool = True, latched: bool = False) -> None:
        """As BagWriter's, which raises UnknownType."""
        self._pool.submit(self._writer.add_topic, topic, kind, reliable, latched).result()

    def write(self, topic: str, stamp: int, raw: bytes) -> bool:
        """Take a message to be written. False when it is lost."""
        if self.failure or self.waiting + len(raw) > self._max_waiting:
            self.lost[topic] += 1
            return False
        self._put += len(raw)
        self._pool.submit(self._write, topic, stamp, raw)
        return True

    def flush(self) -> None:
        """As BagWriter's, some time soon."""
        self._pool.submit(self._flush)

    def close(self) -> None:
        """Write what is waiting and close the bag; ``failure`` tells if that went wrong."""
        self._pool.submit(self._close)
        self._pool.shutdown()

    def _write(self, topic: str, stamp: int, raw: bytes) -> None:
        try:
            if not self.failure:
                self._writer.write(topic, stamp, raw)
        except Exception as error:
            self.failure = f"cannot write {self._folder}: {error}"
        finally:
            self._taken += len(raw)

    def _flush(self) -> None:
        if self.failure:
            return
        try:
            self._writer.flush()
            if shutil.disk_usage(self._folder).free < self._min_free:
                self._close()
                self.failure = f"the disk is nearly full; {self._folder} was closed"
        except Exception as error:
            self.failure = f"cannot write {self._folder}: {error}"

    def _close(self) -> None:
        try:
            self._writer.close()
        except Exception as error:
            self.failure = self.failure or f"cannot close {self._folder}: {error}"
