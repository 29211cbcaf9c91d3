# SPDX-License-Identifier: Apache-2.0
"""The loop keeps its rate, survives what goes wrong with the arm, and never lets anything make it jump."""

import threading
import time

import numpy as np
import pytest
from waiting import wait_until

from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig
from smolvla_mem_ros.so100.driver import ArmError, ArmState
from smolvla_mem_ros.so100.follower import Trajectory, TrajectoryPoint
from smolvla_mem_ros.so100.goals import Code, Goal, Tolerances
from smolvla_mem_ros.so100.health import Servos
from smolvla_mem_ros.so100.loop import ArmLoop
from smolvla_mem_ros.so100.requests import (
    CancelGoal,
    ClearEmergencyStop,
    EmergencyStop,
    SpeedScaling,
    SwitchTorque,
)


class FakeDriver:
    """An arm that is at once where it is told to be; ``broken`` makes every call fail with that text."""

    def __init__(self):
        self.position = np.full(6, 0.1)
        self.limits = (np.full(6, -9.0), np.full(6, 9.0))
        self.repeated_reads = 0
        self.servos = None
        self.broken = ""
        self.calls = []
        self.written = []

    def _call(self, name):
        self.calls.append(name)
        if self.broken:
            raise ArmError(self.broken)

    def connect(self):
        self._call("connect")

    def engage(self):
        self._call("engage")
        return self.position.copy()

    def release(self):
        self._call("release")

    def read(self):
        self._call("read")
        return ArmState(time.monotonic(), self.position.copy(), np.zeros(6), self.servos)

    def write(self, position):
        self._call("write")
        assert np.isfinite(position).all()
        self.written.append((time.monotonic(), position.copy()))
        self.position = position.copy()

    def close(self, torque_off):
        self.calls.append(f"close torque_off={torque_off}")


class Rig:
    def __init__(self, driver, **options):
        self.driver, self.states, self.events = driver, [], []
        settings = {"rate": 200.0, "command_timeout": 0.0, "torque_off_at_end": True, "dry_run": False}
        self.loop = ArmLoop(
            driver,
            options.pop("config", ArmConfig()),
            on_state=self.states.append,
            on_event=lambda level, text: self.events.append((level, text)),
            **settings | options,
        )

    def told(self, text):
        return sum(text in event for _, event in self.events)


@pytest.fixture
def start():
    rigs = []

    def start(driver=None, connected=True, **options):
        rig = Rig(driver or FakeDriver(), **options)
        rigs.append(rig)
        rig.loop.start()
        if connected:
            wait_until(lambda: rig.loop.status.connected)
        return rig

    yield start
    for rig in rigs:
        assert rig.loop.stop(2.0)


def go(position, seconds=0.2):
    return Trajectory(JOINTS, [TrajectoryPoint(seconds, [position] * 6)])


def test_it_connects_holds_still_and_reports_the_measured_state(start):
    rig = start()
    wait_until(lambda: len(rig.states) > 20)
    assert rig.loop.status.state == "holding"
    assert all((position == 0.1).all() for _, position in rig.driver.written)
    assert rig.driver.calls[:3] == ["connect", "read", "engage"]


def test_a_trajectory_is_followed_in_small_steps(start):
    rig = start()
    rig.loop.submit(go(0.5))
    wait_until(lambda: rig.loop.status.state == "moving")
    wait_until(lambda: rig.loop.status.state == "holding")
    positions = np.array([position[0] for _, position in rig.driver.written])
    assert positions[-1] == 0.5 and np.diff(positions).max() <= 3.0 * 0.1
    assert rig.loop.status.accepted == 1


def test_a_rejected_trajectory_is_told_once_and_changes_nothing(start):
    rig = start()
    for _ in range(5):
        rig.loop.submit(Trajectory(JOINTS, []))
    wait_until(lambda: rig.loop.status.rejected == 5)
    assert rig.told("trajectory rejected: it has no points") == 1
    assert "no points" in rig.loop.status.last_rejection
    time.sleep(0.05)
    assert all((position == 0.1).all() for _, position in rig.driver.written)


def test_the_rate_is_kept_and_measured(start):
    rig = start(rate=100.0)
    time.sleep(2.2)
    assert rig.loop.status.loop_rate == pytest.approx(100, rel=0.1)


def test_periods_that_were_missed_are_counted_and_not_made_up_for(start):
    rig = start(rate=100.0)
    wait_until(lambda: len(rig.states) > 5)
    slow, rig.driver.read = rig.driver.read, lambda: (time.sleep(0.1), slow())[1]
    wait_until(lambda: rig.loop.status.missed_cycles >= 8)
    rig.driver.read = slow
    before = len(rig.driver.written)
    time.sleep(0.3)
    assert len(rig.driver.written) - before < 45


# The arm goes and comes -------------------------------------------------------------------------


def test_a_missing_arm_is_told_once_and_tried_again(start, monkeypatch):
    monkeypatch.setattr("smolvla_mem_ros.so100.loop.RETRY_PERIOD", 0.05)
    driver = FakeDriver()
    driver.broken = "there is no serial port"
    rig = start(driver, connected=False)
    wait_until(lambda: driver.calls.count("connect") >= 4)
    assert rig.told("there is no serial port") == 1
    assert not rig.states and not rig.loop.status.connected
    driver.broken = ""
    wait_until(lambda: rig.loop.status.connected)
    assert rig.told("connected and holding still") == 1


def test_a_lost_arm_is_closed_reported_and_held_where_it_is_found_again(start, monkeypatch):
    monkeypatch.setattr("smolvla_mem_ros.so100.loop.RETRY_PERIOD", 0.05)
    rig = start()
    rig.loop.submit(go(1.0, seconds=5.0))
    wait_until(lambda: rig.loop.status.state == "moving")
    rig.driver.broken = "the port is gone"
    wait_until(lambda: not rig.loop.status.connected)
    wait_until(lambda: rig.driver.calls.count("connect") > 3)
    assert rig.told("the port is gone") == 1
    assert "close torque_off=False" in rig.driver.calls
    rig.driver.position = np.full(6, -0.2)
    written = len(rig.driver.written)
    rig.driver.broken = ""
    wait_until(lambda: len(rig.driver.written) > written + 20)
    assert all((position == -0.2).all() for _, position in rig.driver.written[written:])
    assert rig.loop.status.connections == 2


def test_causes_that_take_turns_are_told_once_each_until_the_arm_was_there(start, monkeypatch):
    monkeypatch.setattr("smolvla_mem_ros.so100.loop.RETRY_PERIOD", 0.05)
    driver = FakeDriver()
    driver.broken = "first cause"
    rig = start(driver, connected=False)
    for number in range(4):
        driver.broken = ("second cause", "first cause")[number % 2]
        calls = driver.calls.count("connect")
        wait_until(lambda calls=calls: driver.calls.count("connect") > calls + 1)
    assert rig.told("first cause") == rig.told("second cause") == 1
    driver.broken = ""
    wait_until(lambda: rig.loop.status.connected)
    driver.broken = "first cause"
    wait_until(lambda: rig.told("first cause") == 2)


def test_trajectories_for_a_missing_arm_are_rejected_with_the_cause(start):
    driver = FakeDriver()
    driver.broken = "there is no serial port"
    rig = start(driver, connected=False)
    rig.loop.submit(go(0.5))
    wait_until(lambda: rig.loop.status.rejected == 1)
    assert rig.told("not connected: there is no serial port") == 1


def test_a_defect_in_a_cycle_does_not_end_the_loop(start, monkeypatch):
    monkeypatch.setattr("smolvla_mem_ros.so100.loop.RETRY_PERIOD", 0.05)
    rig = start()
    good, rig.driver.write = rig.driver.write, lambda position: 1 / 0
    wait_until(lambda: rig.told("ZeroDivisionError in the control loop"))
    rig.driver.write = good
    wait_until(lambda: rig.loop.status.connected)


def test_limits_that_do_not_meet_the_calibration_are_explained(start):
    driver = FakeDriver()
    driver.limits = (np.full(6, 5.0), np.full(6, 6.0))
    rig = start(driver, connected=False)
    wait_until(lambda: rig.told("position limits do not meet the calibrated ranges"))


def test_an_arm_found_just_beyond_its_limits_is_held_and_named(start):
    driver = FakeDriver()
    driver.position = np.array([0, 1.8, 0, 0, 0, 0])
    rig = start(driver)
    wait_until(lambda: len(driver.written) > 5)
    assert rig.told("shoulder_lift beyond its limits") == 1
    assert all((position == [0, 1.8, 0, 0, 0, 0]).all() for _, position in driver.written)


def test_an_arm_found_outside_is_not_started_until_it_is_moved_inside(start, monkeypatch):
    monkeypatch.setattr("smolvla_mem_ros.so100.loop.RETRY_PERIOD", 0.05)
    driver = FakeDriver()
    driver.position = np.array([0, 2.5, 0, 0, -3.5, 0])
    rig = start(driver, connected=False)
    wait_until(lambda: driver.calls.count("connect") > 3)
    assert rig.told("shoulder_lift is at 2.50 rad, its limits are -1.75 to 1.75; wrist_roll") == 1
    assert rig.told("Move it inside by hand") == 1
    assert not {"engage", "write"} & set(driver.calls)
    driver.position = np.zeros(6)
    wait_until(lambda: driver.written)


def test_torque_does_not_come_back_to_an_arm_outside(start):
    rig = start()
    rig.loop.request(SwitchTorque(False)).result(1)
    rig.driver.position = np.array([0, 2.5, 0, 0, 0, 0])
    time.sleep(0.05)
    with pytest.raises(ArmError, match=r"shoulder_lift is at 2\.50 rad"):
        rig.loop.request(SwitchTorque(True)).result(1)
    assert rig.loop.status.state == "torque off"
    rig.driver.position = np.zeros(6)
    time.sleep(0.05)
    assert "torque is on" in rig.loop.request(SwitchTorque(True)).result(1)


# What the servos report -------------------------------------------------------------------------


def test_a_servo_that_is_not_well_is_named_once_and_so_is_its_recovery(start):
    rig = start()
    hot = np.zeros(6)
    hot[3] = 65.0
    for temperature, words in ((hot, "servo 4 (wrist_flex) is warm"), (np.zeros(6), "over: servo 4")):
        rig.driver.servos = Servos(np.zeros(6), np.full(6, 7.4), temperature, np.zeros(6, int))
        wait_until(lambda words=words: rig.told(words))
    time.sleep(0.05)
    assert rig.told("servo 4") == 2
    assert rig.loop.status.servos.voltage[0] == 7.4


def test_a_joint_that_does_not_follow_is_named(start):
    rig = start()
    move = rig.driver.write

    def stuck(position):
        move(position)
        rig.driver.position[2] = 0.1

    rig.driver.write = stuck
    rig.loop.submit(go(1.0))
    wait_until(lambda: rig.told("servo 3 (elbow_flex) does not follow"))
    assert rig.loop.status.problems == (
        "servo 3 (elbow_flex) does not follow; free the joint, and see what holds it",
    )
    rig.driver.write = move
    wait_until(lambda: rig.told("over: servo 3"))


def test_a_joint_that_its_servo_let_go_of_comes_back_where_it_was_measured(start):
    rig = start()
    told = rig.driver.write

    def sinking(position):
        told(position)
        if rig.driver.servos is not None and rig.driver.servos.limp[2]:
            rig.driver.position[2] = max(sunk[2], rig.driver.position[2] - 0.05)

    sunk, hot = np.full(6, -0.3), np.zeros(6, int)
    hot[2] = 4
    rig.driver.write = sinking
    goal = aim(1.0, 2.0)
    rig.loop.submit(goal)
    wait_until(lambda: rig.driver.position[0] > 0.3)
    rig.driver.servos = Servos(np.zeros(6), np.full(6, 7.4), np.full(6, 75.0), hot)
    wait_until(lambda: rig.driver.position[2] == sunk[2])
    assert "servo 3 (elbow_flex) is overheated" in goal.ended.result(1).text
    held = rig.driver.written[-1][1]
    assert held[0] > 0.3
    rig.loop.submit(go(1.0))
    wait_until(lambda: rig.told("trajectory rejected: servo 3 (elbow_flex) is overheated"))

    rig.driver.servos = Servos(np.zeros(6), np.full(6, 7.4), np.full(6, 69.0), np.zeros(6, int))
    wait_until(lambda: rig.told("over: servo 3 (elbow_flex) is overheated"))
    back = rig.driver.written[-1][1]
    assert back[2] == sunk[2] and np.array_equal(np.delete(back, 2), np.delete(held, 2))
    rig.loop.submit(go(0.0, 1.0))
    wait_until(lambda: np.allclose(rig.driver.position, 0.0))


def test_speed_scaling_slows_the_motion_under_way(start):
    rig = start()
    rig.loop.submit(go(1.1, seconds=1.0))
    wait_until(lambda: rig.loop.status.state == "moving")
    assert "10%" in rig.loop.request(SpeedScaling(0.1)).result(1)
    time.sleep(0.3)
    begin = len(rig.driver.written)
    wait_until(lambda: len(rig.driver.written) > begin + 20)
    times, positions = zip(*rig.driver.written[begin:], strict=True)
    assert (np.ptp(positions, axis=0) <= 0.31 * (times[-1] - times[0]) + 0.003).all()


def test_what_the_system_refuses_is_told_and_the_loop_runs_all_the_same(start):
    rig = start(cpu=4095)
    assert rig.told("cannot keep to processor 4095") == 1
    wait_until(lambda: rig.loop.status.period_jitter_p99 >= 0, timeout=3.0)


# Stopping ---------------------------------------------------------------------------------------


def test_emergency_stop_holds_the_measured_position_until_it_is_cleared(start):
    rig = start()
    rig.loop.submit(go(1.0, seconds=2.0))
    wait_until(lambda: rig.driver.position[0] > 0.2)
    assert "stopped" in rig.loop.request(EmergencyStop()).result(1)
    wait_until(lambda: rig.loop.status.state == "stopped")
    stopped_at = rig.driver.position[0]
    rig.loop.submit(go(0.9))
    wait_until(lambda: rig.loop.status.rejected == 1)
    assert rig.told("emergency stop") == 1
    time.sleep(0.1)
    assert rig.driver.position[0] == stopped_at < 1.0
    rig.loop.request(ClearEmergencyStop()).result(1)
    rig.loop.submit(go(0.9))
    wait_until(lambda: rig.driver.position[0] == 0.9)


def test_no_write_moves_the_arm_later_than_one_period_after_a_stop(start):
    rig = start(rate=100.0)
    rig.loop.submit(go(1.5, seconds=5.0))
    wait_until(lambda: rig.loop.status.state == "moving")
    time.sleep(0.2)
    asked = time.monotonic()
    rig.loop.request(EmergencyStop()).result(1)
    time.sleep(0.1)
    times, positions = zip(*rig.driver.written, strict=True)
    moves = np.flatnonzero(np.abs(np.diff([p[0] for p in positions])) > 0)
    assert times[moves[-1] + 1] - asked < 0.015


def test_an_emergency_stop_outlasts_the_loss_of_the_arm(start, monkeypatch):
    monkeypatch.setattr("smolvla_mem_ros.so100.loop.RETRY_PERIOD", 0.05)
    rig = start()
    rig.driver.broken = "gone"
    wait_until(lambda: not rig.loop.status.connected)
    rig.loop.request(EmergencyStop()).result(1)
    rig.driver.broken = ""
    wait_until(lambda: rig.loop.status.state == "stopped")


def test_torque_off_lets_go_and_stays_off_when_the_arm_returns(start, monkeypatch):
    monkeypatch.setattr("smolvla_mem_ros.so100.loop.RETRY_PERIOD", 0.05)
    rig = start()
    assert "torque is off" in rig.loop.request(SwitchTorque(False)).result(1)
    written = len(rig.driver.written)
    rig.driver.position = np.full(6, -0.15)
    rig.loop.submit(go(0.5))
    wait_until(lambda: rig.told("torque is off; call ~/enable"))
    rig.driver.broken = "gone"
    wait_until(lambda: not rig.loop.status.connected)
    rig.driver.broken = ""
    wait_until(lambda: rig.loop.status.state == "torque off")
    assert len(rig.driver.written) == written and rig.driver.calls.count("engage") == 1
    rig.loop.request(SwitchTorque(True)).result(1)
    wait_until(lambda: len(rig.driver.written) > written + 5)
    assert all((position == -0.15).all() for _, position in rig.driver.written[written:])


def test_requests_without_an_arm_are_answered_with_the_cause(start):
    driver = FakeDriver()
    driver.broken = "there is no serial port"
    rig = start(driver, connected=False)
    with pytest.raises(ArmError, match="no serial port"):
        rig.loop.request(SwitchTorque(True)).result(2)
    assert rig.loop.request(EmergencyStop()).result(2)


def test_asked_to_stop_by_a_signal_it_writes_where_the_arm_is_and_nothing_after(start):
    asked = threading.Event()
    rig = start(stop_asked=asked.is_set)
    rig.loop.submit(go(1.0, seconds=2.0))
    wait_until(lambda: rig.driver.position[0] > 0.3)
    asked.set()
    at = time.monotonic()
    wait_until(lambda: rig.driver.calls[-1].startswith("close"))
    moving = [
        when for when, position in rig.driver.written if when > at and position[0] != rig.driver.position[0]
    ]
    assert len(moving) <= 1


@pytest.mark.parametrize("torque_off", [True, False])
def test_the_end_leaves_torque_as_configured(start, torque_off):
    rig = start(torque_off_at_end=torque_off)
    started = time.monotonic()
    assert rig.loop.stop()
    assert time.monotonic() - started < 0.5
    assert rig.driver.calls[-1] == f"close torque_off={torque_off}"


def test_a_request_that_is_pending_at_the_end_is_answered_too(start):
    rig = start()
    slow = rig.driver.read
    rig.driver.read = lambda: (time.sleep(0.2), slow())[1]
    wait_until(lambda: rig.loop.status.missed_cycles > 5)
    futures = [rig.loop.request(EmergencyStop()) for _ in range(3)]
    rig.loop.stop()
    assert all(future.done() for future in futures)


def test_what_is_no_request_is_refused_at_once(start):
    with pytest.raises(TypeError, match="no request 'disable'"):
        start().loop.request("disable")


# Goals ------------------------------------------------------------------------------------------


def aim(position, seconds=0.2, path=0.0, goal_time=0.3):
    tolerances = Tolerances.from_parameters([path] * 6, [0.1] * 6, 0.1, goal_time)
    return Goal(go(position, seconds), tolerances)


def test_a_goal_is_followed_like_a_trajectory_and_reached(start):
    rig = start()
    goal = aim(0.5)
    rig.loop.submit(goal)
    assert goal.ended.result(5).code is Code.SUCCESSFUL
    assert rig.driver.position[0] == 0.5
    assert goal.progress.desired[0] == goal.progress.actual[0] == 0.5


def test_a_goal_the_arm_does_not_reach_is_given_up_and_the_arm_held_where_it_is(start):
    rig = start()
    stuck = np.full(6, 0.1)
    rig.driver.read = lambda: ArmState(time.monotonic(), stuck, np.zeros(6))
    goal = aim(0.5)
    rig.loop.submit(goal)
    ending = goal.ended.result(5)
    assert ending.code is Code.GOAL_TOLERANCE_VIOLATED and "shoulder_pan is off by 0.4 rad" in ending.text
    wait_until(lambda: (rig.driver.written[-1][1] == stuck).all())


def test_an_arm_that_leaves_its_path_is_held_in_the_same_cycle(start):
    rig = start()
    stuck = np.full(6, 0.1)
    rig.driver.read = lambda: ArmState(time.monotonic(), stuck, np.zeros(6))
    goal = aim(1.1, seconds=1.0, path=0.05)
    rig.loop.submit(goal)
    assert goal.ended.result(5).code is Code.PATH_TOLERANCE_VIOLATED
    wait_until(lambda: (rig.driver.written[-1][1] == stuck).all())
    # It was told to go little further than the tolerance, at 1 rad/s.
    assert max(position[0] for _, position in rig.driver.written) < 0.1 + 0.05 + 0.05


@pytest.mark.parametrize("next_one, why", [(aim(0.2), "another goal"), (go(0.2), "another trajectory")])
def test_whatever_is_followed_next_ends_a_goal(start, next_one, why):
    rig = start()
    goal = aim(1.0, seconds=3.0)
    rig.loop.submit(goal)
    wait_until(lambda: rig.loop.status.state == "moving")
    rig.loop.submit(next_one)
    ending = goal.ended.result(5)
    assert ending.code is Code.INVALID_GOAL and ending.text == f"{why} took over"
    wait_until(lambda: rig.driver.position[0] == 0.2)


def test_a_trajectory_that_is_rejected_ends_no_goal(start):
    rig = start()
    goal = aim(0.5, seconds=0.5)
    rig.loop.submit(goal)
    rig.loop.submit(Trajectory(JOINTS, []))
    assert goal.ended.result(5).code is Code.SUCCESSFUL
    assert rig.loop.status.rejected == 1


def test_a_canceled_goal_holds_the_arm_and_one_that_has_ended_is_left_alone(start):
    rig = start()
    first, second = aim(0.2, seconds=0.1), aim(1.0, seconds=3.0)
    rig.loop.submit(first)
    first.ended.result(5)
    rig.loop.submit(second)
    wait_until(lambda: rig.driver.position[0] > 0.3)
    assert rig.loop.request(CancelGoal(first)).result(1) == "that goal has ended"
    assert not second.ended.done()
    rig.loop.request(CancelGoal(second)).result(1)
    assert second.ended.result(1).canceled
    at = rig.driver.position[0]
    time.sleep(0.1)
    assert rig.driver.position[0] == pytest.approx(at, abs=0.02)


@pytest.mark.parametrize(
    "happens, why",
    [
        (lambda rig: rig.loop.request(EmergencyStop()), "emergency stop"),
        (lambda rig: rig.loop.request(SwitchTorque(False)), "torque was switched off"),
        (lambda rig: setattr(rig.driver, "broken", "the port is gone"), "the arm was lost: the port is gone"),
        (lambda rig: rig.loop.stop(2.0), "the node is ending"),
    ],
)
def test_a_goal_ends_with_what_stops_the_arm(start, happens, why):
    rig = start()
    goal = aim(1.0, seconds=3.0)
    rig.loop.submit(goal)
    wait_until(lambda: rig.loop.status.state == "moving")
    happens(rig)
    ending = goal.ended.result(5)
    assert ending.code is Code.INVALID_GOAL and ending.text == why


def test_why_a_trajectory_would_not_be_taken_can_be_asked(start):
    rig = start()
    assert rig.loop.refusal(go(0.5)) is None
    assert rig.loop.refusal(Trajectory(JOINTS, [])) == "it has no points"
    rig.loop.request(EmergencyStop()).result(1)
    assert "emergency stop" in rig.loop.refusal(go(0.5))
    rig.driver.broken = "the port is gone"
    wait_until(lambda: not rig.loop.status.connected)
    assert rig.loop.refusal(go(0.5)) == "the arm is not connected: the port is gone"
    late = aim(0.5)
    rig.loop.submit(late)
    assert late.ended.result(5).code is Code.INVALID_GOAL


def test_a_goal_with_a_stamp_ahead_is_not_judged_before_it_begins(start):
    rig = start(command_timeout=0.05)
    rig.loop.submit(go(0.2, seconds=0.1))
    wait_until(lambda: rig.loop.status.state == "moving")
    goal = Goal(
        Trajectory(JOINTS, [TrajectoryPoint(0.2, [0.6] * 6)], start=time.monotonic() + 0.6), aim(0).tolerances
    )
    rig.loop.submit(goal)
    time.sleep(0.4)
    assert not goal.ended.done() and rig.driver.position[0] == pytest.approx(0.2)
    assert goal.ended.result(5).code is Code.SUCCESSFUL
    assert rig.driver.position[0] == pytest.approx(0.6)


# Time-outs and dry runs -------------------------------------------------------------------------


def test_without_a_new_trajectory_the_measured_position_is_held_after_the_timeout(start):
    rig = start(command_timeout=0.2)
    rig.loop.submit(go(0.5, seconds=0.2))
    wait_until(lambda: rig.loop.status.timeouts == 1)
    blocked = np.full(6, 0.3)
    assert rig.driver.position[0] == 0.5
    rig.loop.submit(go(0.4, seconds=0.2))
    wait_until(lambda: rig.loop.status.accepted == 2 and rig.loop.status.state == "holding")
    rig.driver.read = lambda: ArmState(time.monotonic(), blocked, np.zeros(6))
    wait_until(lambda: rig.loop.status.timeouts == 2)
    wait_until(lambda: (rig.driver.written[-1][1] == blocked).all())
    assert rig.told("no new trajectory for 0.2 s") == 2


def test_a_trajectory_that_waits_for_its_stamp_outlasts_the_timeout_of_the_one_before(start):
    rig = start(command_timeout=0.1)
    rig.loop.submit(go(0.3, seconds=0.1))
    wait_until(lambda: rig.loop.status.state == "moving")
    rig.loop.submit(Trajectory(JOINTS, [TrajectoryPoint(0.1, [0.5] * 6)], start=time.monotonic() + 0.6))
    wait_until(lambda: rig.driver.position[0] == 0.5)


def test_a_request_that_is_given_up_is_not_done(start):
    rig = start()
    slow = rig.driver.read
    rig.driver.read = lambda: (time.sleep(0.2), slow())[1]
    wait_until(lambda: rig.loop.status.missed_cycles > 5)
    assert rig.loop.request(SpeedScaling(0.5)).cancel()
    rig.driver.read = slow
    rig.loop.request(ClearEmergencyStop()).result(1)
    assert rig.loop.config.speed_scaling == 1.0


def test_a_dry_run_reads_and_follows_but_writes_nothing(start):
    rig = start(dry_run=True)
    rig.loop.submit(go(0.5, seconds=0.1))
    wait_until(lambda: rig.loop.status.accepted == 1 and len(rig.states) > 30)
    rig.loop.request(SwitchTorque(False)).result(1)
    rig.loop.stop()
    assert not {"write", "engage", "release"} & set(rig.driver.calls)
    assert rig.driver.calls[-1] == "close torque_off=False"


def test_a_rejection_is_told_briefly_however_long_a_name_in_it_is(start):
    rig = start()
    rig.loop.submit(Trajectory(("thumb" * 10_000,), [TrajectoryPoint(0.2, [0.0])]))
    wait_until(lambda: rig.loop.status.rejected)
    assert rig.loop.status.last_rejection.startswith("unknown joint")
    assert len(rig.loop.status.last_rejection) <= 300
    assert max(len(text) for _, text in rig.events) < 350
