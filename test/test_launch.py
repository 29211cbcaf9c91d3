# SPDX-License-Identifier: Apache-2.0
"""Pins that the launch file starts what bring-up starts: same nodes, names, parameters and shutdown."""

import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import launch_recorder
import pytest

from smolvla_mem_ros.cli import bringup

LAUNCH_FILE = Path(__file__).parents[1] / "launch" / "policy.launch.py"
REAL = importlib.util.find_spec("launch_ros") is not None

PARAMS = "/**:\n  ros__parameters:\n    device: cpu\n"


@pytest.fixture
def calibration(tmp_path):
    file = tmp_path / "arm.json"
    file.write_text("{}")
    return str(file)


@pytest.fixture
def launch_file(monkeypatch):
    """The launch file as a module, with the real launch where it is installed, else with the recorder."""
    if not REAL:
        for name, module in launch_recorder.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("policy_launch", LAUNCH_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Recorded(module.Node):
        def __init__(self, **given):
            super().__init__(**given)
            self.given = given

    monkeypatch.setattr(module, "Node", Recorded)
    return module


def evaluate(launch_file, **values):
    """What the launch file would carry out for these ``name:=value``, and the context it did it in."""
    context = launch_file.LaunchContext()
    context.launch_configurations.update(values)
    actions = []
    for entity in launch_file.generate_launch_description().entities:
        actions += entity.execute(context) or []
    return actions, context


def as_spec(node, context) -> bringup.NodeSpec:
    """The description that would make bring-up start the same."""
    *files, own = node.given["parameters"]
    level = node.given["ros_arguments"]
    assert level[0] == "--log-level"
    return bringup.NodeSpec(
        executable=node.given["executable"],
        name=node.given["name"],
        namespace=node.given["namespace"],
        parameters={name: value.evaluate(context) for name, value in own.items()},
        params_file="".join(files),
        log_level=level[1],
        required=bool(node.given["on_exit"]),
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


@pytest.mark.parametrize("values", ARGUMENT_SETS, ids=str)
def test_launch_file_matches_the_process_list(launch_file, calibration, tmp_path, values):
    values = {**values, "calibration": calibration}
    if "params_file" in values:
        values["params_file"] = str(tmp_path / "params.yaml")
        Path(values["params_file"]).write_text(PARAMS)

    actions, context = evaluate(launch_file, **values)

    nodes = [action for action in actions if isinstance(action, launch_file.Node)]
    expected = bringup.process_list(bringup.BringupArguments.parse(values))
    assert [as_spec(node, context) for node in nodes] == list(expected)
    types = [{k: type(v) for k, v in as_spec(node, context).parameters.items()} for node in nodes]
    assert types == [{k: type(v) for k, v in spec.parameters.items()} for spec in expected]
    assert all(node.given["package"] == "smolvla_mem_ros" for node in nodes)


def test_a_node_that_ends_takes_the_others_with_it_on_bringups_timetable(launch_file, calibration):
    actions, _ = evaluate(launch_file, checkpoint="somewhere", calibration=calibration)
    nodes = [action for action in actions if isinstance(action, launch_file.Node)]
    assert len(nodes) == 3
    for node in nodes:
        assert node.given["on_exit"] is launch_file.end_all
        assert (node.given["sigterm_timeout"], node.given["sigkill_timeout"]) == ("3", "2")


@pytest.mark.parametrize(("returncode", "shutting_down"), [(0, False), (0, True), (-9, True)])
def test_a_node_that_ends_on_ctrl_c_is_no_error(launch_file, returncode, shutting_down):
    event = SimpleNamespace(returncode=returncode, process_name="policy_node-3")
    (action,) = launch_file.end_all(event, SimpleNamespace(is_shutdown=shutting_down))
    assert isinstance(action, launch_file.Shutdown)


def test_a_node_that_crashes_is_an_error(launch_file):
    event = SimpleNamespace(returncode=3, process_name="policy_node-3")
    with pytest.raises(RuntimeError, match="policy_node-3 ended with exit code 3; ending the others"):
        launch_file.end_all(event, SimpleNamespace(is_shutdown=False))


def test_arguments_are_those_of_bringup(launch_file):
    declared = [
        entity
        for entity in launch_file.generate_launch_description().entities
        if isinstance(entity, launch_file.DeclareLaunchArgument)
    ]
    assert [argument.name for argument in declared] == [f.name for f in fields(bringup.BringupArguments)]
    assert all(argument.description for argument in declared)

    context = launch_file.LaunchContext()
    for argument in declared:
        argument.execute(context)
    names = [argument.name for argument in declared]
    defaults = {name: launch_file.LaunchConfiguration(name).perform(context) for name in names}
    assert bringup.BringupArguments.parse(defaults) == bringup.BringupArguments()


def test_fast_dds_profile_is_set_unless_the_user_chose_one(launch_file, calibration, monkeypatch):
    def variables():
        actions, _ = evaluate(launch_file, checkpoint="somewhere", calibration=calibration)
        return [action for action in actions if isinstance(action, launch_file.SetEnvironmentVariable)]

    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    assert len(variables()) == 1
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "mine.xml")
    assert variables() == []


def test_a_missing_checkpoint_is_refused_with_the_cure(launch_file, calibration):
    with pytest.raises(bringup.BringupError, match=r"add checkpoint:=FOLDER.*make_tiny_checkpoint"):
        evaluate(launch_file, calibration=calibration)
