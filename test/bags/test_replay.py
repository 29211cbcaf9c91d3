# SPDX-License-Identifier: Apache-2.0
"""A bag is replayed as the live node would have lived it: episodes, ticks, memory, and what is wrong."""

import numpy as np
import pytest
import torch
from bag_helpers import (
    COMMANDS,
    EVENTS,
    IMAGES,
    JOINT_STATES,
    KINDS,
    ROBOT_JOINTS,
    START,
    WRIST,
    robot_contract,
    write_run,
)

from smolvla_mem_ros.bags import measures
from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.replay import Modes, Replay, Span
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.bags.streams import find_topics
from smolvla_mem_ros.bags.writer import BagWriter
from smolvla_mem_ros.policy.memory import Memory
from smolvla_mem_ros.runtime.engine import EngineError, Inference

SECOND = 10**9


@pytest.fixture
def contract():
    return robot_contract(chunk_size=8, n_action_steps=5)


class Engine:
    """Goes on from where the joints are, as fast as write_run moves them; the memory counts its writes."""

    memory_shape = (1, 2)

    def __init__(self):
        self.asked = []

    def infer(self, observation, memory, episode_id, step):
        writes = 0 if memory is None else int(memory.tokens[0, 0, 0])
        self.asked.append((observation, writes, episode_id, step))
        actions = np.tile(observation.state.astype(float), (8, 1))
        actions[:, 0] += np.arange(8) / 10 / 10
        return Inference(actions, Memory(torch.full((1, 1, 2), writes + 1.0), torch.tensor([True])))


def play(folder, contract, modes=("on",), engine=None, **options):
    engine = engine or Engine()
    with Bag(folder) as bag:
        engines = {"on": engine, "off": Engine()}
        replay = Replay(bag, contract, find_topics(bag, contract), Modes(engines, modes, contract), **options)
        replay.run()
    return replay, engine


def seconds(played):
    return [
        (round((p.start - START) / SECOND, 2), round((p.end - START) / SECOND, 2), p.task) for p in played
    ]


# Episodes -------------------------------------------------------------------------------------------


def test_episodes_are_those_that_the_events_tell(tmp_path, maker, contract):
    events = [
        (1.0, "start", 4, "sway"),
        (2.95, "stop", 4, "sway"),
        (4.0, "start", 5, "push"),
        (4.95, "start", 6, ""),
    ]
    folder = write_run(tmp_path / "bag", maker, 6, events)
    replay, engine = play(folder, contract, task="else")
    assert seconds(replay.played) == [(1, 2.95, "sway"), (4, 4.95, "push"), (4.95, 5.98, "else")]
    # Every 5 control periods of 0.1 s, from the first complete observation on, in the live episode's number.
    assert [len(p.inferences["on"]) for p in replay.played] == [4, 2, 2]
    assert [(number, step) for _, _, number, step in engine.asked][:5] == [
        (4, 0),
        (4, 1),
        (4, 2),
        (4, 3),
        (5, 0),
    ]
    stamps = np.array([i.stamp for i in replay.played[0].inferences["on"]])
    np.testing.assert_allclose(np.diff(stamps) / SECOND, 0.5, atol=0.03)


def test_a_reset_in_the_bag_empties_the_memory(tmp_path, maker, contract):
    events = [(0.5, "start", 1, "sway"), (2.0, "reset_memory", 1, "sway")]
    replay, engine = play(write_run(tmp_path / "bag", maker, 4, events), contract)
    writes = [writes for _, writes, _, _ in engine.asked]
    assert writes == [0, 1, 2, 0, 1, 2, 3] and len(replay.played[0].resets) == 1
    # Nothing that was seen before the reset is used after it.
    assert engine.asked[3][0].oldest >= START + 2 * SECOND


def test_without_events_an_episode_ends_where_nothing_comes(tmp_path, maker, contract):
    folder = write_run(tmp_path / "bag", maker, 9, silent=[(3, 5), (6, 6.5)])
    replay, _ = play(folder, contract, task="sway", gap=1.0)
    assert [(a, round(b, 1)) for a, b, _ in seconds(replay.played)] == [(0, 3.0), (5, 9.0)]
    assert replay.played[1].skips["stale: front, joint_states, wrist"] >= 3
    with pytest.raises(BagError, match=r"say so with --task"):
        play(folder, contract)


def test_episodes_that_are_named_win_over_events(tmp_path, maker, contract):
    folder = write_run(tmp_path / "bag", maker, 5, [(0.0, "start", 1, "sway")])
    spans = [Span(START + 3 * SECOND, START + 4 * SECOND, "second"), Span(START, START + 2 * SECOND, "first")]
    replay, _ = play(folder, contract, spans=spans)
    assert seconds(replay.played) == [(0, 2, "first"), (3, 4, "second")]
    with pytest.raises(BagError, match="has no task"):
        play(folder, contract, spans=[Span(START, START + SECOND, "")])


# Memory ---------------------------------------------------------------------------------------------


def test_all_modes_see_the_same_ticks_and_each_has_its_own_memory(tmp_path, maker, contract):
    events = [(0.0, "start", 1, "sway"), (1.95, "start", 2, "sway")]
    folder = write_run(tmp_path / "bag", maker, 4, events)
    modes = ("on", "off", "reset_every_step", "stale")
    replay, engine = play(folder, contract, modes)
    for played in replay.played:
        stamps = [[i.stamp for i in played.inferences[mode]] for mode in modes]
        assert stamps[0] == stamps[1] == stamps[2] == stamps[3] and len(stamps[0]) == 4
    on, every, stale = (
        [writes for k, (_, writes, _, _) in enumerate(engine.asked) if k % 3 == mode] for mode in range(3)
    )
    assert on == [*range(4), *range(4)]
    assert every == [0] * 8
    assert stale == [*range(8)]


# Figures --------------------------------------------------------------------------------------------


def test_errors_are_against_where_the_joints_went(tmp_path, maker, contract):
    folder = write_run(tmp_path / "bag", maker, 6, [(1.0, "start", 1, "sway")])
    replay, _ = play(folder, contract)
    target = measures.Target(replay.reference)
    assert target.kind == "joint states"
    error = measures.errors(replay.played[0].inferences["on"], target, contract)
    assert error.shape == (10, 8, 6)
    # This engine knows the future; what lies beyond the bag's end is not counted.
    assert np.nanmax(error) < 0.01
    summary = measures.error_summary(error, contract)
    assert 70 < summary["compared"] < 80
    assert set(summary["per_joint_deg"]) == set(ROBOT_JOINTS) and len(summary["per_horizon_step_deg"]) == 8


def test_what_the_robot_did_after_an_episode_is_not_held_against_its_chunks(tmp_path, maker, contract):
    events = [(1.0, "start", 1, "sway"), (3.0, "stop", 1, "sway")]
    replay, _ = play(write_run(tmp_path / "bag", maker, 6, events), contract)
    (played,) = replay.played
    target, last = measures.Target(replay.reference), played.inferences["on"][-1]
    compared = np.isfinite(measures.errors([last], target, contract, played.end)[0, :, 0])
    times = last.stamp + np.arange(8) * contract.control_period
    assert compared.tolist() == (times <= START + 3 * SECOND).tolist() and 0 < compared.sum() < 8
    assert np.isfinite(measures.errors([last], target, contract)).all()


def test_errors_are_against_what_was_commanded_where_that_is_known(tmp_path, maker, contract):
    off = np.radians(10)
    path = [[(1 + t) / 10 + off, 0, 0, 0, 0, 0.5] for t in (0.0, 3.0)]
    commands = [(1.0, (0.0, 3.0), path), (2.5, (0.0,), [[9.0, 0, 0, 0, 0, 0.5]])]
    folder = write_run(tmp_path / "bag", maker, 6, [(1.0, "start", 1, "sway")], commands=commands)
    replay, _ = play(folder, contract)
    target = measures.Target(replay.reference)
    assert target.kind == "commands"
    first = replay.played[0].inferences["on"][0]
    error = measures.errors([first], target, contract)
    np.testing.assert_allclose(error[0, :, 0], 10, atol=0.3)
    np.testing.assert_allclose(error[0, :, 1:], 0, atol=1e-6)
    # A later command replaces one that still lasts; a single goal holds for a while, then nothing is known.
    at = np.array([START + round(t * SECOND) for t in (0.5, 2.4, 2.6, 2.8)])
    known = target.at(at)[:, 0]
    assert np.isnan(known[[0, 3]]).all()
    np.testing.assert_allclose(known[1:3], [0.24 + off, 9.0], atol=1e-6)


def test_seams_are_measured_against_the_inside_of_chunks(contract):
    from smolvla_mem_ros.bags.replay import Inference as Played

    def chunk(stamp, first, speed):
        positions = np.zeros((8, 6))
        positions[:, 0] = np.radians(first + speed * np.arange(8) / 10)
        return Played(stamp, 0, positions, np.ones(1), np.zeros(1), 0.01)

    smooth = measures.smoothness([[chunk(0, 0, 10), chunk(SECOND // 2, 5, 10)]], contract)
    assert smooth["seams"] == 1 and smooth["jerk_rms_deg_s3"] == pytest.approx(0, abs=1e-6)
    assert smooth["seam_jump"]["position_deg"]["max"] == pytest.approx(0, abs=1e-6)
    jumping = measures.smoothness([[chunk(0, 0, 10), chunk(SECOND // 2, 8, 30)]], contract)
    assert jumping["seam_jump"]["position_deg"]["max"] == pytest.approx(3)
    assert jumping["seam_jump"]["velocity_deg_s"]["max"] == pytest.approx(20)
    assert jumping["inside_p99"]["position_deg"] == pytest.approx(3)
    # Episodes do not join.
    assert measures.smoothness([[chunk(0, 0, 10)], [chunk(SECOND // 2, 5, 10)]], contract)["seams"] == 0


# What is wrong --------------------------------------------------------------------------------------


def test_what_the_contract_asks_for_and_is_not_there_is_named(tmp_path, maker, contract):
    folder = tmp_path / "bag"
    with BagWriter(folder) as writer:
        writer.add_topic("/cam_front", KINDS[IMAGES])
        writer.add_topic(JOINT_STATES, KINDS[IMAGES])
        writer.write("/cam_front", START, maker.raw(IMAGES, START))
    with Bag(folder) as bag, pytest.raises(BagError) as raised:
        find_topics(bag, contract)
    no_states = "joint_states: no joint_states of type sensor_msgs/msg/JointState"
    for words in (no_states, "front: no", "wrist: no", "inspect_bag"):
        assert words in str(raised.value)


def test_topics_in_a_namespace_are_found(tmp_path, maker, contract):
    with BagWriter(tmp_path / "bag") as writer:
        for topic in (IMAGES, WRIST, JOINT_STATES):
            writer.add_topic("/left" + topic, KINDS[JOINT_STATES if topic == JOINT_STATES else IMAGES])
        writer.write("/left" + JOINT_STATES, START, maker.robot_state(START, np.zeros(6)))
    with Bag(tmp_path / "bag") as bag:
        topics = find_topics(bag, contract)
    assert set(topics.streams) == {"/left" + topic for topic in (IMAGES, WRIST, JOINT_STATES)}
    assert topics.commands is None


def test_stamps_of_another_clock_are_counted_and_done_without(tmp_path, maker, contract):
    folder = write_run(
        tmp_path / "bag", maker, 4, [(0.5, "start", 1, "sway")], offset=1e5, camera_offset=0.03
    )
    replay, engine = play(folder, contract)
    assert len(engine.asked) == 7
    states, front = (replay.clocks[name].summary() for name in ("joint_states", "front"))
    assert states["stamped_by_another_clock"] == states["messages"] == 200
    assert (front["stamped_by_another_clock"], front["median_delay_s"]) == (0, 0.03)
    assert front["rate_hz"] == pytest.approx(15, abs=0.1)


def test_a_stamp_from_far_away_does_not_make_it_tick_for_ever(tmp_path, maker, contract):
    folder = tmp_path / "bag"
    with BagWriter(folder) as writer:
        for topic in (IMAGES, WRIST, JOINT_STATES, EVENTS):
            writer.add_topic(topic, KINDS.get(topic, KINDS[IMAGES]))
        writer.write(EVENTS, START, maker.event(START, "start"))
        for stamp in (START, START + SECOND, START + 10**9 * SECOND):
            writer.write(JOINT_STATES, stamp, maker.robot_state(stamp, np.zeros(6)))
    replay, _ = play(folder, contract)
    (played,) = replay.played
    assert played.skips["nothing was recorded"] > 9e9


def test_messages_that_cannot_be_used_are_counted(tmp_path, maker, contract):
    folder = tmp_path / "bag"
    with BagWriter(folder) as writer:
        for topic in (IMAGES, WRIST, JOINT_STATES):
            writer.add_topic(topic, KINDS.get(topic, KINDS[IMAGES]))
        writer.add_topic(COMMANDS, "trajectory_msgs/msg/JointTrajectory")
        for i in range(200):
            stamp = START + i * SECOND // 50
            joints = [np.nan] * 6 if i < 50 else np.zeros(6)
            writer.write(JOINT_STATES, stamp, maker.robot_state(stamp, joints))
            writer.write(IMAGES, stamp, maker.raw(IMAGES, stamp)[: None if i < 150 else 60])
            writer.write(WRIST, stamp, maker.raw(IMAGES, stamp))
        writer.write(COMMANDS, stamp, b"\0\1\0\0")
        writer.write(WRIST, stamp, b"\0")
    replay, engine = play(folder, contract, task="sway")
    assert (
        replay.unused["joint state: the position of " + ", ".join(ROBOT_JOINTS) + " is not a finite number"]
        == 50
    )
    assert (
        sum(count for what, count in replay.unused.items() if what.startswith(("wrist", "a message of"))) == 2
    )
    assert 4 <= len(engine.asked) <= 5
    assert replay.played[0].skips["missing: front"] > 5


def test_an_inference_that_fails_is_told_and_the_others_go_on(tmp_path, maker, contract):
    class Failing(Engine):
        def infer(self, observation, memory, episode_id, step):
            if len(self.asked) == 2:
                self.asked.append(None)
                raise EngineError("the policy gave actions that are not finite")
            return super().infer(observation, memory, episode_id, step)

    folder = write_run(tmp_path / "bag", maker, 4, [(0.5, "start", 1, "sway")])
    replay, _ = play(folder, contract, engine=Failing())
    (played,) = replay.played
    assert played.failures == ["on: the policy gave actions that are not finite"]
    assert len(played.inferences["on"]) == 6


def test_recorded_ticks_need_a_bag_that_tells_them(tmp_path, maker, contract):
    folder = write_run(tmp_path / "bag", maker, 1)
    with pytest.raises(BagError, match="--ticks clock"):
        play(folder, contract, task="sway", recorded_ticks=True)
