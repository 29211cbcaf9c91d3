# SPDX-License-Identifier: Apache-2.0
"""Starts the policy and its arm: smolvla_mem_ros/cli/bringup.py's process list, rendered for launch."""

import os
from dataclasses import fields

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from smolvla_mem_ros.cli import bringup
from smolvla_mem_ros.share import PACKAGE


def render(spec: bringup.NodeSpec) -> Node:
    # Without a type, launch would read a task such as "true" or "12" as something else than text.
    parameters = {
        name: ParameterValue(value, value_type=type(value)) for name, value in spec.parameters.items()
    }
    return Node(
        package=PACKAGE,
        executable=spec.executable,
        name=spec.name,
        namespace=spec.namespace,
        parameters=[*filter(None, [spec.params_file]), parameters],
        ros_arguments=["--log-level", spec.log_level],
        output="screen",
        emulate_tty=True,
        sigterm_timeout="3",
        sigkill_timeout="2",
        on_exit=end_all if spec.required else None,
    )


def end_all(event: ProcessExited, context: LaunchContext) -> list:
    # An error ends everything too, and makes `ros2 launch` return 1 as bringup does. A node that ends
    # without one may just have seen Ctrl-C before launch did.
    if event.returncode != 0 and not context.is_shutdown:
        raise RuntimeError(f"{event.process_name} ended with exit code {event.returncode}; ending the others")
    return [Shutdown(reason=f"{event.process_name} ended")]


def start(context: LaunchContext) -> list:
    names = [argument.name for argument in fields(bringup.BringupArguments)]
    values = {name: LaunchConfiguration(name).perform(context) for name in names}
    specs = bringup.process_list(bringup.BringupArguments.parse(values))
    transport = bringup.transport_environment(os.environ).items()
    return [*(SetEnvironmentVariable(*item) for item in transport), *map(render, specs)]


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(
            argument.name,
            default_value=bringup.as_text(argument.default),
            description=argument.metadata["description"],
        )
        for argument in fields(bringup.BringupArguments)
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
