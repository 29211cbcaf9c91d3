# SPDX-License-Identifier: Apache-2.0
"""The FollowJointTrajectory action over DDS, from a real client to the emulated arm.

test_trajectory_action_dds.py runs this file in a process that finds control_msgs.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from control_msgs.action import FollowJointTrajectory
from control_msgs.msg import JointTolerance
from helpers import trajectory
from rclpy.action import ActionClient
from std_srvs.srv import Trigger

from smolvla_mem_ros.sim.emulator_process import EmulatorProcess
from smolvla_mem_ros.sim.scene import HOME
from smolvla_mem_ros.so100.arm import JOINTS

Result = FollowJointTrajectory.Result


def near(*offsets):
    return np.array(HOME) + [*offsets, *[0.0] * (6 - len(offsets))]


class Client:
    def __init__(self, probe):
        self.probe, self.feedback = probe, []
        self.client = ActionClient(probe, FollowJointTrajectory, "so100/follow_joint_trajectory")
        probe.spin_until(self.client.server_is_ready)

    def done(self, future):
        self.probe.spin_until(future.done)
        return future.result()

    def send(self, message, **fields):
        goal = FollowJointTrajectory.Goal(trajectory=message, **fields)
        return self.done(self.client.send_goal_async(goal, feedback_callback=self.feedback.append))

    def result(self, handle):
        answer = self.done(handle.get_result_async())
        return answer.status, answer.result.error_code, answer.result.error_string


@pytest.fixture(scope="module")
def arm(node_starter, tmp_path_factory, calibration):
    port = tmp_path_factory.mktemp("arm") / "ttySO100"
    with EmulatorProcess(port, calibration) as emulator:
        emulator.wait_ready()
        node = node_starter("so100_node", {"port": port, "calibration": calibration}, ["-r", "__ns:=/shared"])
        node.wait_for("connected and holding still")
        yield emulator, node


@pytest.fixture
def client(arm, shared_probe):
    client = Client(shared_probe)
    yield client
    client.client.destroy()


@pytest.fixture(autouse=True)
def at_home(client):
    assert client.result(client.send(trajectory((0.8, HOME))))[0] == GoalStatus.STATUS_SUCCEEDED
    client.feedback.clear()


def test_a_goal_is_followed_with_feedback_and_succeeds(arm, client):
    handle = client.send(trajectory((0.5, near(0.2)), (1.0, near(0.4))))
    assert handle.accepted
    client.probe.spin_until(lambda: handle.status == GoalStatus.STATUS_EXECUTING)
    assert client.result(handle) == (GoalStatus.STATUS_SUCCEEDED, Result.SUCCESSFUL, "goal reached")
    np.testing.assert_allclose(arm[0].snapshot().qpos[:6], near(0.4), atol=0.07)
    feedback = [message.feedback for message in client.feedback]
    assert len(feedback) > 10 and list(feedback[0].joint_names) == list(JOINTS)
    assert feedback[0].index == 0 and feedback[-1].index >= 1
    assert feedback[-1].desired.positions[0] > feedback[0].desired.positions[0]
    for message in feedback:
        error = np.array(message.desired.positions) - np.array(message.actual.positions)
        np.testing.assert_allclose(message.error.positions, error)


def test_a_nonsensical_goal_is_rejected_by_name(arm, client):
    assert not client.send(trajectory((1.0, [0.0] * 5), joints=JOINTS[:5])).accepted
    arm[1].wait_for("goal rejected: joint gripper missing", 10)


def test_a_goal_beyond_the_limits_is_given_up_in_time(client):
    handle = client.send(trajectory((0.8, near(2.5))), goal_time_tolerance=Duration(nanosec=300_000_000))
    status, code, text = client.result(handle)
    assert (status, code) == (GoalStatus.STATUS_ABORTED, Result.GOAL_TOLERANCE_VIOLATED)
    assert "not at its goal within 0.3 s: shoulder_pan is off by" in text


def test_an_arm_that_leaves_its_path_is_held(arm, client):
    tolerance = JointTolerance(name="shoulder_pan", position=0.02)
    handle = client.send(trajectory((0.2, near(1.5)), (3.0, near(0.0))), path_tolerance=[tolerance])
    status, code, text = client.result(handle)
    assert (status, code) == (GoalStatus.STATUS_ABORTED, Result.PATH_TOLERANCE_VIOLATED)
    assert "left its path: shoulder_pan is off by" in text
    client.probe.spin(0.3)
    before = arm[0].snapshot().qpos[0]
    client.probe.spin(0.3)
    assert arm[0].snapshot().qpos[0] == pytest.approx(before, abs=0.01)


def test_a_cancel_holds_the_arm(arm, client):
    handle = client.send(trajectory((3.0, near(1.5))))
    client.probe.spin_until(lambda: client.probe.states and client.probe.states[-1].position[0] > 0.2)
    assert len(client.done(handle.cancel_goal_async()).goals_canceling) == 1
    assert client.result(handle)[:2] == (GoalStatus.STATUS_CANCELED, Result.SUCCESSFUL)
    client.probe.spin(0.3)
    assert arm[0].snapshot().qpos[0] < 0.7
    assert abs(client.probe.fresh_state().velocity[0]) < 0.05


def test_a_new_goal_ends_the_one_before(client):
    first = client.send(trajectory((3.0, near(1.0))))
    second = client.send(trajectory((0.8, near(-0.2))))
    status, code, text = client.result(first)
    assert (status, code, text) == (
        GoalStatus.STATUS_ABORTED,
        Result.INVALID_GOAL,
        "another goal took over",
    )
    assert client.result(second)[0] == GoalStatus.STATUS_SUCCEEDED


def test_a_trajectory_on_the_topic_ends_a_goal(client):
    handle = client.send(trajectory((3.0, near(1.0))))
    client.probe.send(trajectory((0.8, HOME)))
    assert client.result(handle)[1:] == (Result.INVALID_GOAL, "another trajectory took over")


def test_an_emergency_stop_ends_a_goal_and_keeps_others_out(arm, client):
    handle = client.send(trajectory((3.0, near(1.0))))
    assert client.probe.call(Trigger, "so100/emergency_stop").success
    assert client.result(handle)[1:] == (Result.INVALID_GOAL, "emergency stop")
    assert not client.send(trajectory((1.0, HOME))).accepted
    assert client.probe.call(Trigger, "so100/clear_emergency_stop").success


def processor_time(pid):
    """s"""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_executor_sleeps_while_a_goal_goes_on(arm, client):
    """One that is busy with what waits in it would take the processor from the loop."""
    used = []
    for begin in (lambda: None, lambda: client.send(trajectory((3.0, near(0.2))))):
        begin()
        before = processor_time(arm[1].process.pid)
        client.probe.spin(1.5)
        used.append(processor_time(arm[1].process.pid) - before)
    assert used[1] < 1.5 * used[0] + 0.2


def test_the_end_of_the_node_reaches_the_client(start_node, calibration, tmp_path, probe):
    port = tmp_path / "ttySO100"
    with EmulatorProcess(port, calibration) as emulator:
        emulator.wait_ready()
        node = start_node("so100_node", {"port": port, "calibration": calibration})
        node.wait_for("connected and holding still")
        client = Client(probe)
        ending = client.send(trajectory((3.0, near(1.0)))).get_result_async()
        probe.spin(0.5)
        node.process.terminate()
        answer = client.done(ending)
        assert (answer.status, answer.result.error_string) == (
            GoalStatus.STATUS_ABORTED,
            "the node is ending",
        )
        assert node.process.wait(5) == 0
        client.client.destroy()
