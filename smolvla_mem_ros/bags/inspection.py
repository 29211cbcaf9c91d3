# SPDX-License-Identifier: Apache-2.0
"""What is in a bag, and the contract that it suggests."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.storage import BagError, plain, tally
from smolvla_mem_ros.bags.streams import IMAGES, JOINT_STATE, JOINT_TRAJECTORY, StreamClock
from smolvla_mem_ros.runtime.images import ImageError, decode_image
from smolvla_mem_ros.runtime.stamps import header_stamp

# Parts of a topic's name that do not tell one camera from another.
COMMON = re.compile(
    r"^(image(_(raw|rect|color|colour|mono))*|raw|rgb|color|compressed|camera|cam|usb_cam|sensors?)$"
)
# In the name of joint states that tell where the joints are to be, not where they are.
COMMANDING = re.compile(r"leader|command|cmd|goal|target|desired|action")
RATES = (10, 15, 20, 25, 30, 50, 60)  # Hz, of training data
DEGREES = 7.0  # rad; no joint of an arm turns so far from its middle
STILL = 0.01  # rad or m; a gripper that moved no more was not seen to open


@dataclass
class Range:
    """Where a joint was seen, in ``count`` messages."""

    least: float = math.inf
    most: float = -math.inf
    count: int = 0


@dataclass
class Seen:
    """A topic of the contract's kinds.

    Attributes:
        form: "640x480 rgb8", or names of joints; empty as long as nothing could be read.
        joints: of joint states, by name, in the order in which they came; of commands without a range.
    """

    kind: str
    clock: StreamClock = field(default_factory=StreamClock)
    form: str = ""
    joints: dict[str, Range] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """Topics that a contract may name, by name, and what could not be read: problem -> messages."""

    seen: dict[str, Seen]
    problems: Counter[str]

    def of(self, kinds: tuple[str, ...]) -> dict[str, Seen]:
        """Those of which something could be read."""
        return {topic: seen for topic, seen in self.seen.items() if seen.kind in kinds and seen.form}


def inspect(bag: Bag, progress: Callable[[int], None] = lambda now: None) -> Inspection:
    """Read all images' stamps, the first image of each camera, and all joint states and commands."""
    wanted = (*IMAGES, JOINT_STATE, JOINT_TRAJECTORY)
    seen = {name: Seen(topic.kind) for name, topic in bag.topics.items() if topic.kind in wanted}
    problems: Counter[str] = Counter()
    for message in bag.messages(seen):
        one = seen[message.topic]
        try:
            one.clock.note(header_stamp(message.raw), message.stamp)
            if one.kind == JOINT_STATE:
                _note_joints(one, bag.decode(message))
            elif not one.form:
                decoded = bag.decode(message)
                if one.kind in IMAGES:
                    height, width, _ = decode_image(decoded).shape
                    form = getattr(decoded, "encoding", None) or decoded.format
                    one.form = plain(f"{width}x{height} {form}")
                else:
                    one.joints = {name: Range() for name in decoded.joint_names}
                    one.form = _list(one.joints)
        except (BagError, ImageError, ValueError) as error:
            tally(problems, f"{message.topic}: {error}")
        progress(message.stamp)
    return Inspection(seen, problems)


def _note_joints(one: Seen, decoded: Any) -> None:
    names, positions = decoded.name, decoded.position
    if len(names) != len(positions):
        raise ValueError(f"{len(names)} joint names but {len(positions)} positions")
    broken = []
    for name, position in zip(names, map(float, positions), strict=True):
        joint = one.joints.setdefault(name, Range())
        if math.isfinite(position):
            joint.least, joint.most = min(joint.least, position), max(joint.most, position)
            joint.count += 1
        else:
            broken.append(name)
    one.form = _list(name for name, joint in one.joints.items() if joint.count)
    if broken:
        raise ValueError(f"the position of {', '.join(broken)} is not a finite number")


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
    images, states = inspection.of(IMAGES), inspection.of((JOINT_STATE,))
    goals = {topic: seen for topic, seen in states.items() if COMMANDING.search(topic)}
    if len(goals) == len(states):
        goals = {}
    states = {topic: seen for topic, seen in states.items() if topic not in goals}
    if not images or not states:
        raise BagError(
            "no contract can be proposed: the bag holds no "
            f"{'images' if not images else 'joint states'} that can be read"
        )
    # Of a camera that is there raw and compressed, raw.
    raw = [t for t in images if not (t.endswith("/compressed") and t.removesuffix("/compressed") in images)]
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
        seen = images[topic]
        like = [f for f in features if f.rsplit(".", 1)[-1] in topic.split("/") or f.endswith("." + name)]
        feature = like[0] if like else f"observation.images.{name}"
        features = [f for f in features if f != feature]
        notes = [
            f"{seen.clock.rate:.1f} Hz",
            seen.form,
            *([] if like else ["? the checkpoint's name for it"]),
        ]
        if "Compressed" in seen.kind and not topic.endswith("/compressed"):
            notes.append("? a policy node takes it for an Image: its name does not end in /compressed")
        lines.append(_line(f"  {_text(feature)}: {{{_topic(topic, seen, 0.2)}}}", notes))

    state, others = _most(states)
    notes = [f"{states[state].clock.rate:.1f} Hz", *others]
    lines += ["", _line(f"state: {{{_topic(state, states[state], 0.1)}}}", notes)]
    commands = inspection.of((JOINT_TRAJECTORY,)) or goals
    commanded: list[str] = []
    if commands:
        command, others = _most(commands)
        if commands is goals:
            others = ["? by its name", *others]
        commanded = list(commands[command].joints)
        lines.append(_line(f"command: {{topic: {_text(command)}}}", others))
    else:
        lines.append("command: {topic: so100/joint_trajectory}  # none in the bag")
    in_degrees = max(max(-j.least, j.most) for j in states[state].joints.values() if j.count) > DEGREES
    if in_degrees:
        lines.append("topic_units: degrees  # ? which the numbers look like")
    lines += ["", "# In the checkpoint's order, in its units.", "joints:"]
    return "\n".join([*lines, *_joints(states[state], commanded, in_degrees)]) + "\n"


def _list(names: Iterable[str]) -> str:
    text = ", ".join(names)
    return text and plain(text)


def _most(seen: dict[str, Seen]) -> tuple[str, list[str]]:
    """The topic with the most messages, and a note if there are others."""
    best, *others = sorted(seen, key=lambda topic: -seen[topic].clock.count)
    return best, [f"? or {', '.join(map(_text, others))}"] if others else []


def _joints(state: Seen, commanded: list[str], in_degrees: bool) -> list[str]:
    known = {name: joint for name, joint in state.joints.items() if joint.count}
    lines = [
        f"  # {_text(name)} is left out: it has no position" for name in state.joints if name not in known
    ]
    for name, joint in known.items():
        least, most = (math.radians(at) if in_degrees else at for at in (joint.least, joint.most))
        if "grip" in name and most - least > STILL:
            units = f"percent, zero: {least:.4f}, full: {most:.4f}"
            notes = ["? closed and open, from what was seen"]
        else:
            units = "degrees"
            notes = [f"seen {math.degrees(least):.0f}° to {math.degrees(most):.0f}°"]
        if commanded and name not in commanded:
            notes.append("? no command names it")
        if joint.count < state.clock.count:
            notes.append(f"? only in {joint.count} of {state.clock.count} messages")
        lines.append(_line(f"  - {{name: {_text(name)}, units: {units}}}", notes))
    return lines


def _topic(topic: str, seen: Seen, least: float) -> str:
    age = max(least, round(3 / max(seen.clock.rate, 0.1), 2))
    return f"topic: {_text(topic)}, max_age: {age:g}"


def _line(entry: str, notes: list[str]) -> str:
    # What a bag says must not end the comment.
    return f"{entry}  # {plain('; '.join(notes), 1000)}" if notes else entry


def _text(name: str) -> str:
    """As YAML writes it within braces: in quotes if it would be something else without (a joint called 1)."""
    return yaml.safe_dump([name], default_flow_style=True, allow_unicode=True, width=math.inf).strip()[1:-1]
