# SPDX-License-Identifier: Apache-2.0
"""Thousands of damaged bags: each is read, or refused in one clear line, in little memory and little time.

FUZZ_FILES=2000 tries so many of each kind instead of 170.
"""

import os

import pytest
from bags.fuzzing import SERVE, tell
from bags.mutations import NAMED
from bags.seeds import WRITERS
from bags.worker import Worker

BATCH = 170
FILES = int(os.environ.get("FUZZ_FILES", BATCH))

pytestmark = pytest.mark.timeout(1200)  # on a busy machine a process takes its time


@pytest.fixture(scope="module")
def worker():
    worker = Worker(*SERVE)
    yield worker
    worker.close()


@pytest.mark.parametrize("first", range(0, FILES, BATCH))
@pytest.mark.parametrize("seed", WRITERS)
def test_a_damaged_bag_is_read_or_refused_in_one_line(worker, seed, first):
    outcomes, failures = worker.run(seed, range(first, min(first + BATCH, FILES)))
    assert not failures, f"{len(failures)} failed; the first:\n" + "\n".join(failures[:5])
    # Or what was done to them did nothing.
    assert outcomes["read"] and outcomes["salvaged"], outcomes


# An entry of the index that came twice and hid another.
@pytest.mark.parametrize(("seed", "number"), [("file_zstd_sqlite", 669)])
def test_what_only_many_more_files_found_stays_mended(worker, seed, number):
    _, failures = worker.run(seed, range(number, number + 1))
    assert not failures, failures


@pytest.mark.parametrize("seed", NAMED)
def test_what_is_made_to_fill_the_memory_does_not(worker, seed):
    count, _ = NAMED[seed]
    _, failures = worker.run(seed, range(count))
    assert not failures, "\n".join(failures)


FAULTS = """
import os, signal
from bags import worker

def attempt(kind, number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2:
        bytearray(2 * worker.MEMORY)
    while number == 3:
        pass
    if number == 4:
        raise KeyError("x")
    return "read"

worker.SECONDS = 0.2
worker.serve(attempt)
"""


def test_what_is_looked_for_would_be_found():
    worker = Worker("-c", FAULTS)
    outcomes, failures = worker.run("any", range(6))
    worker.close()
    assert outcomes == {"read": 2, "failed": 4}
    for number, says in enumerate(["the process died (-11)", "MemoryError", "Slow", "KeyError: 'x'"], 1):
        assert failures[number - 1].startswith(f"any {number}: ") and says in failures[number - 1]
    for text in ("", "two\nlines", "x" * 5000, "MemoryError()"):
        with pytest.raises(AssertionError):
            tell([text])
