# SPDX-License-Identifier: Apache-2.0
"""Starts the policy and its arm, simulated or real.

``process_list`` says what runs and with which parameters, as plain data. ``launch/policy.launch.py``
renders that list with launch_ros; ``main`` here runs it where launch is not installed.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from smolvla_mem_ros.bags.writer import STORAGES
from smolvla_mem_ros.cli import processes
from smolvla_mem_ros.share import PACKAGE, share_path
from smolvla_mem_ros.sim.tasks import TASKS

LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")

MAKE_TINY = "python -m smolvla_mem_ros.cli.make_tiny_checkpoint"

EXAMPLES = f"""examples:
  everything simulated:
    bringup sim:=true checkpoint:=outputs/tiny task:="put the cube in the box"
  a memory task in simulation (docs/simulation.md says how to start a trial):
    bringup sim:=true sim_task:=CueRecall2 contract:=config/memory_tasks.yaml checkpoint:=my_checkpoint
  the same, recorded into a rosbag2:
    bringup sim:=true checkpoint:=outputs/tiny record:=outputs/monday
  a real arm:
    bringup sim:=false port:=/dev/ttyACM0 calibration:=follower.json checkpoint:=my_checkpoint
  the same through launch, where it is installed:
    ros2 launch {PACKAGE} policy.launch.py sim:=true checkpoint:=outputs/tiny
"""


class BringupError(ValueError):
    """The arguments name something that cannot be started; the text says what and what to do."""


def _argument(default: str | int | bool, description: str):
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True)
class BringupArguments:
    """What bring-up and the launch file take, as ``name:=value``.

    Those that are left at their default and that a node has a default of its own for (sim_task, contract,
    task, device, num_mem_tokens) are not handed on, so that ``params_file`` can set them.
    """

    sim: bool = _argument(True, "simulate the arm and its cameras; false drives a real arm")
    sim_task: str = _argument(
        "", f"memory task that the simulation plays: {', '.join(TASKS)}; empty for none"
    )
    port: str = _argument(
        "", "serial device of the arm, such as /dev/ttyACM0; in simulation the path to offer the device under"
    )
    calibration: str = _argument(
        "", "LeRobot's calibration file of the arm (JSON); in simulation the package's own by default"
    )
    checkpoint: str = _argument("", "folder or hub name of the policy")
    contract: str = _argument(
        "", "YAML file that joins cameras and joints to the policy; the package's own by default"
    )
    task: str = _argument("", "what to do, in words; when given, an episode starts by itself")
    params_file: str = _argument("", "YAML file of ROS parameters for the nodes")
    namespace: str = _argument("", "put before the names of all nodes, topics and services")
    log_level: str = _argument("info", f"least severe log lines to show: {', '.join(LOG_LEVELS)}")
    autostart: bool = _argument(True, "the policy configures and activates itself")
    device: str = _argument("auto", "where the policy computes: auto, cpu, cuda, cuda:1, mps")
    num_mem_tokens: int = _argument(
        -1, "memory tokens of the policy: -1 as it was trained, 0 switches its memory off"
    )
    record: str = _argument("", "folder of a rosbag2 to record into; it must not be there yet")
    record_storage: str = _argument("mcap", f"format of that bag: {', '.join(STORAGES)}")

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> BringupArguments:
        """From texts, as a command line or a launch context gives them.

        Raises:
            BringupError: an unknown name, or a value that is not of the argument's type.
        """
        known = {argument.name: argument for argument in fields(cls)}
        parsed = {}
        for name, text in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "--show-args lists those there are."
                raise BringupError(f"there is no argument {name!r}; {hint}")
            parsed[name] = _read(name, text, type(known[name].default))
        return cls(**parsed)


def _read(name: str, text: str, kind: type) -> str | int | bool:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise BringupError(f"{name} must be true or false, not {text!r}.")
        return text.lower() in ("true", "1")
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise BringupError(f"{name} must be a whole number, not {text!r}.") from None
    return text


def as_text(value: str | int | bool) -> str:
    """A value as it is written after ``:=``."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class NodeSpec:
    """One ROS node in a process of its own.

    Args:
        executable: its name for ``ros2 run``, and of its module in ``nodes/``.
        name: of the node.
        namespace: without a leading slash; empty for none.
        parameters: set after ``params_file``, so they win over it.
        params_file: YAML file of ROS parameters; empty for none.
        log_level: one of ``LOG_LEVELS``.
        required: when it ends, everything ends.
    """

    executable: str
    name: str
    namespace: str
    parameters: Mapping[str, str | int | bool]
    params_file: str
    log_level: str
    required: bool = True

    @property
    def full_name(self) -> str:
        return "/".join(("", *filter(None, (self.namespace, self.name))))


def process_list(arguments: BringupArguments) -> tuple[NodeSpec, ...]:
    """What runs for ``arguments``, in the order of starting.

    Raises:
        BringupError: something that is needed is missing or not there; names cause and cure.
    """
    namespace = arguments.namespace.strip("/")
    if not re.fullmatch(r"([A-Za-z_]\w*(/[A-Za-z_]\w*)*)?", namespace, re.ASCII):
        raise BringupError(
            f"namespace {arguments.namespace!r} is no ROS name; use letters, digits and _, such as left_arm."
        )
    if arguments.log_level not in LOG_LEVELS:
        raise BringupError(f"log_level {arguments.log_level!r} is not one of {', '.join(LOG_LEVELS)}.")
    if arguments.sim_task and not arguments.sim:
        raise BringupError("sim_task is played by the simulated arm: add sim:=true, or leave sim_task out.")
    if arguments.sim_task and arguments.sim_task not in TASKS:
        near = difflib.get_close_matches(arguments.sim_task, TASKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TASKS)}."
        raise BringupError(f"there is no sim_task {arguments.sim_task!r}; {hint}")
    # The shell expands ~ only at the start of a word, and here it stands after `:=`.
    paths = ("params_file", "contract", "calibration", "checkpoint", "record")
    arguments = replace(arguments, **{name: os.path.expanduser(getattr(arguments, name)) for name in paths})
    for name in paths[:3]:
        file = getattr(arguments, name)
        if file and not Path(file).is_file():
            raise BringupError(f"{name} {file!r} is not there; give the path of a file, from here or from /.")
    if arguments.record and Path(arguments.record).exists():
        raise BringupError(f"record {arguments.record!r} is there already; name a new folder.")
    if arguments.record_storage not in STORAGES:
        raise BringupError(
            f"record_storage {arguments.record_storage!r} is not one of {', '.join(STORAGES)}."
        )
    if is_missing_folder(arguments.checkpoint):
        raise BringupError(
            f"checkpoint {arguments.checkpoint!r} is not there; "
            f"this makes a tiny one: {MAKE_TINY} {arguments.checkpoint}"
        )
    if arguments.num_mem_tokens not in (-1, 0):
        raise BringupError(
            f"num_mem_tokens must be -1 (as trained) or 0 (memory off), not {arguments.num_mem_tokens}."
        )

    port, calibration = arguments.port, arguments.calibration
    if arguments.sim:
        port = port or simulated_port(namespace)
        calibration = calibration or str(share_path("config/calibration/so100_sim.json"))
    # What is not given here may stand in params_file; the nodes themselves check that.
    if not arguments.params_file:
        if not port:
            raise BringupError("a real arm needs its serial device: add port:=/dev/ttyACM0 (or sim:=true).")
        if not calibration:
            raise BringupError(
                "a real arm needs its calibration: add calibration:=FILE, the JSON file "
                "that lerobot-calibrate wrote."
            )
        if not arguments.checkpoint:
            raise BringupError(
                "no policy is named: add checkpoint:=FOLDER (or a hub name); "
                f"this makes a tiny one: {MAKE_TINY} outputs/tiny"
            )

    def node(executable: str, name: str, **parameters: str | int | bool) -> NodeSpec:
        given = {key: value for key, value in parameters.items() if value != ""}
        return NodeSpec(executable, name, namespace, given, arguments.params_file, arguments.log_level)

    policy = {"checkpoint": arguments.checkpoint, "autostart": arguments.autostart}
    for argument in fields(arguments):
        if argument.name in ("contract", "task", "device", "num_mem_tokens"):
            value = getattr(arguments, argument.name)
            if value != argument.default:
                policy[argument.name] = value
    arm = node("so100_node", "so100", port=port, calibration=calibration)
    simulation = node("so100_sim", "so100_sim", port=port, calibration=calibration, task=arguments.sim_task)
    bag = {"bag": arguments.record, "storage": arguments.record_storage, "contract": arguments.contract}
    return (
        *((node("recorder", "recorder", **bag),) if arguments.record else ()),
        *((simulation,) if arguments.sim else ()),
        arm,
        node("policy_node", "policy", **policy),
    )


def is_missing_folder(checkpoint: str) -> bool:
    """Whether ``checkpoint`` can only be meant as a folder, and is not there.

    A hub name is NAME or OWNER/NAME. The nodes would ask the hub for anything else too, and retry for long.
    """
    path = Path(checkpoint)
    if not checkpoint or path.is_dir():
        return False
    return path.is_absolute() or checkpoint[0] == "." or len(path.parts) > 2 or path.parts[0] in os.listdir()


def simulated_port(namespace: str) -> str:
    """A path for the emulated serial device that no other run on this machine uses."""
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    parts = ("so100", domain, *filter(None, namespace.split("/")), str(os.getpid()))
    return str(Path(tempfile.gettempdir()) / "_".join(parts))


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
    return processes.Process(spec.name, tuple(command), spec.required, transport_environment(os.environ))


def show_arguments() -> str:
    """The arguments, laid out as ``ros2 launch --show-args`` does."""
    lines = ["Arguments (pass arguments as '<name>:=<value>'):"]
    for argument in fields(BringupArguments):
        lines += ["", f"    '{argument.name}':", f"        {argument.metadata['description']}"]
        lines.append(f"        (default: '{as_text(argument.default)}')")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 after Ctrl-C or SIGTERM, 1 when a node ended by itself, 2 for wrong arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        print(f"usage: bringup [--show-args] [NAME:=VALUE ...]\n\n{__doc__}\n{EXAMPLES}\n{show_arguments()}")
        return 0
    if {"-s", "--show-args"} & set(words):
        print(show_arguments())
        return 0
    try:
        values = dict(_split(word) for word in words)
        specs = process_list(BringupArguments.parse(values))
    except (BringupError, FileNotFoundError) as error:
        print(f"bringup: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="smolvla_mem_ros_") as folder:
        return processes.run([to_process(spec, Path(folder)) for spec in specs], name="bringup")


def _split(word: str) -> tuple[str, str]:
    name, sign, value = word.partition(":=")
    if not sign:
        raise BringupError(f"cannot read {word!r}; arguments look like sim:=true (--show-args lists them).")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
