# SPDX-License-Identifier: Apache-2.0
"""The usual mistakes of a calibration are found and named, and good ones of real arms are not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smolvla_mem_ros.so100.arm import JOINTS, Calibration
from smolvla_mem_ros.so100.calibration_check import (
    NOMINAL_SPAN,
    check_calibration,
    check_closed_gripper,
    check_motion,
    degrees,
    moved_degrees,
)

SHIPPED = Path(__file__).parents[2] / "config/calibration/so100_sim.json"
TICKS_PER_DEGREE = 4095 / 360


def arm(span=NOMINAL_SPAN["so100"], middle=(2048,) * 6, inverted=()):
    """A calibration with these ranges, in degrees, about these middles, in ticks."""
    span = np.array(span)
    half = np.round(np.minimum(span * TICKS_PER_DEGREE / 2, 2047)).astype(int)
    middle = np.array(middle)
    flags = np.array([joint in inverted for joint in JOINTS])
    return Calibration(np.arange(6) + 100, middle - half, middle + half, flags)


def with_span(**spans):
    nominal = dict(zip(JOINTS, NOMINAL_SPAN["so100"], strict=True))
    return arm(tuple((nominal | spans).values()))


def only(problems):
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize("model", NOMINAL_SPAN)
def test_a_good_arm_has_no_problems(model):
    assert check_calibration(arm(NOMINAL_SPAN[model]), model) == []
    assert check_calibration(Calibration.load(SHIPPED), model) == []


def test_ranges_a_little_beyond_the_designs_limits_as_real_arms_have_are_good():
    assert check_calibration(arm((240, 212, 201, 211, 360, 140), (2110, 2017, 2005, 2030, 2048, 2770))) == []


def test_a_joint_that_was_not_moved_to_its_ends_is_named():
    assert only(check_calibration(with_span(elbow_flex=90))).startswith(
        "elbow_flex has a range of 90 degrees and should have about 180: it was not moved to both"
    )


def test_a_tiny_gripper_range_is_named():
    assert only(check_calibration(with_span(gripper=20))).startswith("gripper has a range of 20 degrees")


def test_a_roll_narrowed_on_purpose_is_good_and_a_tiny_one_is_not():
    assert check_calibration(with_span(wrist_roll=190)) == []
    assert "wrist_roll has a range of 40" in only(check_calibration(with_span(wrist_roll=40)))


def test_a_whole_turn_of_another_joint_passed_the_encoders_end_or_is_the_roll():
    problem = only(check_calibration(with_span(shoulder_lift=355)))
    assert "shoulder_lift has a range of 355" in problem
    assert "passed the encoder's end" in problem and "looks like wrist_roll" in problem


def test_more_than_the_joint_can_do_looks_like_another_joint():
    assert "elbow_flex has a range of 260" in only(check_calibration(with_span(elbow_flex=260)))


def test_a_middle_far_off_is_named_with_its_side():
    middle = np.full(6, 2048)
    middle[3] += round(40 * TICKS_PER_DEGREE)
    assert only(check_calibration(arm(middle=middle))).startswith("wrist_flex has its middle +40 degrees")
    middle[3] = 2048 + round(20 * TICKS_PER_DEGREE)
    assert check_calibration(arm(middle=middle)) == []


def test_the_gripper_may_be_homed_anywhere():
    assert check_calibration(arm(middle=(*[2048] * 5, 2048 + 700))) == []


def test_two_joints_with_each_others_ranges_look_swapped():
    problem = only(check_calibration(with_span(wrist_flex=126, gripper=212)))
    assert problem.startswith("gripper and wrist_flex look swapped")


def test_an_inverted_joint_is_named():
    assert only(check_calibration(arm(inverted=["gripper"]))).startswith("gripper is inverted")


def test_copied_entries_are_named():
    good = arm()
    offset, lower, upper = (np.array(column) for column in (good.offset, good.lower, good.upper))
    offset[1], lower[1], upper[1] = offset[0], lower[0], upper[0]
    problem = only(check_calibration(replace(good, offset=offset, lower=lower, upper=upper)))
    assert problem.startswith("shoulder_pan and shoulder_lift have the same offset and range")


def test_new_servos_are_one_problem_and_not_twelve():
    new = Calibration(np.zeros(6), np.zeros(6), np.full(6, 4095), np.zeros(6, bool))
    assert "a new servo's values" in only(check_calibration(new))


def test_a_joint_that_stands_outside_its_range_is_named():
    good = arm()
    present = np.full(6, 2048)
    assert check_calibration(good, present=present) == []
    present[2] = good.upper[2] + round(3 * TICKS_PER_DEGREE)  # an end stop gives way
    assert check_calibration(good, present=present) == []
    present[2] = good.lower[2] - round(12 * TICKS_PER_DEGREE)
    assert only(check_calibration(good, present=present)).startswith("elbow_flex stands 12 degrees outside")


def test_a_closed_gripper_tells_whether_it_is_inverted():
    good = arm()
    low, high = good.lower[5], good.upper[5]
    assert check_closed_gripper(good, low + 20) == []
    assert "inverted" in only(check_closed_gripper(good, high - 20))
    assert "at 50 of 0-100" in only(check_closed_gripper(good, (low + high) / 2))
    assert check_closed_gripper(arm(inverted=["gripper"]), high - 20) == []


def test_a_movement_past_the_encoders_end_is_as_short_as_it_is():
    moved = moved_degrees([10, 4090, 100, 0, 0, 0], [4090, 10, 500, 0, 0, 0])
    np.testing.assert_allclose(moved, degrees([16, 16, 400, 0, 0, 0]))


def moves(**joints):
    return np.array([joints.get(joint, 0.0) for joint in JOINTS])


@pytest.mark.parametrize("time_is_up", [False, True])
def test_the_joint_that_was_asked_for_moved(time_is_up):
    assert check_motion("elbow_flex", moves(elbow_flex=12, shoulder_lift=9), time_is_up) == ""


def test_it_waits_while_little_has_happened():
    assert check_motion("elbow_flex", moves(elbow_flex=5), False) is None
    assert check_motion("elbow_flex", moves(elbow_flex=12, shoulder_lift=20), False) is None


def test_another_joint_that_moves_instead_means_swapped_ids():
    problem = check_motion("elbow_flex", moves(wrist_flex=40), False)
    assert problem.startswith("wrist_flex moved when elbow_flex was moved by hand: the ids of servos 4 and 3")
    assert check_motion("elbow_flex", moves(wrist_flex=12), True) == problem


def test_nothing_moved_in_time():
    assert check_motion("wrist_roll", moves(), True).startswith("wrist_roll did not move by itself")
