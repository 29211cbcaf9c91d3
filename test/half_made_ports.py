# SPDX-License-Identifier: Apache-2.0
"""Frees whoever waits for a port in shared memory that a killed process left half made.

Fast DDS 3.2 opens ports by Boost's managed_open_or_create, which waits for ever until the one who created the
file has marked it as made, and it holds the interpreter meanwhile. Ports from 7000 on are shared by all
domains, so one process that is killed between the two steps, as tests do, stops every test process. Marked as
broken the waiters give up, and once it is gone the port is made anew.

Runs until its standard input closes: ``python -S half_made_ports.py FOLDER``.
"""

import select
import struct
import sys
import time
from pathlib import Path

PATIENCE = 2.0  # s; making one takes less than a millisecond
MADE, BROKEN = 2, struct.pack("=I", 3)  # Boost's states; 0 and 1 are before MADE


def free(folder: Path, now: float) -> list[str]:
    """Marks and removes the half-made ports of ``folder``; returns their names."""
    freed = []
    for path in folder.glob("fastdds_port*[0-9]"):
        try:
            with path.open("r+b") as file:
                state = struct.unpack("=I", file.read(4).ljust(4, b"\0"))[0]
                if state >= MADE or now - path.stat().st_mtime < PATIENCE:
                    continue
                file.seek(0)
                file.write(BROKEN)
            path.unlink()
        except FileNotFoundError:
            continue
        freed.append(path.name)
    return freed


if __name__ == "__main__":
    while not select.select([sys.stdin], [], [], 1.0)[0]:
        for name in free(Path(sys.argv[1]), time.time()):
            print(f"{name} was left half made by a process that was killed; removed", file=sys.stderr)
