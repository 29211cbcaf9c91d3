# SPDX-License-Identifier: Apache-2.0
"""Pins that a launch file starts what its program starts: same nodes, names, parameters and shutdown."""

import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import launch_recorder
import pytest

import smolvla_mem_ros.cli
from smolvla_mem_ros.cli import bringup, replay
from smolvla_mem_ros.cli.launching import LaunchError, NodeSpec

FOLDER = Path(__file__).parents[1] / "launch"
REAL = importlib.util.find_spec("launch_ros") is not None

PARAMS = "/**:\n  ros__parameters:\n    device: cpu\n"


@pytest.fixture
def calibration(tmp_path):
    file = tmp_path / "arm.json"
    file.write_text("{}")
    return str(file)


@pytest.fixture
def ros_launch(monkeypatch):
    """What renders for launch, with the real launch where it is installed, else with the recorder."""
    if not REAL:
        for name, module in launch_recorder.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "smolvla_mem_ros.cli.ros_launch", raising=False)
    module = importlib.import_module("smolvla_mem_ros.cli.ros_launch")

    class Recorded(module.Node):
        def __init__(self, **given):
            super().__init__(**given)
            self.given = given

    monkeypatch.setattr(module, "Node", Recorded)
    yield module
    # Made of stand-ins, it is not for others; a package remembers its modules too.
    del sys.modules["smolvla_mem_ros.cli.ros_launch"], smolvla_mem_ros.cli.ros_launch


@pytest.fixture
def describe(ros_launch):
    """``describe(name)``: the description that launch/NAME.launch.py makes."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_launch", FOLDER / f"{name}.launch.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.generate_launch_description()

    return load


@pytest.fixture
def evaluate(ros_launch, describe):
    """``evaluate(name, **values)``: what launch/NAME.launch.py would carry out for these ``name:=value``."""

    def run(name, **values):
        context = ros_launch.LaunchContext()
        context.launch_configurations.update(values)
        actions = []
        for entity in describe(name).entities:
            actions += entity.execute(context) or []
        return actions, context

    return run


def as_spec(node, context) -> NodeSpec:
    """The description that would make the program start the same."""
    *files, own = node.given["parameters"]
    level = node.given["ros_arguments"]
    assert level[0] == "--log-level"
    return NodeSpec(
        executable=node.given["executable"],
        name=node.given["name"],
        namespace=node.given["namespace"],
        parameters={name: value.evaluate(context) for name, value in own.items()},
        params_file="".join(files),
        log_level=level[1],
    )


ARGUMENT_SETS = [
    {"checkpoint": "somewhere"},
    {"checkpoint": "somewhere", "task": "true", "namespace": "left", "log_level": "debug"},
    {
        "checkpoint": "12",
        "autostart": "false",
        "device": "cpu",
        "num_mem_tokens": "0",
        "task": "pick: the cube",
    },
    {"checkpoint": "somewhere", "sim": "false", "port": "/dev/ttyACM0"},
    {"sim": "false", "params_file": "PARAMS"},
]


def nodes_of(actions, ros_launch, context):
    return [as_spec(action, context) for action in actions if isinstance(action, ros_launch.Node)]


def types(specs):
    return [{name: type(value) for name, value in spec.parameters.items()} for spec in specs]


@pytest.mark.parametrize("values", ARGUMENT_SETS, ids=str)
def test_the_policys_launch_file_starts_what_bringup_starts(
    ros_launch, evaluate, calibration, tmp_path, values
):
    values = {**values, "calibration": calibration}
    if "params_file" in values:
        values["params_file"] = str(tmp_path / "params.yaml")
        Path(values["params_file"]).write_text(PARAMS)

    actions, context = evaluate("policy", **values)

    expected = bringup.process_list(bringup.BringupArguments.parse(values))
    specs = nodes_of(actions, ros_launch, context)
    assert specs == list(expected) and types(specs) == types(expected)


def test_the_replays_launch_file_starts_what_replay_starts(ros_launch, evaluate, tmp_path):
    values = {"bag": str(tmp_path), "loop": "true", "remap": "/a:=/b, /c:=/d", "record": "new", "rate": "2"}
    actions, context = evaluate("replay", **values)
    expected = replay.process_list(replay.ReplayArguments.parse(values))
    specs = nodes_of(actions, ros_launch, context)
    assert specs == list(expected) and types(specs) == types(expected)
    assert specs[-1].parameters["remap"] == ["/a:=/b", "/c:=/d"]


def test_a_node_that_ends_takes_the_others_with_it_on_the_programs_timetable(
    ros_launch, evaluate, calibration
):
    actions, _ = evaluate("policy", checkpoint="somewhere", calibration=calibration)
    nodes = [action for action in actions if isinstance(action, ros_launch.Node)]
    assert len(nodes) == 3
    for node in nodes:
        assert node.given["package"] == "smolvla_mem_ros"
        assert node.given["on_exit"] is ros_launch.end_all
        assert (node.given["sigterm_timeout"], node.given["sigkill_timeout"]) == ("3", "2")


@pytest.mark.parametrize(("returncode", "shutting_down"), [(0, False), (0, True), (-9, True)])
def test_a_node_that_ends_on_ctrl_c_is_no_error(ros_launch, returncode, shutting_down):
    event = SimpleNamespace(returncode=returncode, process_name="policy_node-3")
    (action,) = ros_launch.end_all(event, SimpleNamespace(is_shutdown=shutting_down))
    assert isinstance(action, ros_launch.Shutdown)


def test_a_node_that_crashes_is_an_error(ros_launch):
    event = SimpleNamespace(returncode=3, process_name="policy_node-3")
    with pytest.raises(RuntimeError, match="policy_node-3 ended with exit code 3; ending the others"):
        ros_launch.end_all(event, SimpleNamespace(is_shutdown=False))


@pytest.mark.parametrize(
    ("name", "kind"), [("policy", bringup.BringupArguments), ("replay", replay.ReplayArguments)]
)
def test_arguments_are_those_of_the_program(ros_launch, describe, name, kind):
    declared = [
        entity for entity in describe(name).entities if isinstance(entity, ros_launch.DeclareLaunchArgument)
    ]
    assert [argument.name for argument in declared] == [f.name for f in fields(kind)]
    assert all(argument.description for argument in declared)

    context = ros_launch.LaunchContext()
    for argument in declared:
        argument.execute(context)
    names = [argument.name for argument in declared]
    defaults = {name: ros_launch.LaunchConfiguration(name).perform(context) for name in names}
    assert kind.parse(defaults) == kind()


def test_fast_dds_profile_is_set_unless_the_user_chose_one(ros_launch, evaluate, calibration, monkeypatch):
    def variables():
        actions, _ = evaluate("policy", checkpoint="somewhere", calibration=calibration)
        return [action for action in actions if isinstance(action, ros_launch.SetEnvironmentVariable)]

    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    assert len(variables()) == 1
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "mine.xml")
    assert variables() == []


def test_a_missing_checkpoint_is_refused_with_the_cure(evaluate, calibration):
    with pytest.raises(LaunchError, match=r"add checkpoint:=FOLDER.*make_tiny_checkpoint"):
        evaluate("policy", calibration=calibration)
