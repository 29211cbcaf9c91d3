# SPDX-License-Identifier: Apache-2.0
"""What the emulator can be told, at its start and while it runs, and the check of what it was told."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from smolvla_mem_ros.so100.arm import JOINTS

# name: (arguments, meaning)
COMMANDS = {
    "reset": ("", "blocks back to their places, and the arm too unless torque holds it"),
    "unplug": ("", "the serial device vanishes"),
    "plug": ("", "... and comes back"),
    "stall": ("SECONDS", "the next answer is late by this much"),
    "drop": ("P", "answers are lost with this probability"),
    "corrupt": ("P", "answers have a wrong checksum with this probability"),
    "mute": ("SERVO", "no answer of it arrives"),
    "unmute": ("SERVO", "... and they do again"),
    "stuck": ("SERVO", "it does not move, whatever its goal is"),
    "free": ("SERVO", "... and it does again"),
    "overheat": ("SERVO CELSIUS", "it is this hot (it lets go above 70)"),
    "cool": ("SERVO", "... and again as hot as its load makes it"),
    "sag": ("VOLTS", "supply voltage of all servos (nominal 7.4, too low below 4)"),
    "power_cycle": ("", "all servos lose power for a moment: torque off, unsaved registers gone"),
}
# Those that are command-line options too.
AT_START = ("unplug", "stall", "drop", "corrupt", "mute", "stuck", "overheat", "sag")

SERVO_HELP = f"SERVO is an id (1-{len(JOINTS)}), a joint ({', '.join(JOINTS)}) or all."
HELP = "\n".join(f"  {f'{name} {words}':22} {text}" for name, (words, text) in COMMANDS.items())

# argument: (smallest, largest, what it is)
NUMBERS = {
    "SECONDS": (0, 60, "seconds"),
    "P": (0, 1, "a probability"),
    "CELSIUS": (0, 255, "degrees Celsius"),
    "VOLTS": (0, 25, "volts"),
}


@dataclass(frozen=True)
class Command:
    """One command that makes sense.

    Args:
        name: a key of COMMANDS.
        servos: indices, from 0, of the servos that it is about.
        value: its number, or None.
    """

    name: str
    servos: tuple[int, ...] = ()
    value: float | None = None

    @classmethod
    def parse(cls, words: Sequence[str]) -> Command:
        """Raises ValueError with one line that says what is wrong."""
        name, *given = words or ("",)
        if name not in COMMANDS:
            raise ValueError(f"there is no command '{name}', only {', '.join(COMMANDS)}")
        expected = COMMANDS[name][0].split()
        if len(given) != len(expected):
            raise ValueError(f"{name} takes {' '.join(expected) or 'nothing'}, not '{' '.join(given)}'")
        servos, value = (), None
        for kind, word in zip(expected, given, strict=True):
            if kind == "SERVO":
                servos = parse_servo(word)
            else:
                low, high, what = NUMBERS[kind]
                value = parse_number(word, low, high, f"{name} needs {what}")
        return cls(name, servos, value)


def parse_number(word: str, low: float, high: float, needs: str) -> float:
    """Raises ValueError, which begins with ``needs``."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ValueError(f"{needs} from {low:g} to {high:g}, not '{word}'")
    return value


def parse_servo(word: str) -> tuple[int, ...]:
    """Indices, from 0, for an id, a joint's name, or "all". Raises ValueError."""
    every = tuple(range(len(JOINTS)))
    names = {"all": every}
    for index, joint in enumerate(JOINTS):
        names[joint] = names[str(index + 1)] = (index,)
    if word not in names:
        raise ValueError(f"there is no servo '{word}'; {SERVO_HELP}")
    return names[word]


def add_options(parser: ArgumentParser) -> None:
    """An option for each command of AT_START."""
    for name in AT_START:
        words, text = COMMANDS[name]
        if not words:
            parser.add_argument(f"--{name}", action="store_true", help=f"at the start {text}")
        elif "SERVO" in words:
            metavar = tuple(words.split())
            parser.add_argument(
                f"--{name}", action="append", default=[], nargs=len(metavar), metavar=metavar, help=text
            )
        else:
            parser.add_argument(f"--{name}", nargs=1, metavar=words, help=text)


def from_options(options: Namespace) -> list[Command]:
    """What ``add_options``' options ask for. Raises ValueError like ``Command.parse``."""
    commands = []
    for name in AT_START:
        given = getattr(options, name)
        if "SERVO" in COMMANDS[name][0]:
            commands += [Command.parse([name, *words]) for words in given]
        elif given:
            commands.append(Command.parse([name] if given is True else [name, *given]))
    return commands
