# SPDX-License-Identifier: Apache-2.0
"""A servo that is not well is named, with what to do."""

import numpy as np
import pytest

from smolvla_mem_ros.so100.health import ASTRAY_TIME, Following, Servos


def servos(**changes):
    values = {name: np.zeros(6) for name in ("load", "voltage", "temperature")}
    return Servos(**{**values, "status": np.zeros(6, int), **changes})


def only(joint, value):
    values = np.zeros(6, int)
    values[joint] = value
    return values


def test_healthy_servos_are_no_problem():
    assert servos(temperature=np.full(6, 45.0)).problems == []


@pytest.mark.parametrize(
    "bits, words", [(1, "voltage"), (2, "sensor"), (4, "overheated"), (8, "current"), (32, "overloaded")]
)
def test_each_status_bit_is_said_of_the_right_servo(bits, words):
    (problem,) = servos(status=only(2, bits)).problems
    assert problem.startswith("servo 3 (elbow_flex) ") and words in problem


def test_several_problems_are_all_told():
    assert len(servos(status=only(0, 1 | 4) + only(5, 32)).problems) == 3


def test_a_warm_servo_is_told_before_it_lets_go():
    (problem,) = servos(temperature=only(1, 61)).problems
    assert problem.startswith("servo 2 (shoulder_lift) is warm, 60 degrees")
    (problem,) = servos(temperature=only(1, 75), status=only(1, 4)).problems
    assert "overheated" in problem


@pytest.mark.parametrize("bits, goes", [(1, False), (2, False), (4, True), (8, True), (32, False)])
def test_a_servo_lets_go_for_heat_and_current(bits, goes):
    both = servos(status=only(2, bits | 1))
    assert both.limp.tolist() == [False, False, goes, False, False, False]
    assert len(both.limp_because) == goes


def test_values_are_listed_by_joint():
    values = servos(voltage=only(5, 7)).values()
    assert values["gripper voltage (V)"] == 7 and len(values) == 18


def test_a_joint_that_stays_astray_is_named_until_it_is_near_again():
    following, told = Following(), np.zeros(6)
    stuck = np.array([0, 0, 0.5, 0, 0, 0])
    assert following.problems(told, stuck, 0.0) == []
    assert following.problems(told, stuck, ASTRAY_TIME) == [], "not yet for long"
    (problem,) = following.problems(told, stuck, ASTRAY_TIME + 0.01)
    assert problem.startswith("servo 3 (elbow_flex) does not follow")
    assert following.problems(told, told, ASTRAY_TIME + 0.02) == []
    assert following.problems(told, stuck, 1.0) == following.problems(told, stuck, 1.2) == []
