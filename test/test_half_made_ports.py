# SPDX-License-Identifier: Apache-2.0
"""A port that a killed process left half made stops nobody for long; one that is in use is left alone."""

import struct
import subprocess
import sys

from half_made_ports import BROKEN, PATIENCE, free


def port(folder, name, state):
    path = folder / name
    path.write_bytes(struct.pack("=I", state) + bytes(100))
    return path


def test_what_is_half_made_is_marked_and_removed(tmp_path):
    path = port(tmp_path, "fastdds_port7004", 0)
    made = port(tmp_path, "fastdds_port7005", 2)
    locks = port(tmp_path, "fastdds_port7006_el", 0)
    with path.open("rb") as waiting:
        now = path.stat().st_mtime
        assert free(tmp_path, now) == []
        assert free(tmp_path, now + PATIENCE + 1) == [path.name]
        assert waiting.read(4) == BROKEN
    assert not path.exists() and made.exists() and locks.exists()


def test_it_ends_with_whoever_started_it(tmp_path):
    from half_made_ports import __file__ as program

    process = subprocess.Popen([sys.executable, "-S", program, tmp_path], stdin=subprocess.PIPE)
    process.stdin.close()
    assert process.wait(5) == 0
