# SPDX-License-Identifier: Apache-2.0
"""Renders nodes that are given as plain data with launch_ros: all that the files in launch/ need."""

import os
from collections.abc import Callable, Sequence
from dataclasses import fields

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from smolvla_mem_ros.cli import launching
from smolvla_mem_ros.share import PACKAGE


def launch_description(
    kind: type[launching.LaunchArguments], process_list: Callable[..., Sequence[launching.NodeSpec]]
) -> LaunchDescription:
    """Takes the arguments of ``kind`` and starts what ``process_list`` makes of them."""

    def start(context: LaunchContext) -> list:
        values = {each.name: LaunchConfiguration(each.name).perform(context) for each in fields(kind)}
        specs = process_list(kind.parse(values))
        transport = launching.transport_environment(os.environ).items()
        return [*(SetEnvironmentVariable(*item) for item in transport), *map(render, specs)]

    arguments = [
        DeclareLaunchArgument(
            each.name,
            default_value=launching.as_text(each.default),
            description=each.metadata["description"],
        )
        for each in fields(kind)
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def render(spec: launching.NodeSpec) -> Node:
    # Without a type, launch would read a task such as "true" or "12" as something else than text.
    parameters = {
        name: ParameterValue(value, value_type=list[str] if isinstance(value, list) else type(value))
        for name, value in spec.parameters.items()
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
        on_exit=end_all,
    )


def end_all(event: ProcessExited, context: LaunchContext) -> list:
    # An error ends everything too, and makes `ros2 launch` return 1 as launching.run does. A node that ends
    # without one is done, or has just seen Ctrl-C before launch did.
    if event.returncode != 0 and not context.is_shutdown:
        raise RuntimeError(f"{event.process_name} ended with exit code {event.returncode}; ending the others")
    return [Shutdown(reason=f"{event.process_name} ended")]
