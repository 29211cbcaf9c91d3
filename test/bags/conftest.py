# SPDX-License-Identifier: Apache-2.0
"""Bags of a few topics."""

import pytest
from bag_helpers import EVENTS, IMAGES, JOINT_STATES, KINDS, Maker

from smolvla_mem_ros.bags.writer import BagWriter


@pytest.fixture(scope="session")
def maker():
    return Maker()


@pytest.fixture
def write_bag(tmp_path, maker):
    """``write(name, storage, seconds)``: joint states at 50 Hz, pictures at 10 Hz, an event a second."""

    def write(name="bag", storage="mcap", seconds=2, close=True):
        writer = BagWriter(tmp_path / name, storage)
        for topic, kind in KINDS.items():
            writer.add_topic(topic, kind, reliable=topic != IMAGES, latched=topic == EVENTS)
        for step in range(50 * seconds):
            stamp = 10**18 + step * 20_000_000
            if step % 50 == 0:
                writer.write(EVENTS, stamp, maker.raw(EVENTS, stamp, step // 50 + 1))
            writer.write(JOINT_STATES, stamp, maker.raw(JOINT_STATES, stamp, step))
            if step % 5 == 0:
                writer.write(IMAGES, stamp, maker.raw(IMAGES, stamp, step))
        if close:
            writer.close()
        return tmp_path / name

    return write
