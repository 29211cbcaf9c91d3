# SPDX-License-Identifier: Apache-2.0
"""control_msgs' FollowJointTrajectory in front of the arm's loop, as joint_trajectory_controller offers it.

Messages become :class:`~smolvla_mem_ros.so100.goals.Goal`, which the loop judges in its own thread; a timer
of the executor tells the client how it goes and ends. control_msgs need not be installed: nothing here but
:func:`follow_joint_trajectory` imports it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from rclpy.task import Future

from smolvla_mem_ros.nodes.parameters import declare
from smolvla_mem_ros.nodes.trajectory_messages import from_trajectory, to_point, to_seconds
from smolvla_mem_ros.so100.arm import JOINTS
from smolvla_mem_ros.so100.goals import Code, Goal, Progress, Tolerances
from smolvla_mem_ros.so100.loop import ArmLoop
from smolvla_mem_ros.so100.requests import CancelGoal

NAME = "so100/follow_joint_trajectory"
MONITOR_RATE = 20.0  # Hz, of feedback; JTC's action_monitor_rate
LAST_WORDS = 0.1  # s for telling clients of the node's end

# rad. A joint that a servo holds sags under the arm's weight; a gripper that has gripped something never gets
# to where it was sent.
GOAL_TOLERANCE = {joint: 0.1 for joint in JOINTS} | {"gripper": 0.0}


def follow_joint_trajectory() -> type | None:
    """control_msgs' action, where it is installed."""
    try:
        from control_msgs.action import FollowJointTrajectory
    except ModuleNotFoundError:
        return None
    return FollowJointTrajectory


def declare_tolerances(node: Node) -> Tolerances:
    """Declares JTC's ``constraints`` parameters; returns what they say."""
    goal_time = declare(
        node,
        "constraints.goal_time",
        2.0,
        "s after a goal's end, within which the arm must be there; 0: it may take for ever",
        (0.0, 3600.0),
    )
    stopped_velocity = declare(
        node,
        "constraints.stopped_velocity_tolerance",
        0.1,
        "rad/s, below which a joint counts as standing still at the goal; 0: it need not",
        (0.0, 10.0),
    )
    path, goal = [], []
    for joint in JOINTS:
        name, bounds = f"constraints.{joint}", (0.0, 6.3)
        path.append(
            declare(node, f"{name}.trajectory", 0.0, "rad that it may be off a goal's path; 0: any", bounds)
        )
        goal.append(
            declare(
                node,
                f"{name}.goal",
                GOAL_TOLERANCE[joint],
                "rad that it may be off at a goal; 0: any",
                bounds,
            )
        )
    return Tolerances.from_parameters(path, goal, stopped_velocity, goal_time)


class TrajectoryAction:
    """The action of one arm. Belongs to the executor's thread.

    Args:
        node: takes the action's server and a timer.
        loop: follows the goals, one at a time; a new one ends the one before, and so does a trajectory from
            the topic.
        tolerances: for what a goal leaves open.
        action_type: control_msgs.action.FollowJointTrajectory.
        make_server: for tests.
    """

    def __init__(
        self,
        node: Node,
        loop: ArmLoop,
        tolerances: Tolerances,
        action_type: Any,
        make_server: Callable[..., Any] = ActionServer,
    ) -> None:
        self._node, self._loop, self._tolerances, self._type = node, loop, tolerances, action_type
        self._goals: list[tuple[ServerGoalHandle, Goal]] = []
        self._endings: dict[bytes, Future] = {}  # by the goal's id, until its client is told
        self._server = make_server(
            node,
            action_type,
            NAME,
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
        )
        self._timer = node.create_timer(1 / MONITOR_RATE, self._watch, autostart=False)

    def close(self) -> None:
        """After the loop has ended: tells the clients so."""
        self._watch()
        # rclpy comes to a result in several steps, none of which says that it was the last.
        until = time.monotonic() + LAST_WORDS
        while self._node.executor and time.monotonic() < until:
            self._node.executor.spin_once(timeout_sec=LAST_WORDS / 10)

    def _on_goal(self, request: Any) -> GoalResponse:
        try:
            refusal = self._loop.refusal(self._goal(request).trajectory)
        except ValueError as error:
            refusal = str(error)
        if refusal:
            self._node.get_logger().warning(f"goal rejected: {refusal}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_accepted(self, handle: ServerGoalHandle) -> None:
        goal = self._goal(handle.request)
        self._loop.submit(goal)
        self._goals.append((handle, goal))
        self._endings[_id(handle)] = Future()
        self._timer.reset()
        handle.execute()

    async def _execute(self, handle: ServerGoalHandle) -> Any:
        ending = await self._endings[_id(handle)]
        del self._endings[_id(handle)]
        logger = self._node.get_logger()
        if ending.canceled:
            logger.info("goal canceled")
            handle.canceled()
        elif ending.code is Code.SUCCESSFUL:
            logger.info(f"goal ended: {ending.text}")
            handle.succeed()
        else:
            logger.warning(f"goal aborted: {ending.text}")
            handle.abort()
        return self._type.Result(error_code=int(ending.code), error_string=ending.text)

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        for known, goal in self._goals:
            if known == handle:
                self._loop.request(CancelGoal(goal))
        return CancelResponse.ACCEPT

    def _goal(self, request: Any) -> Goal:
        """Raises ValueError when its tolerances mean nothing."""
        tolerances = self._tolerances.changed(
            request.path_tolerance, request.goal_tolerance, to_seconds(request.goal_time_tolerance)
        )
        return Goal(from_trajectory(request.trajectory, self._node.get_clock()), tolerances)

    def _watch(self) -> None:
        """Feedback for what goes on; ends what the loop, in its own thread, has ended."""
        going_on = []
        for handle, goal in self._goals:
            if goal.ended.done():
                self._endings[_id(handle)].set_result(goal.ended.result())
                continue
            going_on.append((handle, goal))
            if goal.progress is not None:
                handle.publish_feedback(self._feedback(goal, goal.progress))
        self._goals = going_on
        if not self._goals:
            self._timer.cancel()

    def _feedback(self, goal: Goal, progress: Progress) -> Any:
        desired, actual = (
            (progress.desired, progress.desired_velocity),
            (progress.actual, progress.actual_velocity),
        )
        error = (desired[0] - actual[0], desired[1] - actual[1])
        feedback = self._type.Feedback(joint_names=list(JOINTS))
        feedback.header.stamp = self._node.get_clock().now().to_msg()
        feedback.desired = to_point(progress.time, *desired)
        feedback.actual = to_point(progress.time, *actual)
        feedback.error = to_point(progress.time, *error)
        # JTC's: the point that the arm is on its way to.
        feedback.index = bisect_right(goal.trajectory.points, progress.time, key=lambda point: point.time)
        return feedback


def _id(handle: ServerGoalHandle) -> bytes:
    return bytes(handle.goal_id.uuid)
