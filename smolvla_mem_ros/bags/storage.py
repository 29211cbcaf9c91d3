# SPDX-License-Identifier: Apache-2.0
"""What the files of a bag have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

# Of a record, a chunk or a message. No camera of such an arm makes larger ones; what claims more is a
# mistake or an attack.
MAX_BYTES = 256 * 2**20
MAX_WAITING = 2 * MAX_BYTES
MAX_DEFINITION = 2**18  # bytes; with all that they are made of, those of ROS have a tenth of it
MAX_DEFINITIONS = 16 * 2**20  # bytes of all of a file together
MAX_DEPTH = 50  # of YAML
MAX_PROBLEMS = 100  # of one kind of damage there can be one in each message
LATEST = 2**62  # ns, in 2116; with the longest duration of ROS added it is still an int64


class BagError(ValueError):
    """A bag cannot be read; the message names the cause and the cure, in one line."""

    def __init__(self, text: str) -> None:
        super().__init__(plain(text, 1000))


def plain(text: object, most: int = 300) -> str:
    """One line that a terminal can show, whatever a bag or a parser wrote; a long one lacks its middle."""
    line = str(text)
    if len(line) > most:
        line = f"{line[: most // 2]} ... {line[-most // 2 :]}"
    line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    return line or type(text).__name__


def tally(problems: Counter[str], problem: object) -> None:
    """Count a problem of a message, of which a hostile bag has another in each."""
    text = plain(problem)
    problems[text if text in problems or len(problems) < MAX_PROBLEMS else "other problems"] += 1


class Damage:
    """What is wrong with a file: raised when it is noted, or with ``salvage`` kept.

    Args:
        path: as it is to be named.

    Attributes:
        problems: that were noted, each once.
    """

    def __init__(self, path: Path, salvage: bool) -> None:
        self.path, self.salvage = path, salvage
        self.problems: list[str] = []

    def note(self, problem: str) -> None:
        """
        Raises:
            BagError: without ``salvage``.
        """
        if not self.salvage:
            raise BagError(f"{self.path} is damaged: {problem}; --salvage reads what there is")
        self.keep(problem)

    def keep(self, problem: str) -> None:
        problem = plain(problem, 1000)
        if problem not in self.problems and len(self.problems) <= MAX_PROBLEMS:
            self.problems.append(problem if len(self.problems) < MAX_PROBLEMS else "and more")


class Room:
    """In memory, for messages that wait until those before them are there: of all files of a bag together."""

    def __init__(self) -> None:
        self._left = MAX_WAITING

    def take(self, size: int) -> bool:
        """Whether ``size`` bytes are left; they are then taken."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give(self, size: int) -> None:
        self._left += size


@dataclass(frozen=True)
class StoredTopic:
    """A topic as one file holds it.

    Args:
        name, kind: such as ``/joint_states`` and ``sensor_msgs/msg/JointState``.
        definition: of ``kind`` and all that it is made of, as rosbag2 embeds it; empty if unknown.
        count: messages.
        encoding: of the messages; only "cdr" can be decoded.
        reliable, latched: what its publishers offered.
    """

    name: str
    kind: str
    definition: str
    count: int
    encoding: str = "cdr"
    reliable: bool = True
    latched: bool = False


def plain_yaml(text: str) -> Any:
    """YAML of texts, lists and mappings: no tag and no number means anything.

    Raises:
        yaml.YAMLError: it is none, or it has what makes billions of a few lines, or fills the stack.
    """
    depth = 0
    for event in yaml.parse(text, yaml.CBaseLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError("it is nested too deep")
    return yaml.load(text, yaml.CBaseLoader)


def offered(profiles: Any) -> dict[str, bool]:
    """The last two of StoredTopic: what every publisher offered, of the YAML that rosbag2 embeds."""
    found = []  # of what is no such thing: it is not needed to read the messages
    if isinstance(profiles, str) and len(profiles) <= MAX_DEFINITION:
        with suppress(yaml.YAMLError, KeyError, TypeError):
            found = [(p["reliability"], p["durability"]) for p in plain_yaml(profiles) or ()]
    # By rmw's numbers in older bags.
    return {
        "reliable": all(reliability not in ("best_effort", "2") for reliability, _ in found),
        "latched": bool(found) and all(durability in ("transient_local", "1") for _, durability in found),
    }


class Storage(Protocol):
    """One file of a bag."""

    damage: Damage
    span: tuple[int, int] | None  # nanoseconds of the first and last message; None when there is none

    def __init__(self, path: Path, damage: Damage, room: Room) -> None: ...

    @property
    def topics(self) -> list[StoredTopic]: ...

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
        """(nanoseconds, topic, bytes) of ``topics`` with start <= time < stop, in order of time."""

    def close(self) -> None: ...
