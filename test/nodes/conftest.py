# SPDX-License-Identifier: Apache-2.0
"""Nodes that end with the test, and probes that talk to them."""

import os
from pathlib import Path

import pytest
import rclpy
from helpers import NodeProcess
from rclpy.parameter import Parameter

from smolvla_mem_ros.nodes.policy_node import PolicyNode
from smolvla_mem_ros.policy.tiny import make_tiny_checkpoint

from .robot import Robot, Scene


@pytest.fixture(scope="session")
def calibration():
    return Path(__file__).parents[2] / "config/calibration/so100_sim.json"


@pytest.fixture(scope="module")
def node_starter(tmp_path_factory):
    """``start(module, parameters, arguments)``: nodes that last for the test module."""
    nodes = []

    def start(module, parameters, arguments=()):
        nodes.append(NodeProcess(module, tmp_path_factory.mktemp("log"), parameters, arguments))
        return nodes[-1]

    yield start
    for node in nodes:
        if node.process.poll() is None:
            node.end()


@pytest.fixture
def start_node(tmp_path):
    """``start(module, parameters, arguments)``: nodes that last for one test."""
    nodes = []

    def start(module, parameters, arguments=()):
        nodes.append(NodeProcess(module, tmp_path, parameters, arguments))
        return nodes[-1]

    yield start
    for node in nodes:
        if node.process.poll() is None:
            node.process.kill()
            node.process.wait()


@pytest.fixture
def shared_probe(make_probe):
    """For nodes that several tests share: they are in a namespace, away from those of single tests."""
    return make_probe("shared")


@pytest.fixture(scope="session")
def transport_profile():
    """Whether images travel in the package's own shared-memory profile."""
    return "fastdds.xml" in os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE", "")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("policy_node") / "tiny", steps=0)


@pytest.fixture
def make_scene():
    """Returns a function from parameters to a scene; ends all of them."""
    scenes = []
    context = rclpy.Context()
    rclpy.init(context=context)

    def make(**parameters) -> Scene:
        overrides = [
            Parameter(name, value=value) for name, value in {"autostart": True, **parameters}.items()
        ]
        policy = PolicyNode(context=context, parameter_overrides=overrides)
        scenes.append(Scene(context, policy, Robot(context)))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.policy.close()
        scene.close()
        scene.policy.destroy_node()
        scene.robot.destroy_node()
    rclpy.shutdown(context=context)
