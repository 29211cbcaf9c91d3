# SPDX-License-Identifier: Apache-2.0
"""A recorded run, evaluated offline with the same checkpoint and seed, gives the chunks it published."""

import itertools
import json

import numpy as np
import pytest

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.replay import Modes, Replay
from smolvla_mem_ros.bags.streams import find_topics
from smolvla_mem_ros.cli import evaluate_bag
from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.runtime.contract import load_contract
from smolvla_mem_ros.runtime.engine import Engine
from smolvla_mem_ros.share import share_path

from .robot import stamp

SEED = 5


@pytest.fixture
def recorded(start_node, make_scene, checkpoint, probe, tmp_path):
    """A bag, and the chunks that were published: two episodes and a reset; pictures and joints change."""
    node = start_node("recorder", {"bag": tmp_path / "bag"})
    scene = make_scene(checkpoint=str(checkpoint), seed=SEED)
    counter = itertools.count()

    def shade():
        n = next(counter)
        scene.robot.positions[0] = 0.5 * np.sin(n / 20)
        return n % 256

    scene.robot.shade = shade
    scene.wait_for_state("idle")
    node.wait_for("recording /policy/status")
    scene.spin(1.0)
    scene.call("start_episode", task="sway gently")
    scene.wait_for_commits(4)
    scene.call("reset_memory")
    scene.wait_for_commits(3)
    scene.call("start_episode", task="sway wildly")
    scene.wait_for_commits(3)
    scene.call("stop_episode")
    scene.spin(0.5)
    assert node.end()[0] == 0
    chunks = [t for t in scene.robot.trajectories if len(t.points) > 1]
    return tmp_path / "bag", {stamp(t): np.array([p.positions for p in t.points]) for t in chunks}


def test_the_same_ticks_give_the_same_chunks(recorded, checkpoint, tmp_path):
    folder, published = recorded
    loaded = load_checkpoint(checkpoint, "cpu")
    contract = load_contract(share_path("config/contract.yaml"), loaded.config)
    with Bag(folder) as bag:
        engines = {"on": Engine(loaded, contract, SEED)}
        topics = find_topics(bag, contract)
        replay = Replay(bag, contract, topics, Modes(engines, ["on"], contract), recorded_ticks=True)
        replay.run()
    assert [p.task for p in replay.played] == ["sway gently", "sway wildly"]
    assert [len(p.resets) for p in replay.played] == [1, 0]
    inferred = {i.stamp: i.positions for p in replay.played for i in p.inferences["on"]}
    assert inferred.keys() == published.keys() and len(inferred) >= 10
    for at, positions in inferred.items():
        np.testing.assert_allclose(positions, published[at], atol=1e-6)
    # The same through the program, which finds the seed in the bag; and another seed gives other chunks.
    arguments = [str(folder), "--checkpoint", str(checkpoint), "--ticks", "recorded", "--device", "cpu"]
    errors = {}
    for seed in ([], ["--seed", "6"]):
        output = tmp_path / f"out{len(seed)}"
        assert evaluate_bag.main([*arguments, "--memory", "on", "--output", str(output), *seed]) == 0
        (one,) = json.loads((output / "results.json").read_text())["checkpoints"].values()
        errors[len(seed)] = one["modes"]["on"]["error"]["mean_deg"]
    # Chunks overlap: what is compared with is the newer one where there are two.
    assert errors[0] < errors[2]
