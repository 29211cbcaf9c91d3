# SPDX-License-Identifier: Apache-2.0
"""so100_node takes what MoveIt, rqt_joint_trajectory_controller and ros2 topic pub send, over DDS.

What that is was read in their sources: moveit_core's RobotTrajectory and rqt_joint_trajectory_controller of
Kilted, ros2topic 0.36.
"""

import time

import numpy as np
import pytest
from helpers import trajectory
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from smolvla_mem_ros.sim.emulator_process import EmulatorProcess
from smolvla_mem_ros.sim.scene import HOME
from smolvla_mem_ros.so100.arm import JOINTS

TOPIC = "so100/joint_trajectory"


@pytest.fixture(scope="module")
def arm(node_starter, tmp_path_factory, calibration):
    """(emulator, node). MoveIt plans for groups, such as the arm without its gripper."""
    port = tmp_path_factory.mktemp("arm") / "ttySO100"
    with EmulatorProcess(port, calibration) as emulator:
        emulator.wait_ready()
        parameters = {"port": port, "calibration": calibration, "allow_partial_joints_goal": True}
        node = node_starter("so100_node", parameters, ["-r", "__ns:=/shared"])
        node.wait_for("connected and holding still")
        yield emulator, node


@pytest.fixture
def sender(shared_probe):
    """``sender(qos)``: a publisher that the node has found."""
    publishers = []

    def sender(qos=10, matched=True):
        publisher = shared_probe.create_publisher(JointTrajectory, TOPIC, qos)
        publishers.append(publisher)
        if matched:
            shared_probe.spin_until(lambda: publisher.get_subscription_count() > 0)
        return publisher

    yield sender
    for publisher in publishers:
        shared_probe.destroy_publisher(publisher)


def reaches(probe, goal, joints=JOINTS, tolerance=0.05):
    columns = [JOINTS.index(joint) for joint in joints]
    probe.spin_until(
        lambda: (
            probe.states
            and np.abs(np.array(probe.states[-1].position)[columns] - np.array(goal)).max() < tolerance
        )
    )


@pytest.fixture(autouse=True)
def at_home(arm, sender, shared_probe):
    shared_probe.fresh_state()
    sender().publish(trajectory((0.6, HOME)))
    reaches(shared_probe, HOME)
    shared_probe.states.clear()


def moveit(begin, end, joints, seconds=1.2, steps=13):
    """As moveit_core's getRobotTrajectoryMsg writes it, after a time parametrisation: stamp 0, the model's
    frame, a first point at time 0 where the arm is, velocities and accelerations from rest to rest."""
    message = JointTrajectory(joint_names=list(joints))
    message.header.frame_id = "base_link"
    way = np.array(end) - np.array(begin)
    for s in np.linspace(0, 1, steps):
        # A quintic from rest to rest.
        place, rate, bend = (
            10 * s**3 - 15 * s**4 + 6 * s**5,
            30 * s**2 * (1 - s) ** 2,
            60 * s * (1 - s) * (1 - 2 * s),
        )
        point = JointTrajectoryPoint(
            positions=(np.array(begin) + way * place).tolist(),
            velocities=(way * rate / seconds).tolist(),
            accelerations=(way * bend / seconds**2).tolist(),
        )
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(round(s * seconds * 1e9), 10**9)
        message.points.append(point)
    return message


def test_a_plan_of_moveit_for_the_arm_without_its_gripper_is_followed(arm, sender, shared_probe):
    joints = JOINTS[:5]
    # MoveIt plans from joint_states, which are not quite what the servos were told.
    begin = np.array(shared_probe.fresh_state().position)[:5]
    goal = np.array(HOME[:5]) + [0.4, 0.1, -0.2, 0.1, 0.3]
    shared_probe.states.clear()
    sender().publish(moveit(begin, goal, joints))
    reaches(shared_probe, goal, joints)
    speeds = np.array([state.velocity[0] for state in shared_probe.states])
    assert speeds.max() < 0.4 / 1.2 * 1.875 * 1.5, "the quintic's largest, and some for the servo"
    assert shared_probe.states[-1].position[5] == pytest.approx(HOME[5], abs=0.05)


def test_the_sliders_of_rqt_joint_trajectory_controller_move_the_arm_without_jerks(sender, shared_probe):
    """Ten times a second one point of positions alone, at least 0.5 s ahead at full speed, stamp 0."""
    publisher = sender(QoSProfile(depth=1))
    slider = np.array(HOME)
    for _ in range(20):
        slider[0] = min(slider[0] + 0.03, HOME[0] + 0.4)
        publisher.publish(trajectory((0.5, slider)))
        shared_probe.spin(0.1)
    reaches(shared_probe, slider)
    positions = np.array([state.position[0] for state in shared_probe.states])
    assert (np.diff(positions) > -0.01).all(), "it never goes back"


@pytest.mark.parametrize("durability", [DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL])
def test_one_trajectory_of_ros2_topic_pub_moves_the_arm(sender, shared_probe, durability):
    """``ros2 topic pub --once`` is reliable by default, with a stamp of 0, and is gone 0.1 s later."""
    publisher = sender(QoSProfile(depth=1, durability=durability))
    goal = np.array(HOME) + [-0.3, 0, 0, 0, 0, 0.2]
    publisher.publish(trajectory((0.6, goal)))
    time.sleep(0.1)
    shared_probe.destroy_publisher(publisher)
    reaches(shared_probe, goal)


def test_a_best_effort_sender_is_told_apart_and_not_listened_to(arm, sender, shared_probe):
    """A trajectory that may get lost is none; so it is with joint_trajectory_controller."""
    publisher = sender(QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT), matched=False)
    arm[1].wait_for("offering incompatible QoS", 15)
    assert "RELIABILITY" in arm[1].log
    publisher.publish(trajectory((0.5, np.array(HOME) + 0.3)))
    shared_probe.spin(1.0)
    reaches(shared_probe, HOME)
