# SPDX-License-Identifier: Apache-2.0
"""Pins that a contract that does not fit names every problem at once, with a cure where one is near."""

import numpy as np
import pytest
import yaml

from smolvla_mem_ros.runtime.contract import ContractError, load_contract, make_contract
from smolvla_mem_ros.runtime.observation import ObservationBuffer
from smolvla_mem_ros.runtime.trajectory import Chunk, to_segment
from smolvla_mem_ros.share import share_path

from .conftest import JOINTS, SECOND, entries, features, fill


def error(spoilt, checkpoint=None) -> str:
    with pytest.raises(ContractError) as caught:
        make_contract(spoilt, checkpoint or features())
    return str(caught.value)


def test_the_shipped_contract_fits_an_so100_checkpoint():
    contract = load_contract(share_path("config/contract.yaml"), features())
    assert contract.joints == JOINTS
    assert [camera.topic for camera in contract.cameras] == [
        "camera/front/image_raw",
        "camera/wrist/image_raw",
    ]
    radians = np.array([0, 0, 0, 0, np.pi, -0.1745])
    np.testing.assert_allclose(contract.units.from_radians(radians), [0, 0, 0, 0, 180, 0], atol=1e-9)
    assert contract.memory_period == 10 * contract.control_period == pytest.approx(1e9 / 3, abs=10)


def test_cameras_take_the_order_of_the_checkpoint():
    contract = make_contract(entries(), features(cameras=("wrist", "front")))
    assert [camera.name for camera in contract.cameras] == ["wrist", "front"]


def test_a_compressed_topic_is_known_by_its_name():
    spoilt = entries()
    spoilt["cameras"]["observation.images.front"]["topic"] += "/compressed"
    assert [camera.compressed for camera in make_contract(spoilt, features()).cameras] == [True, False]


def test_a_wrong_camera_key_is_named_with_the_nearest():
    spoilt = entries()
    spoilt["cameras"]["observation.images.frnt"] = spoilt["cameras"].pop("observation.images.front")
    text = error(spoilt)
    assert "needs the camera observation.images.front" in text
    assert "cameras has observation.images.frnt; is that the one?" in text
    assert "knows no camera observation.images.frnt" in text


def test_all_problems_come_at_once():
    spoilt = entries()
    spoilt["fps"] = -1
    spoilt["stat"] = {}
    spoilt["joints"][0]["units"] = "turns"
    spoilt["joints"][1]["name"] = spoilt["joints"][2]["name"]
    spoilt["joints"][3]["sign"] = 2
    del spoilt["command"]["topic"]
    text = error(spoilt, features(joints=7))
    for part in (
        "fps must be a positive number, not -1",
        "unknown entry stat, did you mean state?",
        "joints[0].units must be degrees, radians or percent, not 'turns'",
        "joint elbow_flex is listed 2 times",
        "joints[3].sign must be 1 or -1, not 2",
        "command",
        "state has 7 numbers but joints lists 6",
        "action has 7 numbers but joints lists 6",
    ):
        assert part in text


def test_a_robot_may_speak_degrees():
    radians, degrees = (
        make_contract(entries() | more, features()) for more in ({}, {"topic_units": "degrees"})
    )
    states, commands = [], []
    for contract, positions in (
        (radians, np.radians([10, 20, 30, 40, 50, 60])),
        (degrees, [10, 20, 30, 40, 50, 60]),
    ):
        buffer = ObservationBuffer(contract)
        fill(buffer, SECOND)
        buffer.put_joint_state(SECOND, JOINTS, positions)
        states.append(buffer.snapshot(SECOND, "sway").state)
        commands.append(to_segment(Chunk(SECOND, np.full((3, 6), 7.0), 1 / 30, 0), contract))
    np.testing.assert_allclose(states[1], states[0], rtol=1e-6)
    np.testing.assert_allclose(commands[1].positions, np.degrees(commands[0].positions))
    with pytest.raises(ContractError, match="topic_units must be radians or degrees, not 'turns'"):
        make_contract(entries() | {"topic_units": "turns"}, features())


def test_sign_and_offset_turn_and_shift_a_joint():
    changed = entries()
    changed["joints"][1] |= {"sign": -1, "offset": 90}
    units = make_contract(changed, features()).units
    assert units.from_radians(np.array([0, np.pi / 2, 0, 0, 0, 0]))[1] == pytest.approx(0)
    assert units.to_radians(np.array([0, 180.0, 0, 0, 0, 0]))[1] == pytest.approx(-np.pi / 2)


@pytest.mark.parametrize("content", ["", "[]", "fps: [", "just text", "fps: .nan"])
def test_a_file_that_is_no_contract_is_refused(tmp_path, content):
    path = tmp_path / "contract.yaml"
    path.write_text(content)
    with pytest.raises(ContractError, match="contract"):
        load_contract(path, features())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ContractError, match=r"nowhere\.yaml cannot be read"):
        load_contract(tmp_path / "nowhere.yaml", features())


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "contract.yaml"
    path.write_text("fps: !!python/object/apply:os.system ['false']")
    with pytest.raises(ContractError, match="cannot be read"):
        load_contract(path, features())
    assert yaml.safe_load("fps: 30") == {"fps": 30}
