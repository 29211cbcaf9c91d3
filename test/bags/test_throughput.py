# SPDX-License-Identifier: Apache-2.0
"""Bags are measured for real, and what is in memory does not grow with how long they are."""

import sqlite3

import apsw
import numpy as np
import pytest
from mcap.reader import make_reader

from smolvla_mem_ros.bags import synthetic, throughput
from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.replay import Rows
from smolvla_mem_ros.bags.streams import StreamClock
from smolvla_mem_ros.bags.synthetic import FORMS, JPEG, RAW, Recording

SQLITE = FORMS[1]


@pytest.fixture
def write(tmp_path):
    """``write(form, seconds)``: a bag of small pictures."""

    def run(form, seconds, size=(32, 24), seed=0):
        folder = tmp_path / f"bag{len(list(tmp_path.iterdir()))}"
        Recording(form, size, seed).write(folder, seconds)
        return folder

    return run


# What is measured -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_bag_of_each_form_holds_two_cameras_and_an_arm(write, form):
    with Bag(write(form, 2)) as bag:
        messages = list(bag.messages())
        counts = {name: topic.count for name, topic in bag.topics.items()}
        assert counts == {
            **dict.fromkeys(synthetic.CAMERAS.values(), 60),
            synthetic.STATES: 200,
            synthetic.COMMANDS: 8,
            synthetic.EVENTS: 1,
        }
        assert [m.stamp for m in messages] == sorted(m.stamp for m in messages)
        first = next(m for m in messages if m.topic == synthetic.CAMERAS["front"])
        assert throughput.decode_image(bag.decode(first)).shape == (24, 32, 3)
        # One that is kept must not keep all that was read with it.
        assert {type(m.raw) for m in messages} == {bytes}


def test_a_seed_gives_the_same_messages_again(write):
    def content(folder):
        with Bag(folder) as bag:
            return [(m.topic, m.stamp, m.raw) for m in bag.messages()]

    assert content(write(JPEG, 1)) == content(write(JPEG, 1)) != content(write(JPEG, 1, seed=1))


@pytest.mark.parametrize(
    "form", [form for form in FORMS if form.storage == "mcap"], ids=lambda form: form.name
)
def test_what_is_read_is_what_the_mcap_library_reads(write, form):
    folder = write(form, 2, size=(320, 240))  # several chunks
    (file,) = folder.glob("*.mcap")
    with file.open("rb") as opened:
        theirs = [
            (channel.topic, message.log_time, message.data)
            for _, channel, message in make_reader(opened).iter_messages()
        ]
    with Bag(folder) as bag:
        assert [(m.topic, m.stamp, m.raw) for m in bag.messages()] == theirs


@pytest.mark.parametrize("way", throughput.WAYS)
def test_all_of_a_bag_is_gone_through(write, way):
    reached = []
    assert throughput.speed(write(RAW, 2), way, reached.append) > 0
    assert reached[-1] - reached[0] == pytest.approx(2e9, rel=0.02) and len(reached) > 300


# Memory -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)  # two processes import torch
def test_ten_times_the_bag_takes_no_more_memory(write):
    short, long = (
        throughput.memory(write(RAW, seconds, (160, 120)), "evaluate")["peak_mib"] for seconds in (3, 30)
    )
    # Its messages have 100 MiB.
    assert long - short < 10


def test_a_process_that_cannot_measure_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="nowhere is not there"):
        throughput.memory(tmp_path / "nowhere", "read")


def test_a_file_without_an_index_of_times_is_not_sorted_in_memory(write):
    folder = write(SQLITE, 2, (320, 240))
    with Bag(folder) as bag:
        whole = [(m.topic, m.stamp, m.raw) for m in bag.messages()]
    (file,) = folder.glob("*.db3")
    with sqlite3.connect(file) as connection:
        connection.execute("DROP INDEX timestamp_idx")
    connection.close()
    apsw.memory_high_water(True)
    with Bag(folder) as bag:
        assert [(m.topic, m.stamp, m.raw) for m in bag.messages()] == whole
    assert sum(len(raw) for *_, raw in whole) > 20e6 > 4 * apsw.memory_high_water()


def test_the_delays_of_a_stream_are_counted_not_kept():
    clock, rng = StreamClock(), np.random.default_rng(0)
    delays = rng.normal(30e6, 2e6, 100_000).astype(int).tolist()
    for i, delay in enumerate(delays):
        stamp = synthetic.START + i * 10_000_000
        assert clock.note(stamp, stamp + delay) == stamp
    assert len(clock.delays) < 300
    assert clock.summary()["median_delay_s"] == pytest.approx(np.median(delays) / 1e9, abs=1e-4)
    assert clock.delays.largest == max(delays) / 1e9


@pytest.mark.parametrize(
    ("seconds", "median"), [([], None), ([-1.5], -1.5), ([3, 1, 2], 2), ([1, 2, 3, 4], 2), ([4, 4, 4, 9], 4)]
)
def test_the_median_of_counted_durations(seconds, median):
    clock = StreamClock()
    for each in seconds:
        clock.delays.add(each)
    assert clock.delays.median == median


def test_rows_are_kept_in_order_at_eight_bytes_a_number():
    rows = Rows(2)
    assert [part.shape for part in rows.all] == [(0,), (0, 2)]
    for i in range(5):
        rows.append(i, (i, -i))
    stamps, values = rows[1:3]
    assert stamps.tolist() == [1, 2] and values.tolist() == [[1, -1], [2, -2]]
    rows.append(5, (5, -5))  # what was taken out is a copy
    assert sum(part.nbytes for part in rows.all) == 6 * 3 * 8
