# SPDX-License-Identifier: Apache-2.0
"""so100_node's parameters: the shipped file holds the defaults, and a change is answered when it holds."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import rclpy
import yaml
from rclpy.parameter import Parameter

from smolvla_mem_ros.nodes import so100_node


@pytest.fixture
def make_node(tmp_path):
    """``make()``: a node without an arm, in this process."""
    nodes = []
    rclpy.init(
        args=["--ros-args", "-p", f"port:={tmp_path / 'none'}", "-p", f"calibration:={tmp_path}/a.json"]
    )

    def make():
        nodes.append(so100_node.So100Node())
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()
        node.destroy_node()
    rclpy.shutdown()


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_shipped_file_holds_every_parameter_with_its_default(make_node):
    file = yaml.safe_load((Path(__file__).parents[2] / "config/so100.yaml").read_text())
    shipped = dict(flat(file["/**/so100"]["ros__parameters"]))
    node = make_node()
    ours = {name: node.get_parameter(name).value for name in node._parameters}
    for name in ("use_sim_time", "start_type_description_service", "port", "calibration"):
        ours.pop(name, None)
        shipped.pop(name, None)
    assert shipped == ours


def set_speed(node, value):
    return node.set_parameters([Parameter("speed_scaling", value=value)])[0]


def test_a_speed_scaling_is_taken_before_it_is_answered_also_without_an_arm(make_node):
    node = make_node()
    assert set_speed(node, 0.2).successful
    assert node._loop.config.speed_scaling == 0.2
    assert not set_speed(node, 1.5).successful
    assert node._loop.config.speed_scaling == 0.2


def test_a_speed_scaling_that_the_loop_does_not_take_is_refused_and_not_taken_later(make_node, monkeypatch):
    monkeypatch.setattr(so100_node, "ANSWER_TIMEOUT", 0.05)
    node, pending = make_node(), Future()
    with monkeypatch.context() as patch:
        patch.setattr(node, "_loop", SimpleNamespace(request=lambda _: pending))
        result = set_speed(node, 0.2)
    assert not result.successful and "has not answered" in result.reason
    assert pending.cancelled()
    assert node.get_parameter("speed_scaling").value == 1.0
