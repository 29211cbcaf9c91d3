# SPDX-License-Identifier: Apache-2.0
"""Pins that the dataset in memory gives what LeRobot's own reader gives, key by key."""

import importlib

import numpy as np
import pytest
import torch
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from smolvla_mem_ros.training import in_memory

DatasetReader._load_hf_dataset = in_memory._load_from_disk  # other tests read as ever

# Frames as smolvla_mem asks for them: the first of the episode, and those before the sample's own.
OBSERVED = [-(10**6), -16, -8, 0]
ACTED = list(range(-17, 16))


@pytest.fixture
def open_dataset(demos_folder, monkeypatch):
    def make(reader, folder=demos_folder, deltas=True, **options):
        monkeypatch.setattr(DatasetReader, "_load_hf_dataset", reader)
        if deltas:
            keys = ("observation.images.front", "observation.images.wrist", "observation.state")
            stamps = {key: [i / 15 for i in OBSERVED] for key in keys} | {"action": [i / 15 for i in ACTED]}
            options["delta_timestamps"] = stamps
        return LeRobotDataset("local/demos", root=folder, **options)

    return make


def test_importing_the_module_replaces_lerobots_reader(monkeypatch):
    monkeypatch.setattr(DatasetReader, "_load_hf_dataset", in_memory._load_from_disk)
    importlib.reload(in_memory)
    assert DatasetReader._load_hf_dataset is in_memory._load
    assert in_memory._load_from_disk.__module__ == DatasetReader.__module__


@pytest.mark.parametrize("episodes", [None, [1, 3], [2]])
@pytest.mark.parametrize("deltas", [True, False])
def test_every_key_of_a_sample_equals_what_lerobot_reads(open_dataset, episodes, deltas):
    theirs = open_dataset(in_memory._load_from_disk, deltas=deltas, episodes=episodes)
    ours = open_dataset(in_memory._load, deltas=deltas, episodes=episodes)
    assert not isinstance(theirs.hf_dataset, in_memory.InMemoryTable)
    assert isinstance(ours.hf_dataset, in_memory.InMemoryTable)
    assert len(ours) == len(theirs)
    for index in {0, 1, 9, len(theirs) // 2, len(theirs) - 1}:
        expected, sample = theirs[index], ours[index]
        assert sample.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert sample[key].dtype == value.dtype, key
                assert sample[key].shape == value.shape, key
                assert torch.equal(sample[key], value), key
            else:
                assert type(sample[key]) is type(value), key
                assert sample[key] == value, key


def test_a_sample_handed_out_can_be_changed_without_harm(open_dataset):
    dataset = open_dataset(in_memory._load)
    before = {key: value.clone() for key, value in dataset[5].items() if isinstance(value, torch.Tensor)}
    for value in dataset[5].values():
        if isinstance(value, torch.Tensor) and value.ndim:
            value.zero_()
    after = dataset[5]
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_pictures_too_large_for_memory_are_read_from_disk(open_dataset, monkeypatch):
    monkeypatch.setattr(in_memory, "MAX_BYTES", 1000)
    assert not isinstance(open_dataset(in_memory._load).hf_dataset, in_memory.InMemoryTable)


def test_a_dataset_without_pictures_is_left_as_it_is(open_dataset, tmp_path):
    vector = {"dtype": "float32", "shape": (2,), "names": None}
    features = {"observation.state": vector, "action": vector}
    folder = tmp_path / "plain"
    made = LeRobotDataset.create("local/plain", 15, features=features, root=folder, use_videos=False)
    for _ in range(3):
        made.add_frame({key: np.zeros(2, np.float32) for key in features} | {"task": "wait"})
    made.save_episode()
    made.finalize()
    assert not isinstance(
        open_dataset(in_memory._load, folder, deltas=False).hf_dataset, in_memory.InMemoryTable
    )
