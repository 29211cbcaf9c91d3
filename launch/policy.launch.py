# SPDX-License-Identifier: Apache-2.0
"""Starts the policy and its arm, simulated or real: smolvla_mem_ros/cli/bringup.py, rendered for launch."""

from launch import LaunchDescription

from smolvla_mem_ros.cli import bringup, ros_launch


def generate_launch_description() -> LaunchDescription:
    return ros_launch.launch_description(bringup.BringupArguments, bringup.process_list)
