# SPDX-License-Identifier: Apache-2.0
"""The campaigns against the arm's loop run in small, and each of their figures can be bad."""

import time
from dataclasses import replace

import numpy as np
import pytest
from waiting import wait_until

from smolvla_mem_ros.evaluation import arm_faults, arm_seams, arm_stops
from smolvla_mem_ros.evaluation.arm_bench import RecordingDriver, Write, running_arm
from smolvla_mem_ros.evaluation.arm_limits import violations
from smolvla_mem_ros.evaluation.arm_path import IdealPath, Stream
from smolvla_mem_ros.policy.checkpoint import load_config
from smolvla_mem_ros.runtime.contract import load_contract
from smolvla_mem_ros.share import CHECKPOINT, CONTRACT, share_path
from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig
from smolvla_mem_ros.so100.driver import ArmState
from smolvla_mem_ros.so100.follower import Trajectory, TrajectoryPoint

CONFIG = ArmConfig()
PERIOD = 0.01


@pytest.fixture(scope="module")
def contract():
    return load_contract(share_path(CONTRACT), load_config(share_path(CHECKPOINT)))


@pytest.fixture
def path():
    return IdealPath.draw(np.random.default_rng(0), CONFIG, 0.5, 0.0)


def written(path, seconds=4.0, every=40):
    """A loop that does all as it should: goals on the path, a chunk taken every so many of them."""
    times = np.arange(0.0, seconds, PERIOD)
    return [
        Write(t, t + 0.001, p, p + 0.01, engagement=1, accepted=i // every)
        for i, (t, p) in enumerate(zip(times, path.at(times)[0], strict=True))
    ]


# The path and its chunks ------------------------------------------------------------------------


def test_paths_keep_the_limits_and_their_share_of_the_velocity(path):
    position, velocity = path.at(np.arange(0, 100, 0.01))
    assert (position > CONFIG.lower).all() and (position < CONFIG.upper).all()
    assert (np.abs(velocity) <= 0.5 * CONFIG.max_velocity).all()
    np.testing.assert_allclose(np.gradient(position, 0.01, axis=0)[1:-1], velocity[1:-1], atol=1e-3)


def test_chunks_are_the_policy_nodes_and_disagree_as_much_as_asked(path, contract):
    random = np.random.default_rng(0)
    chunk = Stream().chunk(path, 10**9, contract, random)
    np.testing.assert_allclose(chunk.positions, path.at(1.0 + chunk.times)[0], atol=1e-9)
    assert chunk.velocities[-1].tolist() == [0] * 6 and chunk.velocities[5].any()
    stream = Stream(disagreement=0.02)
    first = np.array([stream.chunk(path, 10**9, contract, random).positions[0] for _ in range(2000)])
    assert np.sqrt((np.diff(first, axis=0) ** 2).mean()) == pytest.approx(0.02, rel=0.1)


# Limits -----------------------------------------------------------------------------------------


def test_a_loop_that_keeps_the_limits_has_no_violations(path):
    assert violations(written(path), CONFIG).total == 0
    assert violations([], CONFIG).total == 0


def off(write, by):
    return replace(write, position=write.position + by)


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("velocity", lambda w: off(w, [0.05, 0, 0, 0, 0, 0])),
        ("acceleration", lambda w: off(w, [0, 0.01, 0, 0, 0, 0])),
        ("position", lambda w: replace(w, position=np.array([0, 0, 0, 0, 0, 1.8]))),
        ("not_finite", lambda w: off(w, [np.nan, 0, 0, 0, 0, 0])),
        ("jump", lambda w: replace(w, engagement=2, measured=w.position + 0.2)),
    ],
)
def test_each_broken_limit_is_counted(path, kind, spoil):
    writes = written(path)
    last = -1 if kind == "jump" else 200
    writes[last] = spoil(writes[last])
    assert getattr(violations(writes, CONFIG), kind) >= 1


@pytest.mark.parametrize("joints", [range(6), [2]], ids=["the arm", "a joint"])
def test_what_is_held_where_it_is_measured_begins_anew(path, joints):
    writes, held = written(path), np.isin(range(6), joints)
    there = writes[200].position - 0.05

    def holding(write):
        position = np.where(held, there, write.position)
        return replace(write, position=position, measured=np.where(held, there, write.measured))

    writes[200:] = [holding(write) for write in writes[200:]]
    assert violations(writes, CONFIG).total == 0
    writes[201] = off(writes[201], 0.05 * held)
    assert violations(writes, CONFIG).velocity == 1


# Seams ------------------------------------------------------------------------------------------


def test_a_follower_without_seams_has_the_ratio_of_the_path(path):
    found = arm_seams.seams(written(path), path, CONFIG)
    assert found["seams"] == 9
    assert found["ratio"] == found["ratio_of_path"] and found["ratio_added"] < 1e-6


def test_a_jump_at_a_seam_is_seen_and_one_inside_a_chunk_is_not_taken_for_it(path):
    jump = np.full(6, np.radians(1))
    at_seam, inside = written(path), written(path)
    at_seam[80:] = [off(w, jump) for w in at_seam[80:]]
    inside[110:] = [off(w, jump) for w in inside[110:]]
    assert arm_seams.seams(at_seam, path, CONFIG)["ratio"] > 20
    assert arm_seams.seams(inside, path, CONFIG)["ratio"] < 2


def test_errors_are_told_with_and_without_the_servos_lag(path):
    times = np.arange(0.5, 4.0, PERIOD)
    states = [ArmState(t, path.at(t - 0.04)[0], np.zeros(6)) for t in times]
    writes = [off(w, np.radians(0.5)) for w in written(path)]
    found = arm_seams.tracking(writes, states, path)
    assert found["servo_lag_ms"] == 40
    assert found["tracking_error_deg"]["rms"]["elbow_flex"] == pytest.approx(0.5)
    assert max(found["measured_error_without_lag_deg"]["max"].values()) < 0.01
    assert min(found["measured_error_deg"]["max"].values()) > 0.1


def test_late_chunks_are_followed_on_the_emulated_arm(contract):
    found = arm_seams.measure(4.0, Stream(), contract, 0)
    assert found["seams"] >= 8 and found["rejected"] == found["limit_violations"] == 0
    assert found["ratio_added"] < 1
    assert max(found["tracking_error_deg"]["rms"].values()) < 0.2
    assert found["servo_lag_ms"] > 10


# Faults -----------------------------------------------------------------------------------------


def test_the_draw_is_repeatable_and_even():
    first, second = (arm_faults.draw(30, np.random.default_rng(3)) for _ in range(2))
    assert [(f.kind, f.begin, f.seconds) for f in first] == [(f.kind, f.begin, f.seconds) for f in second]
    counts = [sum(f.kind == kind for f in first) for kind in arm_faults.KINDS]
    assert set(counts) == {2, 3}


def test_an_arm_that_lies_still_lags_or_goes_astray_does_not_move_as_told():
    told = np.linspace(0, 0.1, 11)[:, None] * np.ones(6)
    assert arm_faults.moves_as_told(told, told - 0.03)
    assert not arm_faults.moves_as_told(told, np.full_like(told, 0.05))
    assert not arm_faults.moves_as_told(told, told - 0.3)
    assert not arm_faults.moves_as_told(told, -told)
    assert not arm_faults.moves_as_told(np.zeros_like(told), np.zeros_like(told)), "nothing was asked of it"


def test_faults_without_a_name_and_motions_that_do_not_resume_are_counted():
    outcomes = [
        arm_faults.Outcome("unplugged", named=True, lost=True, resumed=0.5),
        arm_faults.Outcome("unplugged", named=False, lost=True, resumed=1.2),
        arm_faults.Outcome("stuck servo", named=True, lost=False, resumed=None),
    ]
    found = arm_faults.summary(outcomes)
    assert found["not_named"] == 1 and found["resumed_late"] == 2
    assert found["kinds"]["unplugged"] == {
        "count": 2, "named": 1, "connection_lost": 2, "slowest_resume_s": 1.2, "resumed_late": 1,
    }  # fmt: skip
    assert found["kinds"]["stuck servo"]["slowest_resume_s"] is None


@pytest.mark.slow
def test_a_few_faults_are_named_and_survived(contract):
    done = []
    found = arm_faults.measure(len(arm_faults.KINDS), contract, 1, lambda: done.append(1))
    assert len(done) == sum(each["count"] for each in found["kinds"].values()) == len(arm_faults.KINDS)
    assert found["not_named"] == found["exceptions"] == 0, found
    assert sum(found["limit_violations"].values()) == 0
    assert all(each["slowest_resume_s"] is not None for each in found["kinds"].values())


def test_a_servo_that_has_cooled_comes_back_without_a_jump():
    with running_arm(0) as bench:
        up = bench.driver.states[-1].position + [0, 0.8, -0.8, 0, 0, 0]
        bench.loop.submit(Trajectory(JOINTS, [TrajectoryPoint(2.0, up)]))
        wait_until(lambda: bench.driver.states[-1].position[1] > up[1] - 0.5)
        bench.emulator.command("overheat shoulder_lift 80")
        time.sleep(1.0)  # the joint sinks
        sunk = len(bench.driver.states)
        bench.emulator.command("cool shoulder_lift")
        wait_until(lambda: any("over: servo 2 (shoulder_lift) is over" in text for _, text in bench.events))
        time.sleep(0.5)
        after = np.array([state.position[1] for state in bench.driver.states[sunk:]])
        assert up[1] - after[0] > 0.3
        assert np.abs(np.diff(after)).max() / PERIOD < 1.5


class Careless(RecordingDriver):
    """Jumps now and then."""

    def write(self, position):
        super().write(position + 0.1 * (len(self.writes) % 50 == 0))


def test_a_driver_that_breaks_limits_is_found_out(contract, monkeypatch):
    monkeypatch.setattr(arm_faults, "KINDS", {"warm servo": arm_faults.KINDS["warm servo"]})
    found = arm_faults.measure(1, contract, 0, kind=Careless)
    assert found["limit_violations"]["velocity"] > 0


# Stops ------------------------------------------------------------------------------------------


def test_stops_are_timed_on_the_emulated_arm(contract):
    found = arm_stops.measure(5, contract, 0)
    assert found["trials"] == 5 and found["exceptions"] == 0
    assert 0 <= found["last_motion_ms"]["p50"] <= found["last_motion_ms"]["max"] < 50
    assert found["held_ms"]["p50"] > 0


def test_motion_after_a_stop_counts_until_its_last_write(path):
    writes = written(path, seconds=0.2)
    held = [replace(w, position=writes[9].position) for w in writes[10:]]
    last, hold = arm_stops.delays(0.0855, writes[:9] + held)
    assert last == 0.0 and hold == pytest.approx(0.101 - 0.0855)
    # It goes on for 50 ms before it is held, by the write at 0.14 s.
    late = [replace(w, position=writes[14].position) for w in writes[15:]]
    assert arm_stops.delays(0.0855, writes[:15] + late)[0] == pytest.approx(0.131 - 0.0855)
