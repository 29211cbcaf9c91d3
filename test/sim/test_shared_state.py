# SPDX-License-Identifier: Apache-2.0
"""A reader of the shared state gets whole snapshots, also from a writer in another process."""

import subprocess
import sys

import numpy as np
import pytest

from smolvla_mem_ros.sim.shared_state import CHECK, SharedState, Snapshot


@pytest.fixture
def state():
    state = SharedState.create()
    yield state
    state.close()


def test_nothing_is_there_before_the_first_snapshot(state):
    assert state.read() is None


def test_a_snapshot_comes_out_as_it_went_in(state):
    state.write(Snapshot(7, 1.25, 3, 4, 5, np.arange(20.0)))
    found = state.read()
    np.testing.assert_array_equal(found.qpos, np.arange(20.0))
    assert (found.sequence, found.time, found.goal_writes, found.packets, found.resets) == (7, 1.25, 3, 4, 5)


def test_a_model_too_large_for_the_block_is_refused(state):
    with pytest.raises(ValueError, match="600 joint positions"):
        state.write(Snapshot(1, 0.0, 0, 0, 0, np.zeros(600)))


def test_a_half_written_block_is_an_error_and_never_a_snapshot(state):
    state.write(Snapshot(1, 0.0, 0, 0, 0, np.zeros(6)))
    state._memory[CHECK.size + 50 : CHECK.size + 51] = b"\x01"
    with pytest.raises(RuntimeError, match="died"):
        state.read()


WRITER = """
import sys, numpy as np
from smolvla_mem_ros.sim.shared_state import SharedState, Snapshot
state, number = SharedState(int(sys.argv[1])), 0
while True:
    number += 1
    state.write(Snapshot(number, float(number), number, number, number, np.full(100, float(number))))
"""


def test_no_snapshot_is_torn_while_another_process_writes(state):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(state.fd)], pass_fds=[state.fd])
    try:
        seen = set()
        while len(seen) < 2000:
            if (found := state.read()) is not None:
                assert (found.qpos == found.sequence).all() and found.packets == found.sequence
                seen.add(found.sequence)
    finally:
        writer.kill()
        writer.wait()
