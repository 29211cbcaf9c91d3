# SPDX-License-Identifier: Apache-2.0
"""What a bag holds is shown, and the proposed contract is one that a policy can be run with."""

from types import SimpleNamespace

import cv2
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
from smolvla_mem_ros.runtime.contract import contract_alone, load_contract, make_contract


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
    text = file.read_text()
    for words in ("15.0 Hz; 6x4 rgb8", "50.0 Hz", f"topic: {COMMANDS}"):
        assert words in text
    # It is not written over.
    assert inspect_bag.main([str(folder), "--contract", str(file)]) == 1
    assert "name a new file" in capsys.readouterr().err
    assert inspect_bag.main([str(folder), "--contract", str(tmp_path / "nowhere" / "x.yaml")]) == 1
    assert "nowhere" in capsys.readouterr().err


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
        (["/camera/wrist/image_rect_color", "/camera/camera/color/image_rect_raw"], ["wrist", "camera"]),
    ],
    ids=range(5),
)
def test_cameras_are_named_by_what_tells_them_apart(topics, names):
    assert list(camera_names(topics).values()) == names


def proposed(folder, maker, rows, commanded=()):
    """The proposal for joint states, each (names, positions), and a command for each tuple of names."""
    with BagWriter(folder) as writer:
        writer.add_topic(IMAGES, KINDS[IMAGES])
        writer.add_topic(JOINT_STATES, KINDS[JOINT_STATES])
        writer.add_topic(COMMANDS, "trajectory_msgs/msg/JointTrajectory")
        for i, (names, positions) in enumerate(rows):
            stamp = START + i * 20_000_000
            writer.write(JOINT_STATES, stamp, maker.robot_state(stamp, positions, names))
            writer.write(IMAGES, stamp, maker.raw(IMAGES, stamp))
        for names in commanded:
            writer.write(COMMANDS, START, maker.command(START, [0.0], [np.zeros(len(names))], names))
    with Bag(folder) as bag:
        return propose(inspect(bag))


def joints(text):
    return {joint["name"]: joint for joint in yaml.safe_load(text)["joints"]}


def test_joints_in_degrees_and_a_gripper_are_noticed(tmp_path, maker):
    rows = [(ROBOT_JOINTS, [0, 0, 0, 0, 0, 0.1]), (ROBOT_JOINTS, [0, 0, 0, 0, 0, 1.2])]
    ours = joints(proposed(tmp_path / "ours", maker, rows))
    assert [joint["units"] for joint in ours.values()] == ["degrees"] * 5 + ["percent"]
    assert (ours["gripper"]["zero"], ours["gripper"]["full"]) == (0.1, 1.2)
    # The noise of one that was held is not its way.
    rows = [(ROBOT_JOINTS, [0, 0, 0, 0, 0, at]) for at in (0.1, 0.1005)]
    assert joints(proposed(tmp_path / "held", maker, rows))["gripper"]["units"] == "degrees"
    rows = [(ROBOT_JOINTS, [0, -90, 0, 0, 0, 0]), (ROBOT_JOINTS, [0, 45, 0, 0, 0, 30])]
    theirs = proposed(tmp_path / "theirs", maker, rows)
    assert yaml.safe_load(theirs)["topic_units"] == "degrees" and "seen -90° to 45°" in theirs
    gripper = joints(theirs)["gripper"]
    assert (gripper["units"], gripper["full"]) == ("percent", pytest.approx(np.radians(30), abs=1e-4))


def test_joints_that_a_policy_may_not_want_are_marked(tmp_path, maker):
    rows = [(("a", "wheel", "rail"), [0.1, 0.2, np.nan])] * 3 + [(("gripper",), [0.5])] * 2
    text = proposed(tmp_path / "bag", maker, rows, commanded=[("gripper", "a")])
    assert list(joints(text)) == ["a", "wheel", "gripper"]
    lines = {line.split()[2].rstrip(","): line for line in text.splitlines() if "- {name" in line}
    assert "no command names it" in lines["wheel"] and "no command" not in lines["a"]
    assert "only in 3 of 5 messages" in lines["a"] and "only in 2 of 5" in lines["gripper"]
    assert "# rail is left out: it has no position" in text


@pytest.mark.parametrize("name", ["1", "yes", "null", "left/arm: 2", "a, b}", "#x", "é", "a\nfps: 1", "'\""])
def test_any_name_of_a_joint_is_one_that_the_contract_takes(tmp_path, maker, name):
    text = proposed(tmp_path / "bag", maker, [((name,), [0.1])])
    (tmp_path / "contract.yaml").write_text(text)
    assert contract_alone(tmp_path / "contract.yaml").joints == (name,)


def test_what_cannot_be_shown_as_a_picture_is_no_camera_and_other_topics_are_named(tmp_path, maker):
    depth, jpeg, other = "/camera/depth/image_raw", "/camera/top/jpeg", "/second/joint_states"
    types = maker.store.types
    packed = types["sensor_msgs/msg/CompressedImage"](
        maker.header(START),
        "jpeg\nfps: 1",
        np.frombuffer(cv2.imencode(".jpg", np.zeros((4, 6)))[1], np.uint8),
    )
    with BagWriter(tmp_path / "bag") as writer:
        for topic in (depth, IMAGES):
            writer.add_topic(topic, KINDS[IMAGES])
        writer.add_topic(jpeg, "sensor_msgs/msg/CompressedImage")
        for topic in (other, JOINT_STATES):
            writer.add_topic(topic, KINDS[JOINT_STATES])
        writer.write(depth, START, maker.raw(IMAGES, START).replace(b"rgb8\0", b"8SC2\0"))
        writer.write(jpeg, START, bytes(maker.store.serialize_cdr(packed, "sensor_msgs/msg/CompressedImage")))
        for i in range(3):
            stamp = START + i * 10**8
            writer.write(IMAGES, stamp, maker.raw(IMAGES, stamp))
            writer.write(JOINT_STATES, stamp, maker.robot_state(stamp, np.zeros(6)))
        writer.write(other, START, maker.robot_state(START, np.zeros(6)))
    with Bag(tmp_path / "bag") as bag:
        inspection = inspect(bag)
    text = propose(inspection)
    contract = yaml.safe_load(text)
    assert [camera["topic"] for camera in contract["cameras"].values()] == [IMAGES, jpeg]
    assert (contract["fps"], contract["state"]["topic"]) == (10, JOINT_STATES)
    assert inspection.problems.total() == 1 and depth in next(iter(inspection.problems))
    (state,) = (line for line in text.splitlines() if line.startswith("state:"))
    assert state.endswith(f"# 10.0 Hz; ? or {other}")
    # Live, a contract knows a CompressedImage by its name.
    (camera,) = (line for line in text.splitlines() if jpeg in line)
    assert "6x4 jpeg" in camera and "does not end in /compressed" in camera


def test_a_bag_without_images_shows_what_it_has_and_says_why_there_is_no_proposal(tmp_path, maker, capsys):
    folder = tmp_path / "bag"
    with BagWriter(folder) as writer:
        writer.add_topic(JOINT_STATES, KINDS[JOINT_STATES])
        writer.write(JOINT_STATES, START, maker.robot_state(START, np.zeros(6)))
        writer.write(JOINT_STATES, START, b"\0\1\0\0")
    assert inspect_bag.main([str(folder)]) == 1
    out, error = capsys.readouterr()
    assert JOINT_STATES in out and "not used: 1 x" in out
    assert error.splitlines()[-1].endswith("the bag holds no images that can be read")


def test_an_empty_bag_is_no_accident(tmp_path, capsys):
    BagWriter(tmp_path / "bag").close()
    assert inspect_bag.main([str(tmp_path / "bag")]) == 1
    assert "holds no images" in capsys.readouterr().err
    with pytest.raises(BagError), Bag(tmp_path / "bag") as bag:
        propose(inspect(bag))
