# SPDX-License-Identifier: Apache-2.0
"""What the files of a bag have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rosbags.interfaces import Qos, QosDurability, QosReliability

# Of a record, a chunk or a message. No camera of such an arm makes larger ones; what claims more is a
# mistake or an attack.
MAX_BYTES = 256 * 2**20


class BagError(ValueError):
    """A bag cannot be read; the message names the cause and the cure."""


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


def offered(profiles: Iterable[Qos]) -> dict[str, bool]:
    """The last two of StoredTopic: what every publisher offered."""
    profiles = list(profiles)
    return {
        "reliable": all(p.reliability is not QosReliability.BEST_EFFORT for p in profiles),
        "latched": bool(profiles) and all(p.durability is QosDurability.TRANSIENT_LOCAL for p in profiles),
    }


class Storage(Protocol):
    """One file of a bag."""

    problems: list[str]  # what was damaged and left out

    @property
    def topics(self) -> list[StoredTopic]: ...

    @property
    def span(self) -> tuple[int, int] | None:
        """Nanoseconds of the first and last message; None when there is none."""

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
        """(nanoseconds, topic, bytes) of ``topics`` with start <= time < stop, in order of time."""

    def close(self) -> None: ...
