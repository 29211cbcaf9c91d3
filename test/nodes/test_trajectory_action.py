# SPDX-License-Identifier: Apache-2.0
"""What the action tells its client, without control_msgs: its types are stood in for, and rclpy's server too.

The real ones are in test_trajectory_action_dds.py.
"""

import os
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Duration
from rclpy.action import CancelResponse, GoalResponse
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from unique_identifier_msgs.msg import UUID

from smolvla_mem_ros.nodes.trajectory_action import NAME, TrajectoryAction, declare_tolerances
from smolvla_mem_ros.so100.arm import JOINTS
from smolvla_mem_ros.so100.goals import Code, Ending, Progress
from smolvla_mem_ros.so100.requests import CancelGoal


@dataclass
class Tolerance:
    """Like control_msgs/JointTolerance."""

    name: str = ""
    position: float = 0.0
    velocity: float = 0.0
    acceleration: float = 0.0


class FollowJointTrajectory:
    """Like control_msgs' action, as far as an arm of single joints goes."""

    @dataclass
    class Goal:
        trajectory: JointTrajectory = field(default_factory=JointTrajectory)
        path_tolerance: list = field(default_factory=list)
        goal_tolerance: list = field(default_factory=list)
        goal_time_tolerance: Duration = field(default_factory=Duration)

    @dataclass
    class Result:
        error_code: int = 0
        error_string: str = ""

    @dataclass
    class Feedback:
        header: Header = field(default_factory=Header)
        joint_names: list = field(default_factory=list)
        desired: JointTrajectoryPoint = field(default_factory=JointTrajectoryPoint)
        actual: JointTrajectoryPoint = field(default_factory=JointTrajectoryPoint)
        error: JointTrajectoryPoint = field(default_factory=JointTrajectoryPoint)
        index: int = 0


class Handle:
    """Like rclpy's ServerGoalHandle."""

    def __init__(self, request, server):
        self.request, self.states, self.feedback, self.result = request, [], [], None
        self.goal_id, self._server = UUID(uuid=np.frombuffer(os.urandom(16), np.uint8)), server

    def execute(self):
        self.states.append("executing")
        self._server.node.executor.create_task(self._run)

    async def _run(self):
        self.result = await self._server.execute(self)

    def publish_feedback(self, feedback):
        self.feedback.append(feedback)

    def succeed(self):
        self.states.append("succeeded")

    def abort(self):
        self.states.append("aborted")

    def canceled(self):
        self.states.append("canceled")


class Server:
    """Like rclpy's ActionServer."""

    def __init__(self, node, action_type, name, *, execute_callback, goal_callback, **callbacks):
        self.node, self.name, self.execute, self.ask = node, name, execute_callback, goal_callback
        self.accept, self.cancel = callbacks["handle_accepted_callback"], callbacks["cancel_callback"]

    def send(self, goal):
        """As rclpy does; None when it is rejected."""
        if self.ask(goal) is not GoalResponse.ACCEPT:
            return None
        handle = Handle(goal, self)
        self.accept(handle)
        return handle


class Loop:
    """Like ArmLoop; the goals that it was given are ended by the tests."""

    def __init__(self):
        self.goals, self.requests, self.reason = [], [], None

    def refusal(self, trajectory):
        return self.reason

    def submit(self, goal):
        self.goals.append(goal)

    def request(self, request):
        self.requests.append(request)
        return Future()


@pytest.fixture
def rig():
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node("arm", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    loop = Loop()
    action = TrajectoryAction(node, loop, declare_tolerances(node), FollowJointTrajectory, Server)

    def spin(seconds=0.15):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            executor.spin_once(timeout_sec=0.02)

    yield SimpleNamespace(loop=loop, server=action._server, action=action, spin=spin, node=node)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def goal_to(position, **fields):
    point = JointTrajectoryPoint(positions=[position] * 6, time_from_start=Duration(sec=1))
    trajectory = JointTrajectory(joint_names=list(JOINTS), points=[point])
    return FollowJointTrajectory.Goal(trajectory=trajectory, **fields)


def test_a_goal_becomes_the_loops_with_the_tolerances_it_asks_for(rig):
    assert rig.server.name == NAME == "so100/follow_joint_trajectory"
    asked = [Tolerance("shoulder_pan", position=0.05)]
    handle = rig.server.send(
        goal_to(0.5, path_tolerance=asked, goal_time_tolerance=Duration(nanosec=500_000_000))
    )
    assert handle.states == ["executing"]
    (goal,) = rig.loop.goals
    assert goal.trajectory.joints == JOINTS and goal.trajectory.start is None
    assert goal.trajectory.points[0].time == 1.0 and list(goal.trajectory.points[0].positions) == [0.5] * 6
    rig.spin()
    assert handle.result is None, "it goes on"
    np.testing.assert_array_equal(goal.tolerances.path["position"], [0.05] + [np.inf] * 5)
    np.testing.assert_array_equal(goal.tolerances.goal["position"], [0.1] * 5 + [np.inf])
    assert goal.tolerances.goal_time == 0.5


def test_a_goal_that_the_loop_would_refuse_is_rejected(rig):
    rig.loop.reason = "torque is off"
    assert rig.server.send(goal_to(0.5)) is None
    assert not rig.loop.goals


def test_tolerances_that_mean_nothing_are_rejected(rig):
    assert rig.server.send(goal_to(0.5, goal_tolerance=[Tolerance("thumb", 0.1)])) is None
    assert rig.server.send(goal_to(0.5, goal_time_tolerance=Duration(sec=-2))) is None
    assert not rig.loop.goals


def test_feedback_tells_what_was_wanted_and_what_is(rig):
    handle = rig.server.send(goal_to(0.5))
    rig.spin()
    assert not handle.feedback, "it has not begun"
    rig.loop.goals[0].progress = Progress(
        0.25, np.full(6, 0.2), np.full(6, 0.5), np.full(6, 0.15), np.full(6, 0.3)
    )
    rig.spin(0.5)
    assert 5 <= len(handle.feedback) <= 12
    feedback = handle.feedback[-1]
    assert feedback.joint_names == list(JOINTS) and feedback.header.stamp.sec > 0
    assert list(feedback.desired.positions) == [0.2] * 6 and list(feedback.desired.velocities) == [0.5] * 6
    assert list(feedback.actual.positions) == [0.15] * 6
    np.testing.assert_allclose(feedback.error.positions, 0.05)
    np.testing.assert_allclose(feedback.error.velocities, 0.2)
    assert feedback.actual.time_from_start == Duration(nanosec=250_000_000)
    assert feedback.index == 0


@pytest.mark.parametrize(
    "ending, state",
    [
        (Ending("goal reached", Code.SUCCESSFUL), "succeeded"),
        (Ending("left its path", Code.PATH_TOLERANCE_VIOLATED), "aborted"),
        (Ending("another goal took over"), "aborted"),
        (Ending("canceled", Code.SUCCESSFUL, canceled=True), "canceled"),
    ],
)
def test_the_client_hears_how_it_ended(rig, ending, state):
    handle = rig.server.send(goal_to(0.5))
    rig.loop.goals[0].ended.set_result(ending)
    rig.spin()
    assert handle.states == ["executing", state]
    assert handle.result == FollowJointTrajectory.Result(int(ending.code), ending.text)
    rig.spin()
    assert len(handle.states) == 2, "once"


def test_the_codes_are_those_of_control_msgs():
    assert {code.name: int(code) for code in Code} == {
        "SUCCESSFUL": 0,
        "INVALID_GOAL": -1,
        "PATH_TOLERANCE_VIOLATED": -4,
        "GOAL_TOLERANCE_VIOLATED": -5,
    }


def test_a_cancel_goes_to_the_loop_with_the_goal_that_was_meant(rig):
    first, second = rig.server.send(goal_to(0.5)), rig.server.send(goal_to(0.6))
    assert rig.server.cancel(second) is CancelResponse.ACCEPT
    assert rig.loop.requests == [CancelGoal(rig.loop.goals[1])]
    rig.loop.goals[0].ended.set_result(Ending("another goal took over"))
    rig.loop.goals[1].ended.set_result(Ending("canceled", Code.SUCCESSFUL, canceled=True))
    rig.spin()
    assert first.states[-1] == "aborted" and second.states[-1] == "canceled"


def test_at_the_nodes_end_the_clients_are_told(rig):
    handle = rig.server.send(goal_to(0.5))
    rig.loop.goals[0].ended.set_result(Ending("the node is ending"))
    rig.action.close()
    assert handle.states[-1] == "aborted" and handle.result.error_string == "the node is ending"
