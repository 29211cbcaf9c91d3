# SPDX-License-Identifier: Apache-2.0
"""Pins that an exception in inference comes back as a result and that the thread ends when told."""

import threading
import time
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from smolvla_mem_ros.runtime.episode import Request
from smolvla_mem_ros.runtime.worker import InferenceWorker

REQUEST = Request(observation="seen", memory=None, episode_id=3, step=4, epoch=5, now=6)


@pytest.fixture
def results():
    return SimpleQueue()


def test_the_request_is_handed_over_and_timed(results):
    def infer(*args):
        time.sleep(0.02)
        return SimpleNamespace(actions=args, memory="after")

    worker = InferenceWorker(infer, results.put)
    worker.submit(REQUEST)
    result = results.get(timeout=2)
    assert result.request is REQUEST and result.actions == ("seen", None, 3, 4) and result.memory == "after"
    assert 0.02 <= result.duration < 2
    assert worker.close()


def test_an_exception_becomes_an_error_and_the_worker_goes_on(results):
    def infer(*args):
        if args[2] == 3:
            raise RuntimeError("no memory left")
        return SimpleNamespace(actions=1, memory=None)

    worker = InferenceWorker(infer, results.put)
    worker.submit(REQUEST)
    worker.submit(Request(None, None, 4, 0, 0, 0))
    failed = results.get(timeout=2)
    assert failed.actions is None and failed.error == "inference failed: no memory left"
    assert results.get(timeout=2).actions == 1
    assert worker.close()


def test_close_tells_when_an_inference_is_still_running(results):
    release = threading.Event()
    worker = InferenceWorker(lambda *_: release.wait(5), results.put)
    worker.submit(REQUEST)
    assert not worker.close(timeout=0.05)
    release.set()
    assert worker.close(timeout=2)
