# SPDX-License-Identifier: Apache-2.0
"""Waiting for what happens in another thread or process."""

import time


def wait_until(condition, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.002)
