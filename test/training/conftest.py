# SPDX-License-Identifier: Apache-2.0
"""A small dataset of the memory tasks, and results as if every run had been made."""

import json

import pytest

from smolvla_mem_ros.cli import collect_demos
from smolvla_mem_ros.training import ablations
from smolvla_mem_ros.training.recipe import RECIPE, Demos


@pytest.fixture(scope="session")
def demos():
    """What :func:`demos_folder` holds."""
    return Demos("demos", ("CueRecall2", "TakeItBack3"), episodes=2, seed=3)


@pytest.fixture(scope="session")
def demos_folder(demos, tmp_path_factory):
    work = tmp_path_factory.mktemp("training")
    assert collect_demos.main(demos.arguments(work)) == 0
    return work / demos.folder


@pytest.fixture
def write_result():
    """Writes the result of a run in which ``successes(task, mode, delay)`` of 50 episodes succeeded."""

    def write(run, folder, successes=lambda task, mode, delay: 40, recipe=RECIPE):
        rest = {"n": 50, "interval": [0.1, 0.9], "mean_reward": 0.5}
        scores = [
            {"task": task, "mode": mode, "delay": delay, "successes": successes(task, mode, delay), **rest}
            for task, mode, delay in run.cells
        ]
        result = ablations.record(run, recipe, 50, scores, 600.0, 900.0)
        path = run.result(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
        return path

    return write
