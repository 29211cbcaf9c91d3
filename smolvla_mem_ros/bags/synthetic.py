# SPDX-License-Identifier: Apache-2.0
"""Bags of a robot that never was, of any length: for measuring how fast bags are read."""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from smolvla_mem_ros.bags.types import ensure_type, new_typestore
from smolvla_mem_ros.bags.writer import BagWriter
from smolvla_mem_ros.runtime.contract import Contract, make_contract
from smolvla_mem_ros.units import NANOSECONDS

START = 1_700_000_000 * NANOSECONDS
FPS, STATE_HZ = 30, 100
CHUNK, STEPS = 16, 8  # actions of a chunk, and those that are executed
EPISODE = 30  # seconds
DELAY = 3_000_000  # ns from a stamp to its reception
DIFFERENT = 60  # pictures, which come again and again
CAMERAS = {"front": "/camera/front/image_raw", "wrist": "/camera/wrist/image_raw"}
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
STATES, COMMANDS, EVENTS = "/joint_states", "/so100/joint_trajectory", "/policy/episode"

Message = tuple[int, str, bytes]


@dataclass(frozen=True)
class Form:
    """How a bag is stored.

    Args:
        jpeg: CompressedImage instead of raw rgb8.
        zstd: chunks of MCAP are compressed.
    """

    name: str
    storage: str = "mcap"
    jpeg: bool = False
    zstd: bool = False


RAW, JPEG = Form("raw"), Form("JPEG", jpeg=True)
FORMS = (RAW, Form("raw, sqlite3", "sqlite3"), Form("raw, zstd chunks", zstd=True), JPEG)


def contract() -> Contract:
    """What the bags are evaluated with: a chunk of 16 actions after every 8 frames."""
    keys = {f"observation.images.{name}": {"topic": topic} for name, topic in CAMERAS.items()}
    joints = [{"name": name, "units": "degrees"} for name in JOINTS]
    shape = SimpleNamespace(shape=(len(JOINTS),))
    checkpoint: Any = SimpleNamespace(
        image_features=keys,
        robot_state_feature=shape,
        action_feature=shape,
        chunk_size=CHUNK,
        n_action_steps=STEPS,
    )
    entries = {
        "fps": FPS,
        "cameras": keys,
        "state": {"topic": STATES},
        "command": {"topic": COMMANDS},
        "joints": joints,
    }
    return make_contract(entries, checkpoint)


class Recording:
    """Two cameras at 30 Hz, joint states at 100 Hz, a command with each chunk, an episode every 30 s.

    The same arguments give the same messages.

    Args:
        size: width and height of the pictures.
    """

    def __init__(self, form: Form, size: tuple[int, int] = (640, 480), seed: int = 0) -> None:
        self.form = form
        self._store = new_typestore()
        kinds = {
            **dict.fromkeys(CAMERAS.values(), f"sensor_msgs/msg/{'Compressed' * form.jpeg}Image"),
            STATES: "sensor_msgs/msg/JointState",
            COMMANDS: "trajectory_msgs/msg/JointTrajectory",
            EVENTS: "smolvla_mem_ros/msg/EpisodeEvent",
        }
        for kind in kinds.values():
            ensure_type(self._store, kind)
        self._kinds = kinds
        rng = np.random.default_rng(seed)
        self._pictures = [self._image(_picture(rng, size)) for _ in range(DIFFERENT)]

    @property
    def bytes_per_second(self) -> float:
        """Of the pictures, which is nearly all; compressed chunks have less."""
        return 2 * FPS * sum(map(len, self._pictures)) / len(self._pictures)

    def write(self, folder: Path, seconds: float, progress: Callable[[int], None] = lambda now: None) -> None:
        """Write a bag; what is in memory does not grow with its length.

        Args:
            progress: called with the time (ns) that has been reached.

        Raises:
            OSError: ``folder`` is there already, or cannot be written.
        """
        streams = [
            *(self._images(i, topic, seconds) for i, topic in enumerate(CAMERAS.values())),
            self._states(seconds),
            self._commands(seconds),
            self._events(seconds),
        ]
        with BagWriter(folder, self.form.storage, zstd_chunks=self.form.zstd) as writer:
            for topic, kind in self._kinds.items():
                writer.add_topic(topic, kind)
            for stamp, topic, raw in heapq.merge(*streams, key=lambda message: message[0]):
                writer.write(topic, stamp + DELAY, raw)
                progress(stamp)

    def _images(self, camera: int, topic: str, seconds: float) -> Iterator[Message]:
        # The cameras show the same pictures, at different times.
        shift = camera * DIFFERENT // 2
        for i, stamp in _times(FPS, seconds, camera * 1_000_000):
            raw = self._pictures[(i + shift) % DIFFERENT]
            struct.pack_into("<iI", raw, 4, *divmod(stamp, NANOSECONDS))
            yield stamp, topic, bytes(raw)

    def _states(self, seconds: float) -> Iterator[Message]:
        empty = np.zeros(0)
        for _, stamp in _times(STATE_HZ, seconds):
            yield self._message(STATES, stamp, list(JOINTS), _pose(stamp), empty, empty)

    def _commands(self, seconds: float) -> Iterator[Message]:
        point = self._store.types["trajectory_msgs/msg/JointTrajectoryPoint"]
        duration = self._store.types["builtin_interfaces/msg/Duration"]
        empty, period = np.zeros(0), NANOSECONDS // FPS
        for _, stamp in _times(FPS / STEPS, seconds):
            points = [
                point(_pose(stamp + t), empty, empty, empty, duration(*divmod(t, NANOSECONDS)))
                for t in range(0, CHUNK * period, period)
            ]
            yield self._message(COMMANDS, stamp, list(JOINTS), points)

    def _events(self, seconds: float) -> Iterator[Message]:
        for i, stamp in _times(1 / EPISODE, seconds):
            yield self._message(EVENTS, stamp, "start", i + 1, "wave", 0)

    def _image(self, picture: np.ndarray) -> bytearray:
        """Serialised, with room for a stamp."""
        height, width, _ = picture.shape
        if self.form.jpeg:
            quality = (cv2.IMWRITE_JPEG_QUALITY, 88)
            fields = "jpeg", cv2.imencode(".jpg", picture, quality)[1].ravel()
        else:
            fields = height, width, "rgb8", 0, 3 * width, picture.ravel()
        return bytearray(self._message(CAMERAS["front"], 0, *fields)[2])

    def _message(self, topic: str, stamp: int, *fields: Any) -> Message:
        types, kind = self._store.types, self._kinds[topic]
        time = types["builtin_interfaces/msg/Time"](*divmod(stamp, NANOSECONDS))
        message = types[kind](types["std_msgs/msg/Header"](time, ""), *fields)
        return stamp, topic, bytes(self._store.serialize_cdr(message, kind))


def _times(hz: float, seconds: float, shift: int = 0) -> Iterator[tuple[int, int]]:
    """Numbers and stamps (ns)."""
    for i in range(math.ceil(hz * seconds)):
        yield i, START + shift + round(i / hz * NANOSECONDS)


def _pose(stamp: int) -> np.ndarray:
    return 0.5 * np.sin((stamp - START) / NANOSECONDS + np.arange(len(JOINTS)))


def _picture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: patches with noise, which compresses about as a camera's picture does.

    At 640x480 that is 50 kB as JPEG, and 0.7 of the raw size with zstd.
    """
    width, height = size
    patches = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    patches = cv2.resize(patches, size, interpolation=cv2.INTER_NEAREST)
    return np.clip(patches + rng.normal(0, 4, (height, width, 1)), 0, 255).astype(np.uint8)
