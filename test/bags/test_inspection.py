# SPDX-License-Identifier: Apache-2.0
"""What a bag holds is shown, and the proposed contract is one that a policy can be run with."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from bag_helpers import COMMANDS, IMAGES, JOINT_STATES, KINDS, ROBOT_JOINTS, START, WRIST, write_run

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.inspection import camera_names, inspect, propose
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.bags.streams import find_topics
from smolvla_mem_ros.bags.writer import BagWriter
from smolvla_mem_ros.cli import inspect_bag
from smolvla_mem_ros.runtime.contract import load_contract, make_contract


def checkpoint(*cameras, joints=6):
    return SimpleNamespace(
        image_features={f"observation.images.{c}": None for c in cameras},
        robot_state_feature=SimpleNamespace(shape=(joints,)),
        action_feature=SimpleNamespace(shape=(joints,)),
        chunk_size=8,
        n_action_steps=5,
    )


def test_the_proposal_is_a_contract_that_fits_the_bag(tmp_path, maker, capsys):
    commands = [(1.0, (0.0,), [np.zeros(6)])]
    folder = write_run(tmp_path / "bag", maker, 3, commands=commands)
    file = tmp_path / "contract.yaml"
    assert inspect_bag.main([str(folder), "--contract", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "6x4 rgb8" in shown and "50.0 Hz" in shown and str(file) in shown
    contract = load_contract(file, checkpoint("front", "wrist"))
    assert (contract.fps, contract.joints, contract.command_topic) == (15, ROBOT_JOINTS, COMMANDS)
    with Bag(folder) as bag:
        assert set(find_topics(bag, contract).streams) == {IMAGES, WRIST, JOINT_STATES}
    # It is not written over.
    assert inspect_bag.main([str(folder), "--contract", str(file)]) == 1
    assert "name a new file" in capsys.readouterr().err


def test_the_names_of_a_checkpoint_go_to_the_cameras_they_are_like(tmp_path, maker):
    with Bag(write_run(tmp_path / "bag", maker, 2)) as bag:
        inspection = inspect(bag)
    features = [f"observation.images.{name}" for name in ("wrist", "front", "top")]
    cameras = yaml.safe_load(propose(inspection, features, fps=20))["cameras"]
    assert {key: value["topic"] for key, value in cameras.items()} == {
        features[0]: WRIST,
        features[1]: IMAGES,
    }
    make_contract(yaml.safe_load(propose(inspection, fps=20)), checkpoint("front", "wrist"))


@pytest.mark.parametrize(
    ("topics", "names"),
    [
        (["/camera/front/image_raw", "/camera/wrist/image_raw/compressed"], ["front", "wrist"]),
        (["/usb_cam/image_raw"], ["camera"]),
        (["/left_camera/image", "/cam_right/color/image_raw"], ["left", "right"]),
        (["/a/top/image_raw", "/b/top/image_raw"], ["top", "top_2"]),
    ],
    ids=range(4),
)
def test_cameras_are_named_by_what_tells_them_apart(topics, names):
    assert list(camera_names(topics).values()) == names


def test_joints_in_degrees_and_a_gripper_are_noticed(tmp_path, maker):
    def proposed(*rows):
        folder = tmp_path / f"bag{len(list(tmp_path.iterdir()))}"
        with BagWriter(folder) as writer:
            writer.add_topic(IMAGES, KINDS[IMAGES])
            writer.add_topic(JOINT_STATES, KINDS[JOINT_STATES])
            for i, row in enumerate(rows):
                stamp = START + i * 20_000_000
                writer.write(JOINT_STATES, stamp, maker.robot_state(stamp, row))
                writer.write(IMAGES, stamp, maker.raw(IMAGES, stamp))
        with Bag(folder) as bag:
            return yaml.safe_load(propose(inspect(bag)))["joints"]

    ours = proposed([0, 0, 0, 0, 0, 0.1], [0, 0, 0, 0, 0, 1.2])
    assert [j["units"] for j in ours] == ["degrees"] * 5 + ["percent"]
    assert (ours[5]["zero"], ours[5]["full"]) == (0.1, 1.2)
    # Taken as they come.
    assert {j["units"] for j in proposed([0, -90, 0, 0, 0, 0], [0, 45, 0, 0, 0, 30])} == {"radians"}


def test_a_bag_without_images_shows_what_it_has_and_says_why_there_is_no_proposal(tmp_path, maker, capsys):
    folder = tmp_path / "bag"
    with BagWriter(folder) as writer:
        writer.add_topic(JOINT_STATES, KINDS[JOINT_STATES])
        writer.write(JOINT_STATES, START, maker.robot_state(START, np.zeros(6)))
        writer.write(JOINT_STATES, START, b"\0\1\0\0")
    assert inspect_bag.main([str(folder)]) == 1
    out, error = capsys.readouterr()
    assert JOINT_STATES in out and "not used: 1 x" in out
    assert error.splitlines()[-1].endswith("the bag holds no images")


def test_an_empty_bag_is_no_accident(tmp_path, capsys):
    BagWriter(tmp_path / "bag").close()
    assert inspect_bag.main([str(tmp_path / "bag")]) == 1
    assert "holds no images" in capsys.readouterr().err
    with pytest.raises(BagError), Bag(tmp_path / "bag") as bag:
        propose(inspect(bag))
