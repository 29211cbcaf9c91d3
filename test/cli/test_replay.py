# SPDX-License-Identifier: Apache-2.0
"""A bag is played to a policy that runs live, in a namespace of its own, again and again."""

import signal
import subprocess
import sys

import pytest
from bag_helpers import Maker, write_run
from rclpy.qos import DurabilityPolicy, QoSProfile
from smolvla_mem_ros.msg import EpisodeEvent
from trajectory_msgs.msg import JointTrajectory

from smolvla_mem_ros.cli import replay
from smolvla_mem_ros.cli.launching import LaunchError
from smolvla_mem_ros.policy.tiny import make_tiny_checkpoint
from smolvla_mem_ros.runtime.stamps import from_time


def specs(**values):
    return {spec.name: spec for spec in replay.process_list(replay.ReplayArguments.parse(values))}


def test_the_demos_policy_runs_in_a_namespace_of_its_own_on_the_bags_time(tmp_path):
    started = specs(bag=str(tmp_path), record="new")
    assert list(started) == ["recorder", "policy", "bag_player"]
    assert {spec.namespace for spec in started.values()} == {"replay"}
    policy, player = started["policy"].parameters, started["bag_player"].parameters
    assert policy["use_sim_time"] and started["recorder"].parameters["use_sim_time"]
    assert policy["checkpoint"].endswith("config/checkpoints/demo")
    assert policy["contract"] == player["contract"] and player["contract"].endswith("memory_tasks.yaml")
    assert player["clock"] and player["subscribers"] == 2 and player["episodes"]


def test_a_task_takes_the_place_of_the_bags_episodes(tmp_path):
    started = specs(bag=str(tmp_path), checkpoint="owner/policy", task="sway")
    assert started["policy"].parameters["task"] == "sway" and not started["bag_player"].parameters["episodes"]
    assert started["bag_player"].parameters["contract"].endswith("contract.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no bag is named: add bag:="),
        ({"bag": "/nowhere"}, "bag '/nowhere' is not there"),
        ({"bag": ".", "rate": "fast"}, "rate must be a number, not 'fast'"),
        ({"bag": ".", "sim": "true"}, "there is no argument 'sim'"),
        ({"bag": ".", "checkpoint": "./gone"}, "checkpoint './gone' is not there"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_with_cause_and_cure(values, message):
    with pytest.raises(LaunchError, match=message):
        specs(**values)


@pytest.mark.slow
def test_a_bag_that_begins_again_starts_its_episode_again(tmp_path, make_probe):
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny", steps=0)
    bag = write_run(tmp_path / "bag", Maker(), 3, [(0.2, "start", 1, "sway"), (2.8, "stop", 1, "sway")])
    probe, events, commands, real = make_probe("replay"), [], [], []
    kept = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    probe.create_subscription(EpisodeEvent, "policy/episode", events.append, kept)
    probe.create_subscription(JointTrajectory, "so100/joint_trajectory", commands.append, 10)
    probe.create_subscription(JointTrajectory, "/so100/joint_trajectory", real.append, 10)
    arguments = [f"bag:={bag}", f"checkpoint:={checkpoint}", "device:=cpu", "loop:=true"]
    command = [sys.executable, "-m", "smolvla_mem_ros.cli.replay", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            probe.spin_until(lambda: len(events) >= 4 or process.poll() is not None, 90)
            process.send_signal(signal.SIGINT)
            log = process.communicate(timeout=20)[0]
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert [e.event for e in events[:4]] == ["start", "stop", "start", "stop"]
    first, again = (from_time(e.header.stamp) for e in (events[0], events[2]))
    assert again == pytest.approx(first, abs=0.2e9) and events[0].task == "sway"
    assert sum(len(c.points) > 1 for c in commands) >= 8 and not real
    assert "the clock went back by" in log
