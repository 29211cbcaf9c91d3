# SPDX-License-Identifier: Apache-2.0
"""A goal succeeds only when the arm is there; a missed one says which joint is off by how much."""

from dataclasses import dataclass

import numpy as np
import pytest

from smolvla_mem_ros.so100.arm import JOINTS
from smolvla_mem_ros.so100.driver import ArmState
from smolvla_mem_ros.so100.follower import Sample, Trajectory, TrajectoryPoint
from smolvla_mem_ros.so100.goals import Code, Goal, Tolerances

NONE = [0.0] * 6


@dataclass
class Asked:
    name: str
    position: float = 0.0
    velocity: float = 0.0
    acceleration: float = 0.0


def tolerances(path=NONE, goal=NONE, stopped_velocity=0.0, goal_time=0.0):
    return Tolerances.from_parameters(path, goal, stopped_velocity, goal_time)


def goal_with(**which):
    goal = Goal(Trajectory(JOINTS, [TrajectoryPoint(1.0, [0.5] * 6)]), tolerances(**which))
    goal.begun = 100.0
    return goal


def told(position, moving, velocity=0.0):
    position, velocity = np.full(6, position), np.full(6, velocity)
    return Sample(position, velocity, False, moving, position, velocity)


def measured(position, time=100.5, velocity=0.0, joint=None):
    """All joints at one place; or ``joint`` alone, and the others at 0.5."""
    positions = np.full(6, position if joint is None else 0.5)
    if joint:
        positions[JOINTS.index(joint)] = position
    return ArmState(time, positions, np.full(6, velocity))


# What is judged ---------------------------------------------------------------------------------


def test_on_its_way_within_the_path_tolerance_it_goes_on_and_tells_how():
    goal = goal_with(path=[0.1] * 6)
    assert goal.judge(told(0.3, moving=True, velocity=0.5), measured(0.25, velocity=0.4)) is None
    progress = goal.progress
    assert progress.time == pytest.approx(0.5)
    assert progress.desired[0] == 0.3 and progress.actual[0] == 0.25
    assert progress.desired_velocity[0] == 0.5 and progress.actual_velocity[0] == 0.4


def test_a_joint_off_its_path_ends_it_by_name():
    goal = goal_with(path=[0.0, 0.0, 0.1, 0.0, 0.0, 0.0])
    assert goal.judge(told(0.5, moving=True), measured(0.3, joint="shoulder_pan")) is None
    ending = goal.judge(told(0.5, moving=True), measured(0.35, joint="elbow_flex"))
    assert ending.code is Code.PATH_TOLERANCE_VIOLATED
    assert ending.text == "left its path: elbow_flex is off by 0.15 rad (tolerance 0.1)"


def test_a_velocity_off_the_path_ends_it_too():
    goal = goal_with()
    goal.tolerances = goal.tolerances.changed([Asked("wrist_roll", velocity=0.2)], [], 0.0)
    ending = goal.judge(told(0.5, moving=True, velocity=1.0), measured(0.5, velocity=0.5))
    assert ending.text == "left its path: wrist_roll is off by 0.5 rad/s (tolerance 0.2)"


def test_the_goal_is_not_reached_before_the_arm_is_there_and_stands():
    goal = goal_with(goal=[0.1] * 6, stopped_velocity=0.05, goal_time=2.0)
    assert goal.judge(told(0.5, moving=True), measured(0.5)) is None
    assert goal.judge(told(0.5, moving=False), measured(0.3, 101.0)) is None
    assert goal.judge(told(0.5, moving=False), measured(0.45, 101.5, velocity=0.2)) is None
    assert goal.judge(told(0.5, moving=False), measured(0.45, 102.0)).code is Code.SUCCESSFUL


def test_a_goal_not_reached_in_time_says_which_joint_is_missing():
    goal = goal_with(goal=[0.1] * 6, goal_time=2.0)
    assert goal.judge(told(0.5, moving=False), measured(0.2, 101.0, joint="gripper")) is None
    assert goal.judge(told(0.5, moving=False), measured(0.2, 102.9, joint="gripper")) is None
    ending = goal.judge(told(0.5, moving=False), measured(0.2, 103.1, joint="gripper"))
    assert ending.code is Code.GOAL_TOLERANCE_VIOLATED
    assert ending.text == "not at its goal within 2 s: gripper is off by 0.3 rad (tolerance 0.1)"


def test_without_a_time_it_waits_for_ever_and_without_a_tolerance_not_at_all():
    goal = goal_with(goal=[0.1] * 6)
    assert goal.judge(told(0.5, moving=False), measured(0.2, 101.0)) is None
    assert goal.judge(told(0.5, moving=False), measured(0.2, 9999.0)) is None
    assert goal_with().judge(told(0.5, moving=False), measured(-1.0)).code is Code.SUCCESSFUL


def test_what_limits_withhold_counts_as_missing():
    goal = goal_with(goal=[0.1] * 6, goal_time=0.5)
    clamped = Sample(np.full(6, 0.2), np.zeros(6), True, False, np.full(6, 0.5), np.zeros(6))
    assert goal.judge(clamped, measured(0.2, 101.0)) is None
    assert goal.judge(clamped, measured(0.2, 102.0)).code is Code.GOAL_TOLERANCE_VIOLATED


# What a goal may ask for ------------------------------------------------------------------------


def test_zero_leaves_a_default_and_minus_one_takes_it_away():
    defaults = tolerances(path=[0.3] * 6, goal=[0.1] * 6, stopped_velocity=0.05, goal_time=2.0)
    asked = defaults.changed(
        [Asked("gripper", position=-1.0)],
        [Asked("shoulder_pan", position=0.02), Asked("shoulder_lift", velocity=-1.0)],
        0.0,
    )
    np.testing.assert_array_equal(asked.path["position"], [0.3] * 5 + [np.inf])
    np.testing.assert_array_equal(asked.goal["position"], [0.02] + [0.1] * 5)
    np.testing.assert_array_equal(asked.goal["velocity"], [0.05, np.inf] + [0.05] * 4)
    assert asked.goal_time == 2.0
    assert defaults.changed([], [], -1.0).goal_time == np.inf
    assert defaults.changed([], [], 0.5).goal_time == 0.5
    assert defaults.path["position"][-1] == 0.3, "the defaults themselves stay"


@pytest.mark.parametrize(
    "path, goal, time, why",
    [
        ([Asked("thumb", 0.1)], [], 0.0, "path_tolerance names an unknown joint thumb"),
        ([], [Asked("gripper", -0.5)], 0.0, "goal_tolerance of gripper's position is -0.5"),
        ([Asked("gripper", velocity=float("nan"))], [], 0.0, "path_tolerance of gripper's velocity is nan"),
        ([], [], -3.0, "goal_time_tolerance is -3"),
    ],
)
def test_tolerances_that_mean_nothing_are_refused_by_name(path, goal, time, why):
    with pytest.raises(ValueError, match=why):
        tolerances().changed(path, goal, time)
