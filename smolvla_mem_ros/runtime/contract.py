# SPDX-License-Identifier: Apache-2.0
"""The contract between a checkpoint and a robot: which topics, which joints, which units, how often."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from lerobot.configs import FeatureType, PolicyFeature

from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig
from smolvla_mem_ros.units import NANOSECONDS, JointUnits

TOPIC_UNITS = {"radians": 1.0, "degrees": math.pi / 180}


class ContractError(ValueError):
    """The contract is wrong or does not fit the checkpoint; the message names every problem at once."""


@dataclass(frozen=True)
class CameraStream:
    """One camera of the policy.

    Args:
        key: the checkpoint's feature, such as ``observation.images.front``.
        topic: where its images come from; a name ending in ``/compressed`` is a CompressedImage.
        max_age: seconds after which an image is stale.
    """

    key: str
    topic: str
    max_age: float

    @property
    def name(self) -> str:
        """The feature's last part, for people: ``front``."""
        return self.key.rsplit(".", 1)[-1]

    @property
    def compressed(self) -> bool:
        return self.topic.endswith("/compressed")


@dataclass(frozen=True)
class Contract:
    """What the policy needs from the robot and what it gives back.

    Args:
        cameras: in the checkpoint's order.
        state_topic: sensor_msgs/JointState.
        state_max_age: seconds after which a joint state is stale.
        command_topic: trajectory_msgs/JointTrajectory.
        joints: names in the order of the checkpoint's state and action.
        units: radians to the checkpoint's units, in that order.
        fps: control rate the checkpoint was trained at, in Hz.
        chunk_size: actions in a chunk.
        n_action_steps: control periods between two inferences, which is the memory clock.
        radians_per_unit: of the positions on the topics; 1, or that of a degree where a robot speaks degrees.
    """

    cameras: tuple[CameraStream, ...]
    state_topic: str
    state_max_age: float
    command_topic: str
    joints: tuple[str, ...]
    units: JointUnits
    fps: float
    chunk_size: int
    n_action_steps: int
    radians_per_unit: float = 1.0

    @property
    def control_period(self) -> int:
        """Nanoseconds between two actions."""
        return round(NANOSECONDS / self.fps)

    @property
    def memory_period(self) -> int:
        """Nanoseconds between two memory writes."""
        return self.n_action_steps * self.control_period

    @property
    def streams(self) -> tuple[str, ...]:
        return ("joint_states", *(camera.name for camera in self.cameras))


def load_contract(path: str | Path, config: SmolVLAMemConfig) -> Contract:
    """Read a contract file and hold it against a checkpoint.

    Args:
        path: YAML, see ``config/contract.yaml``.
        config: of the checkpoint; gives features, chunk size and action steps.

    Raises:
        ContractError: the file is unreadable, an entry is wrong, or the two do not fit.
    """
    return make_contract(_read(path), config, str(path))


def contract_alone(path: str | Path) -> Contract:
    """A contract file with no checkpoint to hold it against, for data that a policy is yet to be trained on.

    Raises:
        ContractError: the file is unreadable, or an entry is wrong.
    """
    entries = _read(path)
    listed = entries if isinstance(entries, Mapping) else {}
    cameras, joints = listed.get("cameras"), listed.get("joints")
    size = len(joints) if isinstance(joints, list) else 0
    feature = PolicyFeature(FeatureType.STATE, (size,))
    config = SimpleNamespace(
        image_features=dict.fromkeys(map(str, cameras)) if isinstance(cameras, Mapping) else {},
        robot_state_feature=feature,
        action_feature=feature,
        chunk_size=2,
        n_action_steps=1,
    )
    return make_contract(entries, config, str(path))


def _read(path: str | Path) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ContractError(f"contract {path} cannot be read: {error}") from error


def make_contract(entries: Any, config: SmolVLAMemConfig, source: str = "contract") -> Contract:
    """As :func:`load_contract`, from the mapping that the file holds."""
    reader = _Reader()
    top = reader.mapping(entries, "", ("fps", "cameras", "state", "command", "topic_units", "joints"))
    state = reader.mapping(top.get("state"), "state", ("topic", "max_age"))
    command = reader.mapping(top.get("command"), "command", ("topic",))
    cameras = []
    for key, value in reader.mapping(top.get("cameras"), "cameras").items():
        camera = reader.mapping(value, f"cameras.{key}", ("topic", "max_age"))
        cameras.append(
            CameraStream(
                str(key),
                reader.text(camera, f"cameras.{key}", "topic"),
                reader.positive(camera, f"cameras.{key}", "max_age", 0.2),
            )
        )
    topic_units = str(top.get("topic_units", "radians"))
    if topic_units not in TOPIC_UNITS:
        reader.problems.append(f"topic_units must be {' or '.join(TOPIC_UNITS)}, not {topic_units!r}")
    names, units = [], []
    joints = top.get("joints")
    if not isinstance(joints, list) or not joints:
        reader.problems.append("joints must be a list of joints in the checkpoint's order")
        joints = []
    for i, value in enumerate(joints):
        where = f"joints[{i}]"
        joint = reader.mapping(value, where, ("name", "units", "sign", "offset", "zero", "full"))
        names.append(reader.text(joint, where, "name"))
        units.append(reader.units(joint, where))
    for name in sorted({n for n in names if n and names.count(n) > 1}):
        reader.problems.append(f"joint {name} is listed {names.count(name)} times")

    order = list(config.image_features)
    given = [camera.key for camera in cameras]
    for key in order:
        if key not in given and ".empty_camera_" not in key:
            near = difflib.get_close_matches(key, given, 1, 0.5)
            hint = f" (cameras has {near[0]}; is that the one?)" if near else ""
            reader.problems.append(f"the checkpoint needs the camera {key}, which is not under cameras{hint}")
    for key in given:
        if key not in order:
            reader.problems.append(
                f"the checkpoint knows no camera {key}; it has {', '.join(order) or 'none'}"
            )
    for what, feature in (("state", config.robot_state_feature), ("action", config.action_feature)):
        size = feature.shape[0] if feature else 0
        if joints and size != len(joints):
            reader.problems.append(
                f"the checkpoint's {what} has {size} numbers but joints lists {len(joints)}"
            )

    contract_values = dict(
        state_topic=reader.text(state, "state", "topic"),
        state_max_age=reader.positive(state, "state", "max_age", 0.1),
        command_topic=reader.text(command, "command", "topic"),
        fps=reader.positive(top, "", "fps", None),
    )
    if reader.problems:
        raise ContractError(f"{source}: " + "; ".join(reader.problems))
    return Contract(
        cameras=tuple(sorted(cameras, key=lambda c: order.index(c.key))),
        joints=tuple(names),
        units=JointUnits.stack(units),
        chunk_size=config.chunk_size,
        n_action_steps=config.n_action_steps,
        radians_per_unit=TOPIC_UNITS[topic_units],
        **contract_values,
    )


class _Reader:
    """Reads entries and collects what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def mapping(self, value: Any, where: str, known: tuple[str, ...] | None = None) -> Mapping[str, Any]:
        if not isinstance(value, Mapping) or not value:
            self.problems.append(f"{where or 'the file'} must be a mapping")
            return {}
        for key in value:
            if known and key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                self.problems.append(f"unknown entry {_join(where, key)}, {hint}")
        return value

    def text(self, entries: Mapping[str, Any], where: str, key: str) -> str:
        value = entries.get(key)
        if not isinstance(value, str) or not value:
            self.problems.append(f"{_join(where, key)} must be a text")
            return ""
        return value

    def positive(self, entries: Mapping[str, Any], where: str, key: str, default: float | None) -> float:
        value = self.number(entries, where, key, default)
        if not 0 < value < float("inf"):
            self.problems.append(f"{_join(where, key)} must be a positive number, not {entries.get(key)!r}")
        return value

    def number(self, entries: Mapping[str, Any], where: str, key: str, default: float | None) -> float:
        value = entries.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            if value is not None:
                self.problems.append(f"{_join(where, key)} must be a number, not {value!r}")
                return 1.0
            return 0.0
        return float(value)

    def units(self, joint: Mapping[str, Any], where: str) -> JointUnits:
        name = joint.get("units", "degrees")
        try:
            if name == "percent":
                base = JointUnits.percent(
                    self.number(joint, where, "zero", None), self.number(joint, where, "full", None)
                )
            elif name in ("degrees", "radians"):
                base = JointUnits.degrees() if name == "degrees" else JointUnits.radians()
            else:
                self.problems.append(f"{where}.units must be degrees, radians or percent, not {name!r}")
                return JointUnits.radians()
            sign = self.number(joint, where, "sign", 1.0)
            if sign not in (-1.0, 1.0):
                self.problems.append(f"{where}.sign must be 1 or -1, not {sign:g}")
                return base
            return JointUnits(base.scale * sign, base.offset + self.number(joint, where, "offset", 0.0))
        except ValueError as error:
            self.problems.append(f"{where}: {error}")
            return JointUnits.radians()


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
