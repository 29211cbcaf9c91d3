# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 to the policy: smolvla_mem_ros/cli/replay.py, rendered for launch."""

from launch import LaunchDescription

from smolvla_mem_ros.cli import replay, ros_launch


def generate_launch_description() -> LaunchDescription:
    return ros_launch.launch_description(replay.ReplayArguments, replay.process_list)
