# SPDX-License-Identifier: Apache-2.0
"""What runs, as plain data: arguments as ``name:=value``, and the nodes that follow from them.

Each file of launch/ has a program here that says so (bringup, replay). The launch file renders its nodes with
launch_ros, see :mod:`smolvla_mem_ros.cli.ros_launch`; ``run`` starts the same where launch is not installed.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Self

import yaml

from smolvla_mem_ros.bags.writer import STORAGES
from smolvla_mem_ros.cli import processes
from smolvla_mem_ros.share import PACKAGE, share_path

LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")

MAKE_TINY = "python -m smolvla_mem_ros.cli.make_tiny_checkpoint"

Value = str | int | float | bool | list[str]


class LaunchError(ValueError):
    """The arguments name something that cannot be started; the text says what and what to do."""


def argument(default: Value, description: str):
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True)
class NodeSpec:
    """One ROS node in a process of its own. When one ends, everything ends.

    Args:
        executable: its name for ``ros2 run``, and of its module in ``nodes/``.
        name: of the node.
        namespace: without a leading slash; empty for none.
        parameters: set after ``params_file``, so they win over it.
        params_file: YAML file of ROS parameters; empty for none.
        log_level: one of ``LOG_LEVELS``.
    """

    executable: str
    name: str
    namespace: str
    parameters: Mapping[str, Value]
    params_file: str
    log_level: str

    @property
    def full_name(self) -> str:
        return "/".join(("", *filter(None, (self.namespace, self.name))))


@dataclass(frozen=True)
class LaunchArguments:
    """What every program that runs a policy takes, as ``name:=value``; each adds its own.

    Those that are left at their default and that a node has a default of its own for (contract, task, device,
    num_mem_tokens) are not handed on, so that ``params_file`` can set them.
    """

    checkpoint: str = argument("", "folder or hub name of the policy")
    contract: str = argument(
        "", "YAML file that joins cameras and joints to the policy; the package's own by default"
    )
    task: str = argument("", "what to do, in words; when given, an episode starts by itself")
    device: str = argument("auto", "where the policy computes: auto, cpu, cuda, cuda:1, mps")
    num_mem_tokens: int = argument(
        -1, "memory tokens of the policy: -1 as it was trained, 0 switches its memory off"
    )
    record: str = argument("", "folder of a rosbag2 to record into; it must not be there yet")
    record_storage: str = argument("mcap", f"format of that bag: {', '.join(STORAGES)}")
    params_file: str = argument("", "YAML file of ROS parameters for the nodes")
    namespace: str = argument("", "put before the names of all nodes, topics and services")
    log_level: str = argument("info", f"least severe log lines to show: {', '.join(LOG_LEVELS)}")

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> Self:
        """From texts, as a command line or a launch context gives them.

        Raises:
            LaunchError: an unknown name, or a value that is not of the argument's type.
        """
        known = {argument.name: argument for argument in fields(cls)}
        parsed = {}
        for name, text in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "--show-args lists those there are."
                raise LaunchError(f"there is no argument {name!r}; {hint}")
            parsed[name] = _read(name, text, type(known[name].default))
        return cls(**parsed)

    def checked(self, *files: str) -> Self:
        """The same with ``~`` filled in, which the shell does only at the start of a word, not after ``:=``.

        Args:
            files: names of further arguments that are files.

        Raises:
            LaunchError: something is not there, or cannot be used.
        """
        files = ("params_file", "contract", *files)
        paths = {name: os.path.expanduser(getattr(self, name)) for name in (*files, "checkpoint", "record")}
        for name in files:
            if paths[name] and not Path(paths[name]).is_file():
                raise LaunchError(
                    f"{name} {paths[name]!r} is not there; give the path of a file, from here or from /."
                )
        if paths["record"] and Path(paths["record"]).exists():
            raise LaunchError(f"record {paths['record']!r} is there already; name a new folder.")
        if is_missing_folder(paths["checkpoint"]):
            raise LaunchError(
                f"checkpoint {paths['checkpoint']!r} is not there; "
                f"this makes a tiny one: {MAKE_TINY} {paths['checkpoint']}"
            )
        for name, known in (("log_level", LOG_LEVELS), ("record_storage", STORAGES)):
            if getattr(self, name) not in known:
                raise LaunchError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}.")
        if self.num_mem_tokens not in (-1, 0):
            raise LaunchError(
                f"num_mem_tokens must be -1 (as trained) or 0 (memory off), not {self.num_mem_tokens}."
            )
        namespace = self.namespace.strip("/")
        if not re.fullmatch(r"([A-Za-z_]\w*(/[A-Za-z_]\w*)*)?", namespace, re.ASCII):
            raise LaunchError(
                f"namespace {self.namespace!r} is no ROS name; use letters, digits and _, such as left_arm."
            )
        return replace(self, **paths, namespace=namespace)

    def node(self, executable: str, name: str, **parameters: Value) -> NodeSpec:
        """A node with what all nodes share; parameters that are empty texts are left to its own defaults."""
        given = {key: value for key, value in parameters.items() if value != ""}
        return NodeSpec(executable, name, self.namespace, given, self.params_file, self.log_level)

    def policy(self, **parameters: Value) -> NodeSpec:
        for each in fields(LaunchArguments):
            if each.name in ("contract", "task", "device", "num_mem_tokens"):
                value = getattr(self, each.name)
                if value != each.default:
                    parameters[each.name] = value
        return self.node("policy_node", "policy", checkpoint=self.checkpoint, **parameters)

    def recorder(self, **parameters: Value) -> list[NodeSpec]:
        """One, or none when nothing is to be recorded."""
        bag = {"bag": self.record, "storage": self.record_storage, "contract": self.contract}
        return [self.node("recorder", "recorder", **bag, **parameters)] if self.record else []


def is_missing_folder(checkpoint: str) -> bool:
    """Whether ``checkpoint`` can only be meant as a folder, and is not there.

    A hub name is NAME or OWNER/NAME. The nodes would ask the hub for anything else too, and retry for long.
    """
    path = Path(checkpoint)
    if not checkpoint or path.is_dir():
        return False
    return path.is_absolute() or checkpoint[0] == "." or len(path.parts) > 2 or path.parts[0] in os.listdir()


def _read(name: str, text: str, kind: type) -> Value:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise LaunchError(f"{name} must be true or false, not {text!r}.")
        return text.lower() in ("true", "1")
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise LaunchError(f"{name} must be {expected}, not {text!r}.") from None


def as_text(value: Value) -> str:
    """A value as it is written after ``:=``."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def transport_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to ``environment`` so that Fast DDS carries images whole; empty where the user chose."""
    names = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    if any(environment.get(name) for name in names):
        return {}
    # Jazzy's Fast DDS 2 knows only the older name; Kilted's warns about it.
    name = names[1] if environment.get("ROS_DISTRO") == "jazzy" else names[0]
    return {name: str(share_path("config/fastdds.xml"))}


def parameter_file_text(spec: NodeSpec) -> str:
    """The node's own parameters as a ROS parameter file."""
    return yaml.safe_dump({spec.full_name: {"ros__parameters": dict(spec.parameters)}})


def to_process(spec: NodeSpec, folder: Path) -> processes.Process:
    """The command that runs a node; its parameters are written into ``folder``."""
    own = folder / f"{spec.name}.yaml"
    own.write_text(parameter_file_text(spec))
    files = [file for file in (spec.params_file, str(own)) if file]
    command = [sys.executable, "-m", f"{PACKAGE}.start", f"nodes.{spec.executable}", "--ros-args"]
    command += ["-r", f"__node:={spec.name}", "-r", f"__ns:=/{spec.namespace}"]
    command += [part for file in files for part in ("--params-file", file)]
    command += ["--log-level", spec.log_level]
    return processes.Process(spec.name, tuple(command), environment=transport_environment(os.environ))


def show_arguments(kind: type[LaunchArguments]) -> str:
    """The arguments, laid out as ``ros2 launch --show-args`` does."""
    lines = ["Arguments (pass arguments as '<name>:=<value>'):"]
    for each in fields(kind):
        lines += ["", f"    '{each.name}':", f"        {each.metadata['description']}"]
        lines.append(f"        (default: '{as_text(each.default)}')")
    return "\n".join(lines)


def run(
    name: str,
    help_text: str,
    kind: type[LaunchArguments],
    process_list: Callable[..., Sequence[NodeSpec]],
    argv: Sequence[str] | None = None,
) -> int:
    """The program ``name``: what the launch file of ``kind`` and ``process_list`` does.

    Returns:
        0 after Ctrl-C or SIGTERM, or when a node was done; 1 when one failed; 2 for wrong arguments.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        print(f"usage: {name} [--show-args] [NAME:=VALUE ...]\n\n{help_text}\n{show_arguments(kind)}")
        return 0
    if {"-s", "--show-args"} & set(words):
        print(show_arguments(kind))
        return 0
    try:
        specs = process_list(kind.parse(dict(map(_split, words))))
    except (LaunchError, FileNotFoundError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="smolvla_mem_ros_") as folder:
        return processes.run([to_process(spec, Path(folder)) for spec in specs], name=name)


def _split(word: str) -> tuple[str, str]:
    name, sign, value = word.partition(":=")
    if not sign:
        raise LaunchError(f"cannot read {word!r}; arguments look like sim:=true (--show-args lists them).")
    return name, value
