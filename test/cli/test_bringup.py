# SPDX-License-Identifier: Apache-2.0
"""Pins what bring-up starts for which arguments, and that wrong ones are refused in one sentence."""

from pathlib import Path

import pytest
import rclpy

from smolvla_mem_ros.cli import bringup, launching
from smolvla_mem_ros.cli.bringup import BringupArguments, process_list
from smolvla_mem_ros.cli.launching import LaunchError


@pytest.fixture
def calibration(tmp_path):
    file = tmp_path / "arm.json"
    file.write_text("{}")
    return str(file)


def specs(**values):
    return {spec.name: spec for spec in process_list(BringupArguments.parse(values))}


def test_simulation_and_arm_share_one_port_and_calibration(calibration):
    started = specs(checkpoint="somewhere", calibration=calibration)
    assert list(started) == ["so100_sim", "so100", "policy"]
    assert started["so100_sim"].parameters == started["so100"].parameters
    assert started["so100"].parameters["calibration"] == calibration


def test_a_real_arm_runs_no_simulation(calibration):
    started = specs(checkpoint="somewhere", calibration=calibration, sim="false", port="/dev/ttyACM0")
    assert list(started) == ["so100", "policy"]
    assert started["so100"].parameters == {"port": "/dev/ttyACM0", "calibration": calibration}


def test_a_memory_task_goes_to_the_simulation_alone(calibration):
    started = specs(checkpoint="somewhere", calibration=calibration, sim_task="CueRecall2")
    assert started["so100_sim"].parameters["task"] == "CueRecall2"
    assert "task" not in started["policy"].parameters and "task" not in started["so100"].parameters


def test_a_recorder_runs_on_request_and_hears_the_topics_of_the_same_contract(calibration, tmp_path):
    contract, bag = tmp_path / "contract.yaml", tmp_path / "bag"
    contract.write_text("{}")
    started = specs(checkpoint="somewhere", calibration=calibration, record=str(bag), contract=str(contract))
    assert list(started) == ["recorder", "so100_sim", "so100", "policy"]
    assert started["recorder"].parameters == {"bag": str(bag), "storage": "mcap", "contract": str(contract)}


def test_the_simulated_port_is_not_shared_with_another_domain_or_namespace(monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    ports = {bringup.simulated_port(""), bringup.simulated_port("left")}
    monkeypatch.setenv("ROS_DOMAIN_ID", "8")
    ports.add(bringup.simulated_port(""))
    assert len(ports) == 3


def test_defaults_that_a_node_has_of_its_own_are_left_to_it_and_to_params_file(calibration):
    policy = specs(checkpoint="somewhere", calibration=calibration)["policy"]
    assert policy.parameters == {"checkpoint": "somewhere", "autostart": True}

    values = {"task": "pick", "device": "cpu", "num_mem_tokens": "0", "autostart": "false"}
    policy = specs(checkpoint="somewhere", calibration=calibration, **values)["policy"]
    assert policy.parameters == {
        "checkpoint": "somewhere",
        "autostart": False,
        "task": "pick",
        "device": "cpu",
        "num_mem_tokens": 0,
    }


def test_what_is_missing_may_stand_in_params_file(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("/**:\n  ros__parameters: {}\n")
    started = specs(sim="false", params_file=str(file))
    assert started["so100"].parameters == {}
    assert started["policy"].parameters == {"autostart": True}


def test_a_home_folder_in_a_path_is_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "arm.json").write_text("{}")
    (tmp_path / "policy").mkdir()
    started = specs(checkpoint="~/policy", calibration="~/arm.json")
    assert started["policy"].parameters["checkpoint"] == str(tmp_path / "policy")
    assert started["so100"].parameters["calibration"] == str(tmp_path / "arm.json")


def test_a_checkpoint_may_be_a_folder_or_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "tiny").mkdir(parents=True)
    assert not any(
        map(launching.is_missing_folder, ("outputs/tiny", "outputs", "lerobot/smolvla_base", "name"))
    )
    assert all(map(launching.is_missing_folder, ("outputs/tinny", "/gone", "./name", "one/two/three")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"no policy is named: add checkpoint:=FOLDER .*make_tiny_checkpoint"),
        ({"sim": "false", "checkpoint": "c"}, r"serial device: add port:=/dev/ttyACM0"),
        ({"sim": "false", "checkpoint": "c", "port": "p", "calibration": ""}, r"add calibration:=FILE"),
        ({"checkpoint": "c", "calibration": "gone.json"}, r"calibration 'gone.json' is not there"),
        ({"checkpoint": "c", "params_file": "gone.yaml"}, r"params_file 'gone.yaml' is not there"),
        ({"checkpoint": "c", "contract": "gone.yaml"}, r"contract 'gone.yaml' is not there"),
        ({"checkpoint": "c", "namespace": "left arm"}, r"namespace 'left arm' is no ROS name"),
        ({"checkpoint": "c", "log_level": "loud"}, r"log_level 'loud' is not one of debug, info"),
        ({"checkpoint": "c", "num_mem_tokens": "4"}, r"num_mem_tokens must be -1 .* or 0 .*, not 4"),
        ({"checkpoint": "c", "num_mem_tokens": "few"}, r"num_mem_tokens must be a whole number, not 'few'"),
        ({"checkpoint": "c", "sim_task": "CueRecal2"}, r"no sim_task 'CueRecal2'; did you mean CueRecall2\?"),
        ({"checkpoint": "c", "sim_task": "juggle"}, r"no sim_task 'juggle'; there are CueRecall2, "),
        (
            {"sim": "false", "checkpoint": "c", "port": "p", "sim_task": "CueRecall2"},
            r"sim_task .* add sim:=true",
        ),
        ({"checkpoint": "./gone"}, r"checkpoint './gone' is not there; .*make_tiny_checkpoint ./gone"),
        ({"sim": "maybe"}, r"sim must be true or false, not 'maybe'"),
        ({"chekpoint": "c"}, r"no argument 'chekpoint'; did you mean 'checkpoint'\?"),
        ({"tape": "bag"}, r"no argument 'tape'; --show-args"),
        ({"checkpoint": "c", "record": "."}, r"record '.' is there already; name a new folder"),
        (
            {"checkpoint": "c", "record": "new", "record_storage": "tape"},
            r"'tape' is not one of mcap, sqlite3",
        ),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_with_cause_and_cure(calibration, values, message):
    with pytest.raises(LaunchError, match=message):
        process_list(BringupArguments.parse({"calibration": calibration, **values}))


def test_nodes_get_their_names_and_parameters_through_ros(calibration, tmp_path):
    """The command line as rcl reads it: own parameters win over params_file, the rest of it holds."""
    file = tmp_path / "params.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    autostart: true\n    dry_run: true\n    task: from the file\n"
    )
    values = {"checkpoint": "12", "task": "true", "autostart": "false", "params_file": str(file)}
    spec = specs(**values, calibration=calibration, namespace="/left/arm/")["policy"]
    process = launching.to_process(spec, tmp_path)
    assert process.command[1:4] == ("-m", "smolvla_mem_ros.start", "nodes.policy_node")

    with rclpy.init():
        node = rclpy.create_node(
            "replaced",
            cli_args=list(process.command[3:]),
            automatically_declare_parameters_from_overrides=True,
        )
        assert node.get_fully_qualified_name() == "/left/arm/policy"
        read = {
            name: node.get_parameter(name).value for name in ("checkpoint", "task", "autostart", "dry_run")
        }
        node.destroy_node()
    assert read == {"checkpoint": "12", "task": "true", "autostart": False, "dry_run": True}


def test_the_package_profile_is_used_unless_the_user_chose_one():
    added = launching.transport_environment({})
    assert list(added) == ["FASTDDS_DEFAULT_PROFILES_FILE"]
    assert Path(added["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()
    assert list(launching.transport_environment({"ROS_DISTRO": "jazzy"})) == [
        "FASTRTPS_DEFAULT_PROFILES_FILE"
    ]
    assert launching.transport_environment({"FASTRTPS_DEFAULT_PROFILES_FILE": "mine.xml"}) == {}


def test_help_shows_examples_and_every_argument(capsys):
    assert bringup.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "bringup sim:=true" in shown
    assert all(f"'{name}':" in shown for name in BringupArguments.__dataclass_fields__)
    assert bringup.main(["--show-args"]) == 0
    assert capsys.readouterr().out.startswith("Arguments (pass arguments as '<name>:=<value>'):")


@pytest.mark.parametrize("words", [["sim"], ["tsk:=pick"], ["sim:=true"]])
def test_a_wrong_command_line_ends_with_code_2_and_one_line(capsys, words, calibration):
    assert bringup.main([*words, f"calibration:={calibration}"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("bringup: ")
    assert shown.err.count("\n") == 1
