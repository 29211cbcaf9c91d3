# SPDX-License-Identifier: Apache-2.0
"""Pins the rule that nothing from before a reset is used after it, and that each step commits once."""

import random
import threading
import time
from collections import Counter
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest

from smolvla_mem_ros.runtime.contract import make_contract
from smolvla_mem_ros.runtime.episode import Episode, Request, Result
from smolvla_mem_ros.runtime.observation import ObservationBuffer, Skip
from smolvla_mem_ros.runtime.worker import InferenceWorker

from .conftest import JOINTS, SECOND, entries, features, fill, image_message

ACTIONS = np.tile(np.linspace(0, 10, 20)[:, None], (1, 6))


@pytest.fixture
def buffer(contract):
    return ObservationBuffer(contract)


def done(request: Request, memory="memory", duration=0.01) -> Result:
    return Result(request, ACTIONS, memory, duration=duration)


def run_one(episode, buffer, now):
    """Tick at ``now`` with a fresh observation and accept at once."""
    fill(buffer, now)
    request = episode.tick(now, buffer)
    assert isinstance(request, Request)
    return request, episode.accept(done(request, f"memory {request.step}"), now)


def test_nothing_is_inferred_before_an_episode_starts(contract, buffer):
    episode = Episode(contract)
    fill(buffer, SECOND)
    assert episode.tick(SECOND, buffer) is None
    assert "start_episode" in episode.reason


def test_the_memory_clock_runs_every_n_action_steps_control_periods(contract, buffer):
    episode = Episode(contract)
    episode.start("task", 0)
    inferred = []
    for tick in range(1, 100):
        now = tick * contract.control_period
        fill(buffer, now)
        request = episode.tick(now, buffer)
        if request:
            inferred.append(tick)
            episode.accept(done(request), now)
    assert inferred == list(range(1, 100, 10))


def test_a_late_tick_does_not_shift_the_clock_but_a_gap_starts_a_new_phase(contract, buffer):
    episode = Episode(contract)
    period, write = contract.control_period, contract.memory_period
    episode.start("task", 0)
    run_one(episode, buffer, 0)
    run_one(episode, buffer, write + period // 2)
    fill(buffer, 2 * write - period)
    assert episode.tick(2 * write - period, buffer) is None
    run_one(episode, buffer, 2 * write)
    late = 3 * write + 5 * period
    run_one(episode, buffer, late)
    fill(buffer, late + write - period)
    assert episode.tick(late + write - period, buffer) is None
    run_one(episode, buffer, late + write)


def test_each_accepted_step_commits_once_and_hands_the_memory_on(contract, buffer):
    episode = Episode(contract)
    episode.start("task", 0)
    now = 0
    for step in range(3):
        request, segment = run_one(episode, buffer, now)
        assert request.memory == (None if step == 0 else f"memory {step - 1}")
        assert (episode.memory, episode.step) == (f"memory {step}", step + 1)
        assert segment is not None
        now += contract.memory_period
    assert episode.counters.accepted == episode.counters.inferences == 3


def test_a_result_cannot_be_taken_twice(contract, buffer):
    episode = Episode(contract)
    episode.start("task", 0)
    request, _ = run_one(episode, buffer, 0)
    with pytest.raises(ValueError, match="taken before"):
        episode.accept(done(request, "again"), 0)
    assert episode.memory == "memory 0"


@pytest.mark.parametrize("command", ["start", "reset_memory", "stop"])
def test_a_result_of_an_older_epoch_moves_neither_memory_nor_arm(contract, buffer, command):
    episode = Episode(contract)
    episode.start("task", 0)
    fill(buffer, 0)
    request = episode.tick(0, buffer)
    episode.start("next", 1) if command == "start" else getattr(episode, command)(1)
    assert episode.accept(done(request), 2) is None
    assert episode.memory is None and episode.step == 0
    assert episode.counters.dropped_epoch == 1 and episode.counters.accepted == 0


def test_reset_keeps_the_episode_and_start_begins_a_new_one(contract):
    episode = Episode(contract)
    episode.start("a", 0)
    episode.reset_memory(1)
    assert (episode.episode_id, episode.task, episode.running) == (1, "a", True)
    episode.start("b", 2)
    assert (episode.episode_id, episode.task) == (2, "b")
    episode.stop(3)
    assert not episode.running


def test_an_observation_from_before_a_reset_is_not_used(contract, buffer):
    episode = Episode(contract)
    fill(buffer, 10)
    episode.start("task", 20)
    skip = episode.tick(20, buffer)
    assert isinstance(skip, Skip) and "since the episode started" in skip.reason
    fill(buffer, 20)
    assert isinstance(episode.tick(21, buffer), Request)


@pytest.mark.parametrize("command", ["reset_memory", "stop"])
def test_a_new_epoch_stops_the_motion_under_way(contract, buffer, command):
    episode = Episode(contract)
    episode.start("task", 0)
    run_one(episode, buffer, 0)
    stop = getattr(episode, command)(SECOND // 10)
    assert stop.velocities[-1] == pytest.approx(0)
    assert len(stop.positions) == 1
    assert getattr(episode, command)(SECOND // 10) is None, "nothing moves any more"


def test_nothing_is_stopped_when_the_motion_is_over(contract, buffer):
    episode = Episode(contract)
    episode.start("task", 0)
    run_one(episode, buffer, 0)
    assert episode.start("next", 10 * SECOND) is None


def test_a_failed_inference_leaves_the_memory_and_says_why(contract, buffer):
    episode = Episode(contract)
    episode.start("task", 0)
    run_one(episode, buffer, 0)
    fill(buffer, SECOND)
    request = episode.tick(SECOND, buffer)
    assert episode.accept(Result(request, error="out of memory"), SECOND) is None
    assert episode.memory == "memory 0" and episode.step == 1
    assert episode.reason == "out of memory" and episode.counters.failed == 1


def test_a_chunk_that_lies_in_the_past_is_dropped_with_a_reason(contract, buffer):
    episode = Episode(contract)
    episode.start("task", 0)
    fill(buffer, 0)
    request = episode.tick(0, buffer)
    assert episode.accept(done(request, duration=5.0), 5 * SECOND) is None
    assert episode.memory is None and episode.counters.dropped_late == 1
    assert "5.00 s" in episode.reason and "0.63 s" in episode.reason


def test_an_inference_longer_than_the_memory_clock_counts_as_overrun(contract, buffer):
    episode = Episode(contract)
    episode.start("task", 0)
    fill(buffer, 0)
    request = episode.tick(0, buffer)
    late = contract.memory_period + 1
    fill(buffer, late)
    assert episode.tick(late, buffer) is None, "one inference at a time"
    assert episode.accept(done(request), late) is not None
    assert episode.counters.overruns == 1
    assert isinstance(episode.tick(late, buffer), Request), "the overdue one starts at once"


def test_stale_and_missing_inputs_are_counted_apart(contract, buffer):
    episode = Episode(contract)
    episode.start("task", 0)
    assert "front: nothing received" in episode.tick(0, buffer).reason
    fill(buffer, 0)
    assert "joint_states: 1.00 s old" in episode.tick(SECOND, buffer).reason
    counters = episode.counters
    assert (counters.skipped_missing, counters.skipped_stale, counters.inferences) == (1, 1, 0)


class Recorder:
    """An engine whose memory is the list of observations it has seen, so that any leak can be seen."""

    def __init__(self, rng):
        self._rng = rng

    def infer(self, observation, memory, episode_id, step):
        time.sleep(self._rng.choice((0, 0, 0.0005, 0.002)))
        if self._rng.random() < 0.02:
            raise RuntimeError("injected")
        seen = (*(memory or ()), observation.stamp)
        return SimpleNamespace(actions=np.full((20, 6), float(len(seen))), memory=seen)


def test_a_thousand_resets_against_a_running_inference_leak_nothing():
    """Real threads, random delays: no memory, action or observation from before a reset survives."""
    rng = random.Random(7)
    contract = make_contract(entries(), features(chunk_size=20, n_action_steps=1))
    buffer, episode = ObservationBuffer(contract), Episode(contract)
    results: SimpleQueue[Result] = SimpleQueue()
    worker = InferenceWorker(Recorder(random.Random(8)).infer, results.put)
    clock = iter(range(10**9, 10**15, 200_000)).__next__
    commits: Counter = Counter()
    resets = accepted = dropped = 0
    episode.start("task", clock())

    while resets < 1000 or not (accepted > 300 and dropped > 100):
        assert resets < 20_000, f"{accepted} accepted and {dropped} dropped are too few"
        now = clock()
        fill(buffer, now)
        request = episode.tick(now, buffer)
        if isinstance(request, Request):
            assert request.observation.oldest >= episode.last_reset
            assert all(stamp >= episode.last_reset for stamp in request.memory or ())
            worker.submit(request)
        if rng.random() < 0.5:
            time.sleep(rng.choice((0, 0.0002, 0.001)))
        while not results.empty():
            result = results.get()
            before, steps = episode.memory, episode.step
            segment = episode.accept(result, clock())
            fresh = result.request.epoch == episode.epoch and result.actions is not None
            assert (segment is not None) == fresh
            if fresh:
                accepted += 1
                commits[(episode.epoch, episode.step)] += 1
                assert episode.step == steps + 1 == len(episode.memory)
                assert episode.memory[:-1] == (before or ())
                assert segment.stamp >= episode.last_reset
                assert all(stamp >= episode.last_reset for stamp in episode.memory)
            else:
                dropped += result.request.epoch != episode.epoch
                assert episode.memory is before and episode.step == steps
        if rng.random() < 0.25:
            resets += 1
            id_before = episode.episode_id
            if rng.random() < 0.5:
                episode.reset_memory(clock())
                assert episode.episode_id == id_before
            else:
                episode.start("task", clock())
                assert episode.episode_id == id_before + 1
            assert episode.memory is None and episode.step == 0
    assert worker.close(2.0)
    assert set(commits.values()) == {1}
    assert accepted == sum(commits.values()) == episode.counters.accepted
    assert threading.active_count() < 20


def test_a_missing_joint_is_named_and_zeros_are_not_fed(contract, buffer):
    episode = Episode(contract)
    episode.start("task", 0)
    for camera in ("front", "wrist"):
        buffer.put_image(camera, 0, image_message())
    buffer.put_joint_state(0, JOINTS[:-1], [0.0] * 5)
    skip = episode.tick(0, buffer)
    assert isinstance(skip, Skip) and "joint gripper is not in the joint states" in skip.reason
