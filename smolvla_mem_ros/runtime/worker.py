# SPDX-License-Identifier: Apache-2.0
"""The one thread in which inference runs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from smolvla_mem_ros.runtime.engine import Inference
from smolvla_mem_ros.runtime.episode import Request, Result


class InferenceWorker:
    """Runs requests one after another in a thread of its own.

    Args:
        infer: ``Engine.infer``.
        on_result: called in the worker's thread with each result; hand it over to your own thread there.

    ``submit`` may be called from any thread; an exception of ``infer`` becomes ``Result.error``.
    """

    def __init__(self, infer: Callable[..., Inference], on_result: Callable[[Result], None]):
        self._infer = infer
        self._on_result = on_result
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        self._requests.put(request)

    def close(self, timeout: float = 0.5) -> bool:
        """Ask the thread to end and wait ``timeout`` seconds. False if an inference is still running."""
        self._requests.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            began = time.perf_counter()
            try:
                done = self._infer(request.observation, request.memory, request.episode_id, request.step)
                result = Result(request, done.actions, done.memory)
            except Exception as error:
                result = Result(request, error=f"inference failed: {error or type(error).__name__}")
            self._on_result(replace(result, duration=time.perf_counter() - began))
