# SPDX-License-Identifier: Apache-2.0
"""Record-only stand-ins for the parts of launch and launch_ros that launch/ uses.

They keep what they are given and start nothing. Names and arguments are those of the real ones, so a
launch file that uses anything else fails here too.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class LaunchContext:
    launch_configurations: dict[str, str] = field(default_factory=dict)
    is_shutdown: bool = False


@dataclass
class LaunchDescription:
    entities: list


@dataclass
class DeclareLaunchArgument:
    name: str
    default_value: str
    description: str

    def execute(self, context: LaunchContext) -> None:
        context.launch_configurations.setdefault(self.name, self.default_value)


class OpaqueFunction:
    def __init__(self, *, function) -> None:
        self.function = function

    def execute(self, context: LaunchContext) -> list:
        return self.function(context)


@dataclass
class SetEnvironmentVariable:
    name: str
    value: str


@dataclass
class Shutdown:
    reason: str


class ProcessExited:
    """Only names a type."""


@dataclass
class LaunchConfiguration:
    name: str

    def perform(self, context: LaunchContext) -> str:
        return context.launch_configurations[self.name]


@dataclass
class ParameterValue:
    value: object
    value_type: type

    def evaluate(self, context: LaunchContext) -> object:
        # The real one takes list[str], and no list without the type of what is in it.
        assert self.value_type is not list
        return self.value_type(self.value)


@dataclass
class Node:
    package: str
    executable: str
    name: str
    namespace: str
    parameters: list
    ros_arguments: list
    output: str
    emulate_tty: bool
    sigterm_timeout: str
    sigkill_timeout: str
    on_exit: Callable | None


def modules() -> dict[str, types.ModuleType]:
    """The modules to put into ``sys.modules``."""
    contents = {
        "launch": [LaunchContext, LaunchDescription],
        "launch.actions": [DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown],
        "launch.events": [],
        "launch.events.process": [ProcessExited],
        "launch.substitutions": [LaunchConfiguration],
        "launch_ros": [],
        "launch_ros.actions": [Node],
        "launch_ros.parameter_descriptions": [ParameterValue],
    }
    made = {}
    for name, classes in contents.items():
        made[name] = types.ModuleType(name)
        for each in classes:
            setattr(made[name], each.__name__, each)
    return made
