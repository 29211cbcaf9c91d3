# SPDX-License-Identifier: Apache-2.0
"""Serialised messages of a few topics."""

from types import SimpleNamespace

import numpy as np

from smolvla_mem_ros.bags.types import ensure_type, new_typestore
from smolvla_mem_ros.bags.writer import BagWriter
from smolvla_mem_ros.runtime.contract import make_contract

START = 10**18  # ns
ROBOT_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
COMMANDS, WRIST = "/so100/joint_trajectory", "/camera/wrist/image_raw"

JOINT_STATES, IMAGES, EVENTS = "/joint_states", "/camera/front/image_raw", "/policy/episode"
KINDS = {
    JOINT_STATES: "sensor_msgs/msg/JointState",
    IMAGES: "sensor_msgs/msg/Image",
    EVENTS: "smolvla_mem_ros/msg/EpisodeEvent",
}


class Maker:
    """Makes serialised messages."""

    def __init__(self):
        self.store = new_typestore()
        for kind in KINDS.values():
            ensure_type(self.store, kind)

    def header(self, stamp):
        time = self.store.types["builtin_interfaces/msg/Time"](*divmod(stamp, 10**9))
        return self.store.types["std_msgs/msg/Header"](time, "")

    def raw(self, topic, stamp, number=0, size=(4, 6)):
        types, header, empty = self.store.types, self.header(stamp), np.zeros(0)
        if topic == JOINT_STATES:
            message = types[KINDS[topic]](header, ["a", "b"], np.array([number, 2.0]), empty, empty)
        elif topic == IMAGES:
            height, width = size
            pixels = np.full(height * width * 3, number % 256, np.uint8)
            message = types[KINDS[topic]](header, height, width, "rgb8", 0, width * 3, pixels)
        else:
            message = types[KINDS[topic]](header, "start", number, "press the pad", 7)
        return bytes(self.store.serialize_cdr(message, KINDS[topic]))

    def robot_state(self, stamp, positions, names=ROBOT_JOINTS):
        types, empty = self.store.types, np.zeros(0)
        kind = "sensor_msgs/msg/JointState"
        message = types[kind](self.header(stamp), list(names), np.array(positions, float), empty, empty)
        return bytes(self.store.serialize_cdr(message, kind))

    def event(self, stamp, event, episode_id=1, task="sway"):
        types, kind = self.store.types, KINDS[EVENTS]
        return bytes(
            self.store.serialize_cdr(types[kind](self.header(stamp), event, episode_id, task, 7), kind)
        )

    def command(self, stamp, times, positions, names=ROBOT_JOINTS):
        types, empty = self.store.types, np.zeros(0)
        duration = types["builtin_interfaces/msg/Duration"]
        points = [
            types["trajectory_msgs/msg/JointTrajectoryPoint"](
                np.array(p, float), empty, empty, empty, duration(*divmod(round(t * 1e9), 10**9))
            )
            for t, p in zip(times, positions, strict=True)
        ]
        kind = "trajectory_msgs/msg/JointTrajectory"
        message = types[kind](self.header(stamp), list(names), points)
        return bytes(self.store.serialize_cdr(message, kind))


def robot_contract(chunk_size, n_action_steps, wrist=WRIST, max_age=0.2):
    """That of these topics and joints, at 10 Hz and in radians."""
    cameras = {"observation.images.front": IMAGES, "observation.images.wrist": wrist}
    entries = {
        "fps": 10,
        "cameras": {name: {"topic": topic, "max_age": max_age} for name, topic in cameras.items()},
        "state": {"topic": JOINT_STATES.lstrip("/")},
        "command": {"topic": COMMANDS.lstrip("/")},
        "joints": [{"name": name, "units": "radians"} for name in ROBOT_JOINTS],
    }
    feature = SimpleNamespace(shape=(len(ROBOT_JOINTS),))
    checkpoint = SimpleNamespace(
        image_features=cameras,
        robot_state_feature=feature,
        action_feature=feature,
        chunk_size=chunk_size,
        n_action_steps=n_action_steps,
    )
    return make_contract(entries, checkpoint)


def write_run(
    folder, maker, seconds, events=(), silent=(), commands=(), offset=0, camera_offset=0, size=(4, 6)
):
    """A robot's bag: cameras at 15 Hz and joint states at 50 Hz, from START on.

    Args:
        events: (second, event, episode id, task).
        silent: (from, to) seconds in which nothing is published.
        commands: (second, times, positions).
        offset, camera_offset: seconds that stamps are behind the time of reception.
    """
    entries = []
    for step in range(round(seconds * 150)):
        at = step / 150
        received = START + round(at * 1e9)
        if any(a <= at < b for a, b in silent):
            continue
        stamp = received - round(offset * 1e9)
        if step % 3 == 0:
            entries.append((received, JOINT_STATES, maker.robot_state(stamp, [at / 10, 0, 0, 0, 0, 0.5])))
        if step % 10 == 0:
            seen = received - round(camera_offset * 1e9)
            entries += [(received, topic, maker.raw(IMAGES, seen, step, size)) for topic in (IMAGES, WRIST)]
    for at, event, number, task in events:
        stamp = START + round(at * 1e9)
        entries.append((stamp + 1_000_000, EVENTS, maker.event(stamp, event, number, task)))
    for at, times, positions in commands:
        stamp = START + round(at * 1e9)
        entries.append((stamp, COMMANDS, maker.command(stamp, times, positions)))
    kinds = {
        JOINT_STATES: KINDS[JOINT_STATES],
        IMAGES: KINDS[IMAGES],
        WRIST: KINDS[IMAGES],
        **({EVENTS: KINDS[EVENTS]} if events else {}),
        **({COMMANDS: "trajectory_msgs/msg/JointTrajectory"} if commands else {}),
    }
    with BagWriter(folder) as writer:
        for topic, kind in kinds.items():
            writer.add_topic(topic, kind)
        for stamp, topic, raw in sorted(entries, key=lambda e: e[0]):
            writer.write(topic, stamp, raw)
    return folder
