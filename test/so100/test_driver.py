# SPDX-License-Identifier: Apache-2.0
"""Each trap around LeRobot's driver is closed: late answers, unplugging, calibration, NaN, torque."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from lerobot.robots.so_follower import SOFollower, SOFollowerRobotConfig

from smolvla_mem_ros.sim.emulator_process import EmulatorProcess
from smolvla_mem_ros.sim.scene import HOME
from smolvla_mem_ros.so100.arm import JOINTS, LEROBOT_UNITS
from smolvla_mem_ros.so100.driver import TORQUE_CHECK, ArmError, So100Driver


def settle(driver, goal, seconds=1.0):
    """Writes ``goal`` for a while, and returns where the arm is then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        driver.write(goal)
        time.sleep(0.01)
    return driver.read()


def moved_arm(emulator):
    return emulator.snapshot().qpos[:6]


def test_it_reads_the_arm_as_lerobot_does(driver):
    driver.connect()
    state = driver.read()
    np.testing.assert_allclose(state.position, HOME, atol=0.01)
    lerobot = driver._robot.get_observation()
    degrees = LEROBOT_UNITS.from_radians(driver.read().position)
    np.testing.assert_allclose([lerobot[f"{joint}.pos"] for joint in JOINTS], degrees, atol=0.1)
    assert abs(time.monotonic() - state.time) < 1


def test_it_moves_the_arm_through_lerobot(driver, emulator):
    driver.connect()
    driver.engage()
    goal = np.array([0.4, -0.4, 0.3, 0.9, -1.0, 1.0])
    state = settle(driver, goal, 1.5)
    np.testing.assert_allclose(state.position, goal, atol=0.02)
    np.testing.assert_allclose(moved_arm(emulator), goal, atol=0.02)
    np.testing.assert_allclose(state.velocity, 0, atol=0.05)


def test_velocity_is_measured_with_its_sign_in_rad_per_second(driver):
    driver.connect()
    driver.engage()
    goal = np.array(HOME) + [-1.5, 0, 0, 0, 0, 0]
    first = settle(driver, goal, 0.2)
    time.sleep(0.03)
    second = driver.read()
    rate = (second.position[0] - first.position[0]) / (second.time - first.time)
    assert first.velocity[0] < -1
    assert rate == pytest.approx((first.velocity[0] + second.velocity[0]) / 2, rel=0.2)
    assert abs(first.velocity[4]) < 0.2


def test_writing_what_was_read_does_not_creep(driver):
    driver.connect()
    driver.engage()
    robot = driver._robot
    for ticks in (1500, 1501, 1502, 2047, 2048, 2500):
        position = driver._from_ticks(np.full(6, float(ticks)))
        driver.write(position)
        goals = robot.bus.sync_read("Goal_Position", normalize=False)
        low = np.array([robot.calibration[joint].range_min for joint in JOINTS])
        high = np.array([robot.calibration[joint].range_max for joint in JOINTS])
        np.testing.assert_array_equal(list(goals.values()), np.clip(ticks, low, high))


# Trap 1 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stall", [0.035, 0.08, 0.2])
def test_after_a_late_answer_every_read_still_gets_its_own(driver, emulator, stall):
    driver.connect()
    driver.engage()
    for _ in range(3):
        emulator.command(f"stall {stall}")
        time.sleep(0.02)
        for _ in range(5):
            state = driver.read()
            assert np.abs(state.velocity).max() < 0.1, (
                "positions would be read as thousands of ticks per second"
            )
            np.testing.assert_allclose(state.position, HOME, atol=0.05)
        bus = driver._robot.bus
        assert list(bus.sync_read("Present_Temperature").values()) == [30] * 6
    assert driver.repeated_reads >= 3 * (stall > 0.05), "LeRobot waits 50 ms for an answer"


def test_lerobot_alone_would_read_one_packet_behind(emulator, port, calibration):
    """If this fails LeRobot has been mended, and _read_cleanly can go."""
    config = SOFollowerRobotConfig(port=port, id=calibration.stem, calibration_dir=calibration.parent)
    robot = SOFollower(config)
    robot.connect(calibrate=False)
    emulator.command("stall 0.08")
    time.sleep(0.02)
    robot.get_observation()
    velocities = robot.bus.sync_read("Present_Velocity", normalize=False)
    assert min(velocities.values()) > 500
    robot.disconnect()


def test_lost_answers_are_asked_for_again(driver, emulator):
    driver.connect()
    emulator.command("drop 0.01")
    time.sleep(0.05)
    for _ in range(100):
        np.testing.assert_allclose(driver.read().position, HOME, atol=0.05)
    assert driver.repeated_reads > 0


def test_silence_is_an_error_that_says_what_to_check(driver, emulator):
    driver.connect()
    emulator.command("drop 1")
    time.sleep(0.05)
    started = time.monotonic()
    with pytest.raises(ArmError, match=r"cannot read the servos .* check the USB cable and the power"):
        driver.read()
    assert time.monotonic() - started < 1


# Trap 2 -----------------------------------------------------------------------------------------


def test_after_unplugging_it_can_connect_again_and_the_arm_has_not_moved(driver, emulator, port):
    driver.connect()
    driver.engage()
    goal = np.array(HOME) + 0.2
    settle(driver, goal)
    emulator.command("unplug")
    with pytest.raises(ArmError, match="the port is gone"):
        for _ in range(100):
            driver.read()
    driver.close(True)
    with pytest.raises(ArmError, match="no serial port"):
        driver.connect()
    before = moved_arm(emulator)
    emulator.command("plug")
    deadline = time.monotonic() + 10
    while not os.path.exists(port) and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.connect()
    held = driver.engage()
    np.testing.assert_allclose(held, goal, atol=0.002)
    np.testing.assert_allclose(moved_arm(emulator), before, atol=0.005)
    np.testing.assert_allclose(settle(driver, held, 0.3).position, before, atol=0.01)


# Trap 3 -----------------------------------------------------------------------------------------


def test_lerobots_own_step_limit_is_left_out_for_it_fails_on_a_whole_number(driver):
    """The follower limits every step, and without it LeRobot needs no read more per write."""
    driver.connect()
    robot = driver._robot
    assert robot.config.max_relative_target is None
    robot.config.max_relative_target = 5
    with pytest.raises(TypeError):
        robot.send_action({f"{joint}.pos": 0.0 for joint in JOINTS})


# Trap 4 -----------------------------------------------------------------------------------------


def test_without_a_calibration_it_says_how_to_make_one_and_makes_no_folder(port, tmp_path):
    missing = tmp_path / "arms" / "left.json"
    with pytest.raises(ArmError) as error:
        So100Driver(port, missing).connect()
    assert f"cannot read the calibration file {missing}" in str(error.value)
    assert f"lerobot-calibrate --robot.type=so101_follower --robot.port={port}" in str(error.value)
    assert f"--robot.id=left --robot.calibration_dir={missing.parent}" in str(error.value)
    assert not missing.parent.exists()


def test_servos_with_another_calibration_are_refused_and_the_difference_is_shown(
    emulator, port, calibration, tmp_path
):
    content = json.loads(calibration.read_text())
    content["elbow_flex"]["homing_offset"] = 40
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    driver = So100Driver(port, other)
    with pytest.raises(
        ArmError, match=r"elbow_flex has offset 40 .* and offset 0 .* in the servo.*ENTER.*id=other"
    ):
        driver.connect()
    shutil.copy(calibration, other)
    driver.connect()
    driver.close(False)


def test_servos_fresh_from_the_factory_are_refused(port, calibration):
    with EmulatorProcess(port, calibration, "--uncalibrated") as emulator:
        emulator.wait_ready()
        with pytest.raises(ArmError, match=r"another calibration .* and 4 more"):
            So100Driver(port, calibration).connect()


# Trap 5 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_goal_that_is_not_finite_is_not_written(driver, emulator, bad):
    driver.connect()
    driver.engage()
    writes = emulator.snapshot().goal_writes
    with pytest.raises(ValueError, match="not finite"):
        driver.write(np.array([0, 0, bad, 0, 0, 0]))
    time.sleep(0.05)
    assert emulator.snapshot().goal_writes == writes


def test_goals_beyond_the_calibrated_range_are_clamped_before_lerobot_gets_them(driver):
    driver.connect()
    driver.write(np.array([-17.0, 17.0, 17.0, 17.0, 17.0, 17.0]))
    goals = driver._robot.bus.sync_read("Goal_Position", normalize=False)
    calibration = driver._robot.calibration
    expected = [calibration[JOINTS[0]].range_min, *(calibration[joint].range_max for joint in JOINTS[1:])]
    assert list(goals.values()) == expected


# Trap 6 -----------------------------------------------------------------------------------------


def test_torque_comes_with_the_goal_at_the_present_position(driver, emulator):
    """Servos keep an old goal while torque is off; LeRobot's connect() would drive there."""
    driver.connect()
    before = moved_arm(emulator)
    driver._robot.bus.sync_write("Goal_Position", dict.fromkeys(JOINTS, 2500), normalize=False)
    held = driver.engage()
    np.testing.assert_allclose(held, before, atol=0.005)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        np.testing.assert_allclose(moved_arm(emulator), before, atol=0.02)
        time.sleep(0.005)


def test_connecting_alone_leaves_torque_and_goals_alone(driver, emulator):
    driver.connect()
    assert set(driver._robot.bus.sync_read("Torque_Enable").values()) == {0}
    assert emulator.snapshot().goal_writes == 0


def test_an_arm_that_is_held_already_is_not_let_go_of(driver, port, calibration):
    driver.connect()
    driver.engage()
    driver._robot.bus.write("Acceleration", "gripper", 7)  # configure() would overwrite it
    driver.close(False)
    driver.connect()
    driver.engage()
    assert driver._robot.bus.read("Acceleration", "gripper") == 7


def test_a_held_arm_whose_goal_is_far_away_is_stopped_first(driver, emulator):
    driver.connect()
    driver.engage()
    driver._robot.bus.sync_write("Goal_Position", dict.fromkeys(JOINTS, 2500), normalize=False)
    held = driver.engage()
    np.testing.assert_allclose(held, driver.read().position, atol=0.1)


def test_release_and_close_switch_torque_off_and_close_may_leave_it_on(driver):
    def torque():
        driver.connect()
        return set(driver._robot.bus.sync_read("Torque_Enable").values())

    driver.connect()
    driver.engage()
    driver.close(False)
    assert torque() == {1}
    driver.release()
    driver.close(False)
    assert torque() == {0}
    driver.engage()
    driver.close(True)
    assert torque() == {0}


# What may be at the port ------------------------------------------------------------------------


def test_a_missing_port_and_a_file_are_told_apart(calibration, tmp_path):
    with pytest.raises(ArmError, match=r"there is no serial port .*lerobot-find-port"):
        So100Driver(str(tmp_path / "none"), calibration).connect()
    with pytest.raises(ArmError, match="is not a serial port"):
        So100Driver(str(calibration), calibration).connect()


def test_a_port_in_use_is_left_alone(driver, emulator, port, calibration):
    driver.connect()
    time.sleep(0.2)  # the emulator shares its counters a little later
    packets = emulator.snapshot().packets
    with pytest.raises(ArmError, match="another program is using"):
        So100Driver(port, calibration).connect()
    assert emulator.snapshot().packets == packets
    driver.read()


def test_silent_servos_are_named(emulator, port, calibration):
    emulator.command("drop 1")
    time.sleep(0.05)
    with pytest.raises(ArmError, match=r"servo 1 \(shoulder_pan\).*6 \(gripper\).* power supply"):
        So100Driver(port, calibration).connect()


def test_without_a_connection_every_call_says_so(port, calibration):
    driver = So100Driver(port, calibration)
    for call in (driver.read, driver.engage, driver.release, lambda: driver.write(np.zeros(6))):
        with pytest.raises(ArmError, match="not connected"):
            call()
    driver.close(True)


def test_a_servo_with_a_fault_is_told_from_a_silent_one(emulator, port, calibration):
    emulator.command("overheat elbow_flex 80")
    emulator.command("mute gripper")
    driver = So100Driver(port, calibration)
    with pytest.raises(
        ArmError, match=r"servo 3 \(elbow_flex\) is overheated.*servo 6 \(gripper\) on .* does not"
    ):
        driver.connect()
    emulator.command("cool elbow_flex")
    emulator.command("unmute gripper")
    driver.connect()
    driver.close(False)


def test_servos_that_lost_power_for_a_moment_are_found_limp(driver, emulator):
    driver.connect()
    held = driver.engage()
    for _ in range(2 * TORQUE_CHECK):
        driver.write(held)
    emulator.tell("power_cycle")
    with pytest.raises(ArmError, match=r"servo 1 \(shoulder_pan\), .* switched torque off by itself"):
        for _ in range(TORQUE_CHECK):
            driver.write(held)
    driver.close(False)
    driver.connect()
    driver.engage()
    for _ in range(2 * TORQUE_CHECK):
        driver.write(held)
