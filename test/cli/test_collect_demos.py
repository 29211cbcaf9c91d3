# SPDX-License-Identifier: Apache-2.0
"""Demonstrations are collected once, whole, and LeRobot reads them; a stopped run goes on where it was."""

import json

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from smolvla_mem_ros.cli import collect_demos
from smolvla_mem_ros.cli.collect_demos import main
from smolvla_mem_ros.sim.tasks import FPS, TASKS


def collect(folder, episodes, *options, task="CueRecall2,TakeItBack3"):
    return main(["--task", task, "--episodes", str(episodes), "--output", str(folder), *options])


def read(folder):
    return LeRobotDataset("local/so100_memory", root=folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two episodes of two tasks, collected in one go."""
    folder = tmp_path_factory.mktemp("demos") / "whole"
    assert collect(folder, 2) == 0
    return folder


def test_lerobot_reads_the_episodes_with_task_rate_and_pictures(whole):
    dataset = read(whole)
    assert (dataset.num_episodes, dataset.fps) == (4, FPS)
    told = [dataset[row["dataset_from_index"]]["task"] for row in dataset.meta.episodes]
    assert told == [TASKS[name].instruction for name in ("CueRecall2", "TakeItBack3")] * 2
    frame = dataset[0]
    assert frame["observation.images.front"].shape == (3, 48, 64)
    assert frame["observation.state"].shape == frame["action"].shape == (6,)


def test_a_run_that_goes_on_gives_the_same_episodes(whole, tmp_path):
    folder = tmp_path / "in_two_sittings"
    assert collect(folder, 1) == 0
    assert collect(folder, 2) == 0
    a, b = read(whole), read(folder)
    assert len(a) == len(b)
    for key in ("action", "observation.state"):
        assert np.array_equal(np.stack(a.hf_dataset[key][:]), np.stack(b.hf_dataset[key][:]))


def test_what_is_complete_is_left_alone(whole):
    before = (whole / "recipe.json").read_text()
    assert collect(whole, 2) == 0
    assert (whole / "recipe.json").read_text() == before


def test_other_options_are_refused_and_nothing_is_lost(whole, capsys):
    assert collect(whole, 2, "--seed", "5") == 1
    assert "was begun with seed 0, not 5: give" in capsys.readouterr().err
    assert read(whole).num_episodes == 4


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    assert collect(tmp_path, 1) == 1
    assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_ctrl_c_keeps_the_finished_episodes_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    played, record = [], collect_demos._record

    def stop_in_the_third(*args):
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append(record(*args))
        return played[-1]

    monkeypatch.setattr(collect_demos, "_record", stop_in_the_third)
    assert collect(tmp_path / "demos", 2) == 130
    assert "goes on with" in capsys.readouterr().err
    assert json.loads((tmp_path / "demos" / "recipe.json").read_text())["episodes"] == 2
    assert read(tmp_path / "demos").num_episodes == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--delay", "2"), "delay 2 is too short"),
        (("--cue_visible",), "TakeItBack3 has no cue"),
    ],
)
def test_what_cannot_be_played_is_refused_before_anything_is_written(tmp_path, capsys, options, says):
    assert collect(tmp_path / "demos", 1, *options) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "demos").exists()


def test_an_unknown_task_is_named_with_those_there_are(tmp_path, capsys):
    assert collect(tmp_path / "demos", 1, task="CueRecal2") == 1
    assert "there is no task 'CueRecal2'; there are CueRecall2" in capsys.readouterr().err
