# SPDX-License-Identifier: Apache-2.0
"""Limits are checked together, and calibration files are read the way LeRobot reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
from lerobot.robots.so_follower import SOFollower, SOFollowerRobotConfig

from smolvla_mem_ros.so100.arm import JOINTS, LEROBOT_UNITS, ArmConfig, Calibration, CalibrationError

SHIPPED = Path(__file__).parents[2] / "config/calibration/so100_sim.json"


def entry(number, **changes):
    return {"id": number, "drive_mode": 0, "homing_offset": 5, "range_min": 800, "range_max": 3201, **changes}


@pytest.fixture
def file(tmp_path):
    def write(**changes):
        content = {joint: entry(number) for number, joint in enumerate(JOINTS, 1)}
        for joint, change in changes.items():
            if change is None:
                del content[joint]
            else:
                content[joint] |= change
        path = tmp_path / "arm.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_every_wrong_limit_is_named_at_once():
    with pytest.raises(ValueError, match=r"shoulder_pan: .*2.* 1; gripper: .*velocity 0.*blend time -1"):
        ArmConfig(
            lower=[2, -1, -1, -1, -1, -1], upper=np.ones(6), max_velocity=[1, 1, 1, 1, 1, 0], blend_time=-1
        )


def test_limits_of_a_wrong_length_are_refused():
    with pytest.raises(ValueError, match="6 values"):
        ArmConfig(lower=np.zeros(5))


def test_limits_narrow_to_the_calibrated_range_but_never_widen():
    config = ArmConfig().within(np.full(6, -1.0), np.full(6, 5.0))
    np.testing.assert_allclose(config.lower, [-1, -1, -1, -1, -1, ArmConfig().lower[-1]])
    np.testing.assert_allclose(config.upper, ArmConfig().upper)


@pytest.mark.parametrize("drive_mode", [0, 1])
def test_radians_and_ticks_agree_with_lerobots_normalisation(file, drive_mode):
    path = file(gripper={"drive_mode": drive_mode}, wrist_roll={"range_min": 0, "range_max": 4095})
    robot = SOFollower(SOFollowerRobotConfig(port="none", id="arm", calibration_dir=path.parent))
    ticks = np.array([900, 1500, 2048, 3000, 10, 1000])
    lerobot = robot.bus._normalize(dict(zip(range(1, 7), ticks.tolist(), strict=True)))
    expected = LEROBOT_UNITS.to_radians(list(lerobot.values()))
    units = Calibration.load(path).ticks
    np.testing.assert_allclose(units.to_radians(ticks), expected, atol=1e-9)
    np.testing.assert_allclose(units.from_radians(expected), ticks, atol=1e-6)


@pytest.mark.parametrize("drive_mode", [0, 1])
def test_calibrated_ranges_go_from_low_to_high(file, drive_mode):
    low, high = Calibration.load(file(gripper={"drive_mode": drive_mode})).range
    assert (low < high).all()
    assert high[0] == pytest.approx(2401 / 2 * 2 * np.pi / 4095)


def test_the_shipped_simulation_covers_the_default_limits():
    low, high = Calibration.load(SHIPPED).range
    assert (low <= ArmConfig().lower + 0.001).all() and (high >= ArmConfig().upper - 0.001).all()


WRONG = [
    ({"gripper": None}, "has no joint gripper"),
    ({"elbow_flex": {"id": 4}}, "elbow_flex must be servo 3, not 4"),
    ({"elbow_flex": {"range_min": 3201}}, "elbow_flex has no range in 3201..3201"),
    ({"elbow_flex": {"range_max": 5000}}, "no range in 800..5000"),
    ({"wrist_flex": {"homing_offset": None}}, "wrist_flex needs a whole number homing_offset"),
    ({"wrist_flex": {"range_max": 3000.5}}, "whole number range_max"),
]


@pytest.mark.parametrize("changes, says", WRONG)
def test_a_file_that_is_no_calibration_is_refused_by_name(file, changes, says):
    with pytest.raises(CalibrationError, match=says):
        Calibration.load(file(**changes))


@pytest.mark.parametrize("text, says", [("[1, 2", "not JSON"), ("[1, 2]", "no joint shoulder_pan")])
def test_a_file_that_is_something_else_is_refused(tmp_path, text, says):
    path = tmp_path / "arm.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=says):
        Calibration.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match="No such file"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(CalibrationError, match="directory"):
        Calibration.load(tmp_path)
