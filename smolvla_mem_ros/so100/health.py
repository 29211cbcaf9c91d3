# SPDX-License-Identifier: Apache-2.0
"""What the servos report of themselves, and what of it is a reason to worry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smolvla_mem_ros.so100.arm import JOINTS

# Of the status register of Feetech's STS servos; the servo sets a bit and may let go of the joint.
STATUS = {
    0: "sees a supply voltage beyond its limits; check the power supply and its cable",
    1: "has a fault in its position sensor; it needs repair",
    2: "is overheated; let the arm rest and cool",
    3: "draws too much current; free the joint",
    5: "is overloaded; take weight off the joint, or free it",
}
# Those for which it lets go altogether, until they are over: its factory settings.
LETS_GO = 1 << 2 | 1 << 3
WARM = 60.0  # degrees Celsius; at 70, as they leave the factory, they let go
# rad and s: a joint that is further than that from where it is told to be, for longer, does not follow. At
# the largest velocity a servo is 0.12 rad behind.
ASTRAY, ASTRAY_TIME = 0.3, 0.3


def servo(number: int) -> str:
    """What the servo of the joint JOINTS[number] is called."""
    return f"servo {number + 1} ({JOINTS[number]})"


def faults(number: int, bits: int) -> list[str]:
    """In words, what the bits of STATUS say of the joint JOINTS[number]."""
    return [f"{servo(number)} {text}" for bit, text in STATUS.items() if bits >> bit & 1]


@dataclass(frozen=True)
class Servos:
    """What six servos report, in the order of JOINTS.

    Args:
        load: (6,) -1 to 1, share of the largest drive.
        voltage: (6,) V.
        temperature: (6,) degrees Celsius.
        status: (6,) int, bits of STATUS.
    """

    load: np.ndarray
    voltage: np.ndarray
    temperature: np.ndarray
    status: np.ndarray

    @property
    def problems(self) -> list[str]:
        """In words, by name."""
        warm = self.temperature >= WARM
        found = []
        # Asked for in every cycle; there are hardly ever any.
        for number in np.flatnonzero(warm | (self.status != 0)):
            bits = int(self.status[number])
            found += faults(number, bits)
            if warm[number] and not bits >> 2 & 1:
                found.append(f"{servo(number)} is warm, {WARM:.0f} degrees or more; let the arm rest soon")
        return found

    @property
    def limp(self) -> np.ndarray:
        """(6,) bool, the joints that their servo has let go of to protect itself."""
        return self.status & LETS_GO != 0

    @property
    def limp_because(self) -> list[str]:
        """In words, by name."""
        return [text for n in np.flatnonzero(self.limp) for text in faults(n, int(self.status[n]) & LETS_GO)]

    def values(self) -> dict[str, float]:
        """One entry for each joint and quantity, for diagnostics."""
        return {
            f"{joint} {name}": float(getattr(self, quantity)[number])
            for number, joint in enumerate(JOINTS)
            for quantity, name in (
                ("temperature", "temperature (C)"),
                ("voltage", "voltage (V)"),
                ("load", "load"),
            )
        }


class Following:
    """Whether the joints go where they are told to."""

    def __init__(self) -> None:
        self._since = np.full(len(JOINTS), np.inf)  # s, since when each is astray

    def problems(self, told: np.ndarray, measured: np.ndarray, now: float) -> list[str]:
        """In words, by name, the joints that have not followed for a while.

        Args:
            told, measured: (6,) rad.
            now: s.
        """
        astray = np.abs(told - measured) > ASTRAY
        self._since = np.where(astray, np.minimum(self._since, now), np.inf)
        late = np.flatnonzero(now - self._since > ASTRAY_TIME)
        return [f"{servo(number)} does not follow; free the joint, and see what holds it" for number in late]
