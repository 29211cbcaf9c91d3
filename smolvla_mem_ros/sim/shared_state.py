# SPDX-License-Identifier: Apache-2.0
"""The newest state of the simulated arm, handed from the emulator to whoever renders it.

One block of memory without a name: it is reached through a file descriptor that a child process
inherits, so it is gone when the last process that has it is gone, however these ended.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from dataclasses import dataclass

import numpy as np

HEADER = struct.Struct("<QdQQQI")  # sequence, time, goal_writes, packets, resets, number of joint positions
CHECK = struct.Struct("<I")
SIZE = 4096
TRIES = 1000


@dataclass(frozen=True)
class Snapshot:
    """The simulation at one moment.

    Args:
        sequence: counts the snapshots, from 1.
        time: s, ``time.monotonic()`` (the same clock in every process) when it was taken.
        goal_writes: packets with goal positions that the bus has seen.
        packets: instructions that the bus has seen.
        resets: how often the scene was put back.
        qpos: (nq,) all joint positions of the scene's model.
    """

    sequence: int
    time: float
    goal_writes: int
    packets: int
    resets: int
    qpos: np.ndarray


class SharedState:
    """One writer, any number of readers, no locks.

    A reader may come while the writer is at work. A checksum over the block tells; then it reads again.
    """

    def __init__(self, fd: int) -> None:
        """Takes over ``fd``, as ``create`` made it here or in the parent process."""
        self.fd = fd
        self._memory = mmap.mmap(fd, SIZE)

    @classmethod
    def create(cls) -> SharedState:
        fd = os.memfd_create("so100_sim")
        os.ftruncate(fd, SIZE)
        return cls(fd)

    def write(self, snapshot: Snapshot) -> None:
        """Raises ValueError when the model has more positions than the block holds."""
        qpos = np.ascontiguousarray(snapshot.qpos, "<f8").tobytes()
        head = (snapshot.sequence, snapshot.time, snapshot.goal_writes, snapshot.packets, snapshot.resets)
        body = HEADER.pack(*head, len(qpos) // 8) + qpos
        if CHECK.size + len(body) > SIZE:
            raise ValueError(f"{len(qpos) // 8} joint positions do not fit into {SIZE} bytes")
        self._memory[: CHECK.size + len(body)] = CHECK.pack(zlib.crc32(body)) + body

    def read(self) -> Snapshot | None:
        """The newest snapshot; None before the first.

        Raises:
            RuntimeError: the block stays half-written (the writer was killed in the middle of it).
        """
        for _ in range(TRIES):
            block = self._memory[:]
            *head, count = HEADER.unpack_from(block, CHECK.size)
            if head[0] == 0:
                return None
            end = CHECK.size + HEADER.size + 8 * count
            if end <= SIZE and CHECK.unpack_from(block)[0] == zlib.crc32(block[CHECK.size : end]):
                return Snapshot(*head, np.frombuffer(block[end - 8 * count : end], "<f8"))
            time.sleep(0.0001)
        raise RuntimeError("the emulator died while it wrote its state")

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)
