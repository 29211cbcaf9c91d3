# SPDX-License-Identifier: Apache-2.0
"""Bags become a dataset that lerobot-train reads; what is stale or missing makes no frame."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from bag_helpers import Maker, write_run
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from smolvla_mem_ros.cli import bag_to_dataset
from smolvla_mem_ros.share import share_path
from smolvla_mem_ros.training.recipe import QUICK, ensure_backbone, tiny_options


@pytest.fixture(scope="module")
def maker():
    return Maker()


@pytest.fixture
def convert(tmp_path):
    """``convert(bags, ...)`` to a dataset with PNGs at 15 frames a second; (exit code, dataset or None)."""

    def run(*bags, output="dataset", options=("--images",)):
        folder = tmp_path / output
        contract = share_path("config/memory_tasks.yaml")
        arguments = [*map(str, bags), "--output", str(folder), "--contract", str(contract), *options]
        code = bag_to_dataset.main(arguments)
        there = (folder / "meta" / "info.json").is_file()
        return code, LeRobotDataset("local/dataset", root=folder) if there and code == 0 else None

    return run


def test_frames_hold_what_was_seen_and_where_the_joints_went(tmp_path, maker, convert, capsys):
    events = [(0.5, "start", 1, "sway"), (2.5, "stop", 1, "sway"), (3.0, "start", 2, "push")]
    bag = write_run(tmp_path / "bag", maker, 5, events)
    code, dataset = convert(bag)
    assert code == 0 and dataset.fps == 15
    assert [dataset.meta.episodes["length"][i] for i in range(2)] == [30, 29]
    assert dataset[0]["task"] == "sway" and dataset[40]["task"] == "push"
    # The first joint moves 0.1 rad/s; the action is where it is one frame later. The first frame is at the
    # second tick: what was seen before the episode began does not count.
    states, actions = (
        torch.stack([dataset[i][k] for i in range(30)]) for k in ("observation.state", "action")
    )
    np.testing.assert_allclose(np.diff(states[:, 0]), np.degrees(0.1 / 15), atol=0.15)
    np.testing.assert_allclose(actions[:-1, 0], np.degrees(0.1) * (0.5 + (np.arange(29) + 2) / 15), atol=0.12)
    assert dataset[0]["observation.images.front"].shape == (3, 4, 6)
    assert "actions from joint states" in capsys.readouterr().out


def test_actions_are_the_commands_where_there_are_any(tmp_path, maker, convert):
    held = [[0.2, 0, 0, 0, 0, 0.5], [0.4, 0, 0, 0, 0, 0.5]]
    bag = write_run(
        tmp_path / "bag", maker, 4, [(0.5, "start", 1, "sway")], commands=[(1.0, (0.0, 1.0), held)]
    )
    code, dataset = convert(bag)
    actions = np.array([dataset[i]["action"][0] for i in range(len(dataset))])
    assert code == 0
    # Nothing was commanded before; after its end a trajectory is held.
    np.testing.assert_allclose(actions[0], np.degrees(0.2), atol=1.0)
    np.testing.assert_allclose(actions[20:], np.degrees(0.4), atol=1e-3)
    ledger = json.loads((tmp_path / "dataset" / "bags.json").read_text())
    (quality,) = ledger["bags"].values()
    assert quality["actions_from"] == "commands"
    assert quality["dropped"]["no action: nothing in the commands yet, or any more"] in (6, 7, 8)


def test_what_is_stale_makes_no_frame_and_a_gap_divides_episodes(tmp_path, maker, convert, capsys):
    events = [(0.5, "start", 1, "sway")]
    bag = write_run(tmp_path / "bag", maker, 6, events, silent=[(2.0, 3.0), (4.0, 4.3)])
    code, dataset = convert(bag)
    assert code == 0 and dataset.num_episodes == 2
    (quality,) = json.loads((tmp_path / "dataset" / "bags.json").read_text())["bags"].values()
    stale = sum(n for reason, n in quality["dropped"].items() if reason.startswith("stale"))
    assert 12 <= stale <= 18 and quality["frames"] == len(dataset)
    assert quality["age_ms"]["front"]["max"] <= 200 and quality["streams"]["front"]["longest_gap_s"] > 1
    assert "control periods without a frame: stale" in capsys.readouterr().out


def test_bags_are_added_once_each(tmp_path, maker, convert, capsys):
    bags = [write_run(tmp_path / name, maker, 2) for name in ("one", "two")]
    task = ("--images", "--task", "sway")
    assert convert(bags[0], options=task)[1].num_episodes == 1
    code, dataset = convert(*bags, options=task)
    assert code == 0 and dataset.num_episodes == 2
    assert f"{bags[0]}: is in" in capsys.readouterr().out
    other = tmp_path / "other.yaml"
    other.write_text(share_path("config/memory_tasks.yaml").read_text() + "\n")
    assert (
        bag_to_dataset.main([str(bags[0]), "--output", str(tmp_path / "dataset"), "--contract", str(other)])
        == 1
    )
    assert "made with another contract" in capsys.readouterr().err


def test_an_interrupted_bag_goes_on_where_it_was(tmp_path, maker, convert, monkeypatch):
    events = [(t, "start", i + 1, f"task {i}") for i, t in enumerate((0.2, 1.2, 2.2, 3.2))]
    bag = write_run(tmp_path / "bag", maker, 4, events)
    _, whole = convert(bag, output="whole")
    save, saved = LeRobotDataset.save_episode, []

    def interrupted(self, *arguments, **options):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(1)
        return save(self, *arguments, **options)

    monkeypatch.setattr(LeRobotDataset, "save_episode", interrupted)
    assert convert(bag)[0] == 130
    monkeypatch.undo()
    _, dataset = convert(bag)
    assert len(dataset) == len(whole) and dataset.num_episodes == 4
    for i in range(0, len(whole), 5):
        assert torch.equal(dataset[i]["observation.state"], whole[i]["observation.state"])
        assert dataset[i]["task"] == whole[i]["task"]


def test_video_is_the_default(tmp_path, maker, convert):
    bag = write_run(tmp_path / "bag", maker, 2, size=(48, 64))
    code, dataset = convert(bag, options=("--task", "sway"))
    assert code == 0 and list(dataset.root.rglob("*.mp4"))
    assert dataset[0]["observation.images.front"].shape == (3, 48, 64)


@pytest.mark.parametrize(
    ("name", "says"), [("nowhere", "is not there"), ("silent", "say so with --task")], ids=str
)
def test_what_cannot_be_converted_is_told_in_one_line(tmp_path, maker, convert, capsys, name, says):
    write_run(tmp_path / "silent", maker, 1)
    assert convert(tmp_path / name) == (1, None)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("bag_to_dataset: ") and says in error


def test_a_folder_of_something_else_is_not_touched(tmp_path, maker, convert, capsys):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine").touch()
    assert convert(write_run(tmp_path / "bag", maker, 1), options=("--task", "x"))[0] == 1
    assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "dataset" / "mine").exists()


@pytest.mark.slow
def test_lerobot_trains_a_memory_on_it(tmp_path, maker, convert):
    bag = write_run(tmp_path / "bag", maker, 6, size=(48, 64))
    _, dataset = convert(bag, options=("--images", "--task", "sway"))
    backbone = ensure_backbone(tmp_path / "backbone")
    options = [o for o in tiny_options("smolvla_mem", backbone, QUICK) if not o.startswith("--save_freq")]
    command = [
        sys.executable, "-m", "lerobot.scripts.lerobot_train", "--policy.type=smolvla_mem",
        "--policy.discover_packages_path=smolvla_mem_ros.policy", *options,
        "--dataset.repo_id=local/dataset", f"--dataset.root={dataset.root}", "--batch_size=2", "--steps=2",
        f"--output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run/checkpoints/000002/pretrained_model/model.safetensors").is_file()
