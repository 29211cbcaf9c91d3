# SPDX-License-Identifier: Apache-2.0
"""so100_node over DDS and the real driver: it moves the arm, refuses nonsense by name, outlives its arm."""

import shutil
import signal
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from helpers import trajectory
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters
from std_srvs.srv import SetBool, Trigger

from smolvla_mem_ros.share import share_path
from smolvla_mem_ros.sim.emulator_process import EmulatorProcess
from smolvla_mem_ros.sim.scene import HOME
from smolvla_mem_ros.so100.arm import JOINTS
from smolvla_mem_ros.so100.driver import So100Driver

HELD = "connected and holding still"


def reaches(probe, goal, tolerance=0.05):
    probe.spin_until(
        lambda: probe.states and np.abs(probe.states[-1].position - np.array(goal)).max() < tolerance
    )


@pytest.fixture
def port(tmp_path):
    return str(tmp_path / "ttySO100")


@pytest.fixture
def emulator(port, calibration):
    with EmulatorProcess(port, calibration) as emulator:
        emulator.wait_ready()
        yield emulator


@pytest.fixture(scope="module")
def arm(node_starter, tmp_path_factory, calibration):
    """(emulator, node), shared by the tests that leave them as they were."""
    port = tmp_path_factory.mktemp("arm") / "ttySO100"
    with EmulatorProcess(port, calibration) as emulator:
        emulator.wait_ready()
        parameters = {"port": port, "calibration": calibration}
        node = node_starter("so100_node", parameters, ["-r", "__ns:=/shared"])
        node.wait_for(HELD)
        yield emulator, node


def torque(port, calibration):
    driver = So100Driver(port, calibration)
    driver.connect()
    enabled = set(driver._robot.bus.sync_read("Torque_Enable").values())
    driver.close(False)
    return enabled


# A node that works ------------------------------------------------------------------------------


def test_a_published_trajectory_moves_the_arm_and_joint_states_show_it(arm, shared_probe):
    emulator, _ = arm
    goal = np.array(HOME) + [0.4, 0.1, -0.2, 0.1, 0.3, 0.5]
    before = emulator.snapshot().goal_writes
    shared_probe.fresh_state()
    shared_probe.states.clear()
    shared_probe.send(trajectory((0.5, (np.array(HOME) + goal) / 2), (1.0, goal)))
    reaches(shared_probe, goal)
    # The physics itself, a little wider than what was waited for: readings are rounded to ticks.
    np.testing.assert_allclose(emulator.snapshot().qpos[:6], goal, atol=0.07)
    assert emulator.snapshot().goal_writes > before + 50

    assert all(tuple(state.name) == JOINTS and len(state.velocity) == 6 for state in shared_probe.states)
    assert max(state.velocity[0] for state in shared_probe.states) > 0.2
    age = shared_probe.get_clock().now().nanoseconds - max(
        s.header.stamp.sec * 10**9 for s in shared_probe.states
    )
    assert age < 5e9
    shared_probe.send(trajectory((0.5, HOME)))
    reaches(shared_probe, HOME)


def test_joint_states_come_at_the_loop_rate_with_increasing_stamps(arm, shared_probe):
    shared_probe.fresh_state()
    shared_probe.states.clear()
    shared_probe.spin(2.0)
    stamps = np.array([s.header.stamp.sec + s.header.stamp.nanosec * 1e-9 for s in shared_probe.states])
    assert (np.diff(stamps) > 0).all()
    assert np.median(np.diff(stamps)) == pytest.approx(0.01, abs=0.002)


nan = float("nan")
MALFORMED = {
    "unknown joint thumb": trajectory((1, [0] * 6), joints=(*JOINTS[:5], "thumb")),
    "joint gripper missing": trajectory((1, [0] * 5), joints=JOINTS[:5]),
    "positions that are not finite": trajectory((1, [nan] * 6)),
    "not strictly increasing": trajectory((1, [0] * 6), (0.5, [0] * 6)),
    "it has no points": trajectory(),
    "point 0 has 2 positions for 6 joints": trajectory((1, [0] * 2)),
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_a_malformed_trajectory_is_refused_by_name_and_moves_nothing(arm, shared_probe, reason):
    emulator, node = arm
    before = emulator.snapshot().qpos[:6]
    shared_probe.send(MALFORMED[reason])
    node.wait_for(reason, 10)
    shared_probe.spin(0.5)
    np.testing.assert_allclose(emulator.snapshot().qpos[:6], before, atol=0.01)


def test_an_old_stamp_is_refused_and_a_recent_one_followed_from_where_it_is(arm, shared_probe):
    _, node = arm
    old = trajectory((1.0, [0.0] * 6))
    old.header.stamp.sec = 1000
    shared_probe.send(old)
    node.wait_for("s in the past", 10)
    goal = np.array(HOME) + [0.2, 0, 0, 0, 0, 0]
    recent = trajectory((0.0, HOME), (1.0, goal))
    recent.header.stamp = (shared_probe.get_clock().now()).to_msg()
    shared_probe.send(recent)
    reaches(shared_probe, goal)
    shared_probe.send(trajectory((0.5, HOME)))
    reaches(shared_probe, HOME)


def test_a_stamp_before_1970_is_refused_and_does_not_end_the_node(arm, shared_probe):
    _, node = arm

    def rejected():
        return int(shared_probe.reports.get("shared/so100", {}).get("rejected", -1))

    shared_probe.spin_until(lambda: rejected() >= 0)
    before = rejected()
    message = trajectory((0.5, np.array(HOME) + 0.3))
    message.header.stamp.sec = -5
    shared_probe.send(message)
    shared_probe.spin_until(lambda: rejected() == before + 1, 10)
    assert node.process.poll() is None


def test_diagnostics_count_what_happened(arm, shared_probe):
    shared_probe.spin_until(lambda: "shared/so100" in shared_probe.reports)
    report = shared_probe.reports["shared/so100"]
    assert report["connected"] == "true" and report["level"] == DiagnosticStatus.OK
    shared_probe.send(MALFORMED["it has no points"])
    shared_probe.spin_until(
        lambda: int(shared_probe.reports["shared/so100"]["rejected"]) == int(report["rejected"]) + 1, 10
    )
    assert float(shared_probe.reports["shared/so100"]["loop_rate"]) > 50
    assert int(shared_probe.reports["shared/so100"]["writes"]) > int(report["writes"])


def test_diagnostics_tell_of_every_servo_and_of_the_jitter(arm, shared_probe):
    # It is measured once a second.
    shared_probe.spin_until(
        lambda: float(shared_probe.reports.get("shared/so100", {}).get("period_jitter_p99", "nan")) >= 0
    )
    report = shared_probe.reports["shared/so100"]
    for joint in JOINTS:
        assert 5 < float(report[f"{joint} voltage (V)"]) < 13
        assert 10 < float(report[f"{joint} temperature (C)"]) < 60
        assert abs(float(report[f"{joint} load"])) <= 1


def goes_home(probe):
    """Wherever a test before has left it."""
    probe.fresh_state()
    probe.send(trajectory((0.7, HOME)))
    reaches(probe, HOME)


def test_the_speed_scaling_may_be_changed_while_the_arm_moves(arm, shared_probe):
    def scale(value):
        new = Parameter(name="speed_scaling", value=ParameterValue(type=3, double_value=value))
        return shared_probe.call(SetParameters, "so100/set_parameters", parameters=[new]).results[0]

    goal = np.array(HOME) + [0.6, 0, 0, 0, 0, 0]
    goes_home(shared_probe)
    shared_probe.send(trajectory((2.0, goal)))
    shared_probe.spin_until(lambda: shared_probe.states[-1].velocity[0] > 0.2)
    assert scale(0.02).successful
    shared_probe.spin_until(lambda: abs(shared_probe.states[-1].velocity[0]) < 0.15)
    assert shared_probe.states[-1].position[0] < goal[0] - 0.1
    assert not scale(1.5).successful
    assert scale(1.0).successful
    reaches(shared_probe, goal)
    shared_probe.send(trajectory((0.7, HOME)))
    reaches(shared_probe, HOME)


def test_emergency_stop_ends_the_motion_until_it_is_cleared(arm, shared_probe):
    emulator, node = arm
    goes_home(shared_probe)
    shared_probe.send(trajectory((3.0, np.array(HOME) + 0.5)))
    shared_probe.spin_until(lambda: shared_probe.states and shared_probe.states[-1].position[0] > 0.1)
    answer = shared_probe.call(Trigger, "so100/emergency_stop")
    assert answer.success and "clear_emergency_stop" in answer.message
    shared_probe.spin(0.3)
    stopped = emulator.snapshot().qpos[:6]
    shared_probe.send(trajectory((0.5, HOME)))
    node.wait_for("trajectory rejected: emergency stop", 10)
    shared_probe.spin_until(lambda: shared_probe.reports.get("shared/so100", {}).get("message") == "stopped")
    np.testing.assert_allclose(emulator.snapshot().qpos[:6], stopped, atol=0.02)
    assert stopped[0] < 0.4
    assert shared_probe.call(Trigger, "so100/clear_emergency_stop").success
    shared_probe.send(trajectory((0.5, HOME)))
    reaches(shared_probe, HOME)


def test_torque_goes_and_comes_by_service_without_a_jump(arm, shared_probe):
    emulator, node = arm
    assert shared_probe.call(SetBool, "so100/enable", data=False).success
    writes = emulator.snapshot().goal_writes
    shared_probe.send(trajectory((0.5, [0.0] * 6)))
    node.wait_for("torque is off; call ~/enable first", 10)
    shared_probe.fresh_state()
    assert emulator.snapshot().goal_writes == writes
    before = emulator.snapshot().qpos[:6]
    assert shared_probe.call(SetBool, "so100/enable", data=True).success
    shared_probe.spin(0.3)
    np.testing.assert_allclose(emulator.snapshot().qpos[:6], before, atol=0.03)
    shared_probe.send(trajectory((0.5, HOME)))
    reaches(shared_probe, HOME)


# A node whose arm is missing, wrong or going ----------------------------------------------------


def test_without_calibration_it_stays_up_says_how_to_make_one_and_goes_on_when_it_is_there(
    start_node, emulator, port, calibration, tmp_path, probe
):
    mine = tmp_path / "mine.json"
    node = start_node("so100_node", {"port": port, "calibration": mine})
    node.wait_for("lerobot-calibrate --robot.type=so101_follower")
    probe.spin_until(lambda: probe.reports.get("so100", {}).get("connected") == "false")
    probe.spin(2.5)
    assert probe.reports["so100"]["level"] == DiagnosticStatus.ERROR
    assert str(mine) in probe.reports["so100"]["message"]
    assert node.log.count("lerobot-calibrate") == 1
    assert emulator.snapshot().packets == 0 and not probe.states
    shutil.copy(calibration, mine)
    node.wait_for(HELD, 10)


def test_a_port_that_vanishes_and_returns_is_reported_once_and_the_arm_has_not_jumped(
    start_node, emulator, port, calibration, probe
):
    node = start_node("so100_node", {"port": port, "calibration": calibration})
    node.wait_for(HELD)
    goal = np.array(HOME) + [1.0, 0, 0, 0, 0, 0]
    probe.send(trajectory((4.0, goal)))
    probe.spin_until(lambda: probe.states and probe.states[-1].position[0] > 0.2)
    emulator.command("unplug")
    node.wait_for("the port is gone", 10)
    node.wait_for("there is no serial port", 10)
    probe.spin(2.5)
    assert node.log.count("the port is gone") == 1 and node.log.count("there is no serial port") == 1
    before = emulator.snapshot().qpos[:6]
    emulator.command("plug")
    probe.states.clear()
    probe.spin_until(lambda: len(probe.states) > 50, 10)
    assert node.log.count(HELD) == 2
    np.testing.assert_allclose(emulator.snapshot().qpos[:6], before, atol=0.02)
    assert before[0] < 0.8, "the trajectory ended with the connection"
    probe.send(trajectory((0.5, HOME)))
    reaches(probe, HOME)


@pytest.mark.parametrize("number, off", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_ends_it_within_a_second_with_torque_as_configured(
    start_node, emulator, port, calibration, number, off
):
    node = start_node(
        "so100_node", {"port": port, "calibration": calibration, "disable_torque_on_shutdown": off}
    )
    node.wait_for(HELD)
    time.sleep(0.2)
    code, seconds = node.end(number)
    assert code == 0 and seconds < 1
    assert "Traceback" not in node.log
    assert torque(port, calibration) == ({0} if off else {1})


def test_a_signal_stops_a_motion_where_the_arm_is(start_node, emulator, port, calibration, probe):
    parameters = {"port": port, "calibration": calibration, "disable_torque_on_shutdown": False}
    node = start_node("so100_node", parameters)
    node.wait_for(HELD)
    probe.send(trajectory((1.5, np.array(HOME) + 1.5)))
    probe.spin_until(lambda: probe.states and probe.states[-1].velocity[0] > 0.8)
    at = emulator.snapshot().qpos[0]
    assert node.end(signal.SIGTERM)[0] == 0
    time.sleep(0.3)
    # At 1 rad/s; the tenth of a second that rclpy may sleep for would be seen.
    assert emulator.snapshot().qpos[0] - at < 0.08


def test_it_ends_as_cleanly_without_an_arm(start_node, tmp_path, calibration):
    node = start_node("so100_node", {"port": tmp_path / "none", "calibration": calibration})
    node.wait_for("there is no serial port")
    assert node.end()[0] == 0
    assert "Traceback" not in node.log


# Parameters -------------------------------------------------------------------------------------


def test_limits_that_make_no_sense_are_refused_all_at_once(start_node, calibration, tmp_path):
    node = start_node(
        "so100_node",
        {
            "port": tmp_path / "none",
            "calibration": calibration,
            "limits.gripper.lower": 2.0,
            "limits.elbow_flex.upper": -1.8,
        },
    )
    assert node.process.wait(60) != 0
    assert "gripper: the lower limit 2" in node.log and "elbow_flex: the lower limit" in node.log
    assert "Traceback" not in node.log


def test_a_value_beyond_its_range_is_refused(start_node, calibration, tmp_path):
    node = start_node("so100_node", {"port": tmp_path / "none", "calibration": calibration, "rate": 9999.0})
    assert node.process.wait(60) != 0
    assert "9999" in node.log and "rate" in node.log and "Traceback" not in node.log


def test_a_dry_run_reads_the_arm_and_writes_nothing(start_node, emulator, port, calibration, probe):
    node = start_node("so100_node", {"port": port, "calibration": calibration, "dry_run": True})
    node.wait_for("dry run")
    probe.send(trajectory((0.5, [0.0] * 6)))
    probe.spin_until(lambda: int(probe.reports.get("so100", {}).get("accepted", 0)) == 1)
    np.testing.assert_allclose(probe.fresh_state().position, HOME, atol=0.05)
    assert emulator.snapshot().goal_writes == 0
    assert node.end()[0] == 0
    assert torque(port, calibration) == {0}


def test_the_shipped_parameter_file_holds_in_a_namespace_and_topics_follow(
    start_node, emulator, port, calibration, make_probe, tmp_path
):
    file = tmp_path / "so100.yaml"
    text = share_path("config/so100.yaml").read_text()
    assert "velocity: 3.0" in text
    file.write_text(
        text.replace("rate: 100.0", "rate: 50.0").replace(
            "partial_joints_goal: false", "partial_joints_goal: true"
        )
    )
    node = start_node(
        "so100_node",
        {"port": port, "calibration": calibration},
        ["-r", "__ns:=/left", "--params-file", str(file)],
    )
    node.wait_for(HELD)
    probe = make_probe("left")
    probe.send(trajectory((0.5, [0.3]), joints=["shoulder_pan"]))
    goal = np.array([0.3, *HOME[1:]])
    probe.spin_until(lambda: len(probe.states) > 0)
    reaches(probe, goal)
    probe.states.clear()
    probe.spin(1.0)
    assert len(probe.states) < 60
    probe.spin_until(lambda: "left/so100" in probe.reports)
