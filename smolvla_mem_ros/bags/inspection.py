# SPDX-License-Identifier: Apache-2.0
"""What is in a bag, and the contract that it suggests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.bags.streams import IMAGES, KINDS, StreamClock
from smolvla_mem_ros.runtime.images import ImageError, decode_image
from smolvla_mem_ros.runtime.observation import STATE
from smolvla_mem_ros.runtime.stamps import header_stamp

# Parts of a topic's name that do not tell one camera from another.
COMMON = re.compile(r"^(image|image_raw|image_rect|raw|rgb|color|compressed|camera|cam|usb_cam|sensors?)$")
RATES = (10, 15, 20, 25, 30, 50, 60)  # Hz, of training data
DEGREES = 7.0  # rad; no joint of an arm turns so far from its middle


@dataclass
class Seen:
    """A topic of the contract's kinds.

    Attributes:
        form: "640x480 rgb8", or names of joints.
        names, low, high: of joints, radians.
    """

    kind: str
    clock: StreamClock = field(default_factory=StreamClock)
    form: str = ""
    names: tuple[str, ...] = ()
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Inspection:
    """Topics that a contract may name, by name, and what could not be read: problem -> messages."""

    seen: dict[str, Seen]
    problems: Counter[str]

    def of(self, kinds: tuple[str, ...]) -> dict[str, Seen]:
        return {topic: seen for topic, seen in self.seen.items() if seen.kind in kinds and seen.clock.count}


def inspect(bag: Bag, progress: Callable[[int], None] = lambda now: None) -> Inspection:
    """Read all images' stamps, the first image of each camera, and all joint states and commands."""
    wanted = (*IMAGES, *KINDS[STATE], *KINDS["commands"])
    seen = {name: Seen(topic.kind) for name, topic in bag.topics.items() if topic.kind in wanted}
    problems: Counter[str] = Counter()
    for message in bag.messages(seen):
        one = seen[message.topic]
        try:
            one.clock.note(header_stamp(message.raw), message.stamp)
            if one.kind in KINDS[STATE]:
                _note_joints(one, bag.decode(message))
            elif not one.form:
                decoded = bag.decode(message)
                if one.kind in IMAGES:
                    height, width, _ = decode_image(decoded).shape
                    one.form = f"{width}x{height} {getattr(decoded, 'encoding', None) or decoded.format}"
                else:
                    one.names = tuple(decoded.joint_names)
                    one.form = ", ".join(one.names)
        except (BagError, ImageError, ValueError) as error:
            problems[f"{message.topic}: {error}"] += 1
        progress(message.stamp)
    return Inspection(seen, problems)


def _note_joints(one: Seen, decoded) -> None:
    names, positions = tuple(decoded.name), np.asarray(decoded.position)
    if len(names) != len(positions):
        raise ValueError(f"{len(names)} joint names but {len(positions)} positions")
    if not np.isfinite(positions).all():
        raise ValueError("a position is not a finite number")
    if not one.names:
        one.names, one.form = names, ", ".join(names)
        one.low, one.high = positions.copy(), positions.copy()
    elif names == one.names:
        one.low, one.high = np.minimum(one.low, positions), np.maximum(one.high, positions)


def camera_names(topics: list[str]) -> dict[str, str]:
    """topic -> a short name that tells it from the others."""
    named: dict[str, str] = {}
    for topic in topics:
        parts = [part for part in topic.split("/") if part and not COMMON.match(part)] or ["camera"]
        name = re.sub(r"(_camera|_cam|camera_|cam_)", "", parts[-1]) or parts[-1]
        while name in named.values():
            name += "_2"
        named[topic] = name
    return named


def propose(inspection: Inspection, cameras: list[str] | None = None, fps: float | None = None) -> str:
    """A contract as YAML with comments.

    Args:
        cameras: a checkpoint's features, to be given to the cameras of like names.

    Raises:
        BagError: there are no images or no joint states.
    """
    images, states = inspection.of(IMAGES), inspection.of(KINDS[STATE])
    if not images or not states:
        raise BagError(
            f"no contract can be proposed: the bag holds no {'images' if not images else 'joint states'}"
        )
    # Of a camera that is there raw and compressed, raw.
    raw = [t for t in images if not (t.endswith("/compressed") and t.removesuffix("/compressed") in images)]
    state = max(states, key=lambda topic: states[topic].clock.count)
    commands = inspection.of(KINDS["commands"])
    rate = fps or min(RATES, key=lambda r: abs(r - images[raw[0]].clock.rate))
    lines = [
        "# Proposed by inspect_bag; check what is marked with ?.",
        f"fps: {rate:g}  # ? control rate of the policy's training data; the cameras have "
        f"{images[raw[0]].clock.rate:.1f} Hz",
        "",
        "cameras:",
    ]
    features = list(cameras or [])
    for topic, name in camera_names(raw).items():
        like = [f for f in features if f.rsplit(".", 1)[-1] in topic.split("/") or f.endswith("." + name)]
        feature = like[0] if like else f"observation.images.{name}"
        features = [f for f in features if f != feature]
        age = max(0.2, round(3 / max(images[topic].clock.rate, 0.1), 2))
        doubt = "" if like else "  # ? the checkpoint's name for it"
        lines.append(f"  {feature}: {{topic: {topic}, max_age: {age:g}}}{doubt}")
    age = max(0.1, round(3 / max(states[state].clock.rate, 0.1), 2))
    lines += ["", f"state: {{topic: {state}, max_age: {age:g}}}"]
    if commands:
        command, doubt = max(commands, key=lambda topic: commands[topic].clock.count), ""
    else:
        command, doubt = "so100/joint_trajectory", "  # none in the bag"
    lines += [
        f"command: {{topic: {command}}}{doubt}",
        "",
        "# In the checkpoint's order, in its units.",
        "joints:",
    ]
    return "\n".join([*lines, *_joints(states[state])]) + "\n"


def _joints(state: Seen) -> list[str]:
    low, high = state.low, state.high
    if max(np.abs(low).max(), np.abs(high).max()) > DEGREES:
        # Not what ROS asks for; "radians" takes numbers as they come.
        note = "  # ? as published, which looks like degrees"
        return [f"  - {{name: {name}, units: radians}}{note}" for name in state.names]
    lines = []
    for name, least, most in zip(state.names, low, high, strict=True):
        if "grip" in name and most > least:
            lines.append(
                f"  - {{name: {name}, units: percent, zero: {least:.4f}, full: {most:.4f}}}"
                "  # ? closed and open, from what was seen"
            )
        else:
            seen = f"seen {np.degrees(least):.0f}° to {np.degrees(most):.0f}°"
            lines.append(f"  - {{name: {name}, units: degrees}}  # {seen}")
    return lines
