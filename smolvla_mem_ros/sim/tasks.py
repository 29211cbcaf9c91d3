# SPDX-License-Identifier: Apache-2.0
"""Tasks that cannot be done without memory: what is shown when, and which places must be pressed.

Everything counts in frames of FPS. A trial is drawn once (:meth:`MemoryTask.draw`, a frozen value) and then
judged frame by frame (:class:`Referee`). Nothing here knows of MuJoCo: the gymnasium environment, the expert
and the simulated arm's node share it.

The cue is gone before the go lamp lights, and pressing earlier fails: what the camera and the joints show
at the moment of choice does not tell where to go.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

FPS = 15

Rgb = tuple[float, float, float]
COLOURS: dict[str, Rgb] = {"red": (0.9, 0.08, 0.08), "green": (0.1, 0.75, 0.1), "blue": (0.1, 0.2, 0.95)}
WHITE: Rgb = (1.0, 1.0, 1.0)
DARK: Rgb = (0.12, 0.12, 0.12)
YELLOW: Rgb = (0.95, 0.85, 0.1)

# m, centres of the three pads on the table, and of the button.
PLACES = {"left": (0.22, 0.17), "centre": (0.32, 0.0), "right": (0.22, -0.17)}
BUTTON = (0.19, 0.0)
PAD_RADIUS = 0.045  # m
PRESS_HEIGHT = 0.045  # m: a tip below this over a pad presses it
HOVER_HEIGHT = 0.07  # m: a tip above this over a place is back there

CUE_FRAMES = 10  # longer than the memory clock of 8 frames: at least one inference sees it
DELAYS = (8, 20)  # frames between the end of the last cue and go, when none is given
PRESS_FRAMES = 3  # a press counts when it has lasted this long
TIME_LIMIT = 90  # frames after go
REACTION = 16  # frames after go before the expert moves; see there


@dataclass(frozen=True)
class Flash:
    """The cue lamp shows ``colour`` from frame ``start`` up to but not including ``end``."""

    start: int
    end: int
    colour: str


@dataclass(frozen=True)
class Trial:
    """One episode's secret and its timing.

    Args:
        pads: place -> colour of the pad there; places without a pad are not in it.
        goals: places to press in this order (or, in a task with a button, to be back over).
        flashes: what the cue lamp shows when.
        wait: frames between the last flash, or the press of the button, and go.
        start: the place over which the arm begins; None for its home.
        button: go comes when the button has been held for ``wait`` frames.
    """

    task: str
    instruction: str
    pads: dict[str, str]
    goals: tuple[str, ...]
    flashes: tuple[Flash, ...]
    wait: int
    start: str | None = None
    button: bool = False
    cue_visible: bool = False

    @property
    def go(self) -> int:
        """The frame of the go lamp, in a task without a button."""
        return max((flash.end for flash in self.flashes), default=0) + self.wait

    @property
    def max_frames(self) -> int:
        """Frames after which a trial is over in any case."""
        return self.go + TIME_LIMIT * (2 if self.button else 1)

    def lit(self, frame: int, done: int = 0) -> str | None:
        """The colour that the cue lamp shows in ``frame`` when ``done`` goals are reached, None for dark."""
        if self.cue_visible and frame >= self.flashes[-1].end:
            return self.flashes[min(done, len(self.flashes) - 1)].colour
        return next((flash.colour for flash in self.flashes if flash.start <= frame < flash.end), None)


class MemoryTask(ABC):
    """Base of the tasks.

    Attributes:
        instruction: what the policy is told.
        ceiling: best success rate without memory: that of guessing among what was not seen.
    """

    instruction: str
    ceiling: float

    def draw(self, rng: np.random.Generator, delay: int | None = None, cue_visible: bool = False) -> Trial:
        """A trial.

        Args:
            delay: frames between cue and go; None draws from DELAYS, ends included.
            cue_visible: the cue stays lit to the end, that of the next goal where there are several, so that
                no memory is needed (an upper bound).

        Raises:
            ValueError: ``delay`` is shorter than DELAYS[0], or this task has no cue to keep lit.
        """
        if delay is not None and delay < DELAYS[0]:
            raise ValueError(f"delay {delay} is too short: the cue must be over {DELAYS[0]} frames before go")
        wait = int(rng.integers(DELAYS[0], DELAYS[1] + 1)) if delay is None else delay
        trial = self._draw(rng, wait)
        if cue_visible and not trial.flashes:
            raise ValueError(f"{trial.task} has no cue that could stay visible")
        return replace(trial, cue_visible=cue_visible)

    @abstractmethod
    def _draw(self, rng: np.random.Generator, wait: int) -> Trial:
        """A trial of this task with ``wait`` frames between its last cue and go."""

    def _trial(self, wait: int, **values) -> Trial:
        return Trial(task=type(self).__name__, instruction=self.instruction, wait=wait, **values)


class CueRecall2(MemoryTask):
    """The lamp shows red or blue in the first frames; press the pad of that colour. Ceiling 1/2."""

    instruction = "press the pad of the colour that the lamp showed"
    ceiling = 1 / 2
    pads = {"left": "red", "right": "blue"}

    def _draw(self, rng, wait):
        place = _choose(rng, self.pads)
        flash = Flash(0, CUE_FRAMES, self.pads[place])
        return self._trial(wait, pads=self.pads, goals=(place,), flashes=(flash,))


class CueRecall3(CueRecall2):
    """As CueRecall2 with three pads. Ceiling 1/3."""

    instruction = "press one of three pads, of the colour that the lamp showed"
    ceiling = 1 / 3
    pads = {"left": "red", "centre": "green", "right": "blue"}


class LateCue2(CueRecall2):
    """As CueRecall2, but the lamp flashes at a random later time: the first frame tells nothing.

    Ceiling 1/2.
    """

    instruction = "wait for the flash, then press the pad of its colour"

    def _draw(self, rng, wait):
        place, start = _choose(rng, self.pads), int(rng.integers(6, 25))
        flash = Flash(start, start + CUE_FRAMES, self.pads[place])
        return self._trial(wait, pads=self.pads, goals=(place,), flashes=(flash,))


class TakeItBack3(MemoryTask):
    """The arm starts over one of three unmarked places, holds the button until go, returns to its place.

    The memory must hold the robot's own state. Ceiling 1/3.
    """

    instruction = "press the button and return to where you began"
    ceiling = 1 / 3

    def _draw(self, rng, wait):
        place = _choose(rng, PLACES)
        return self._trial(wait, pads={}, goals=(place,), flashes=(), start=place, button=True)


class Sequence2of3(MemoryTask):
    """The lamp flashes two of three colours; press their pads in that order. Ceiling 1/6.

    A pad that was pressed rightly turns white, so that only the order has to be remembered.
    """

    instruction = "press two pads in the order of the flashes"
    ceiling = 1 / 6
    pads = CueRecall3.pads

    def _draw(self, rng, wait):
        places = [str(p) for p in rng.permutation(list(self.pads))[:2]]
        flashes = tuple(
            Flash(i * CUE_FRAMES, (i + 1) * CUE_FRAMES, self.pads[place]) for i, place in enumerate(places)
        )
        return self._trial(wait, pads=self.pads, goals=tuple(places), flashes=flashes)


class CueRecallShuffled3(MemoryTask):
    """As CueRecall3, but each episode the three pads carry the colours in another order. Ceiling 1/3.

    What is remembered must be bound to what is seen now.
    """

    instruction = "find the pad of the colour that the lamp showed"
    ceiling = 1 / 3

    def _draw(self, rng, wait):
        pads = dict(zip(PLACES, (str(c) for c in rng.permutation(list(COLOURS))), strict=True))
        place = _choose(rng, pads)
        return self._trial(wait, pads=pads, goals=(place,), flashes=(Flash(0, CUE_FRAMES, pads[place]),))


TASKS: dict[str, MemoryTask] = {
    task.__name__: task()
    for task in (CueRecall2, CueRecall3, LateCue2, TakeItBack3, Sequence2of3, CueRecallShuffled3)
}


def get_task(name: str) -> MemoryTask:
    """Raises ValueError, which lists the tasks, when there is none of this name."""
    try:
        return TASKS[name]
    except KeyError:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}") from None


def _choose(rng: np.random.Generator, options: Sequence[str] | dict[str, str]) -> str:
    return list(options)[int(rng.integers(len(options)))]


class Referee:
    """Follows one trial frame by frame.

    Attributes:
        frame: how many frames have passed.
        go: the frame at which the go lamp lit; None before that.
        done: how many of the goals are reached.
        outcome: None while it runs, then True or False.
        reason: what ended it, in words.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.frame = 0
        self.go: int | None = None
        self.done = 0
        self.outcome: bool | None = None
        self.reason = ""
        self._resting: str | None = None
        self._since = 0
        self._on_button = 0
        self._light_go()

    def step(self, tip: Sequence[float]) -> None:
        """One frame later the tip of the fixed jaw is at ``tip``, (3,) m. Does nothing once it is over."""
        if self.outcome is not None:
            return
        self.frame += 1
        here = self._place(tip)
        self._since = self._since + 1 if here is not None and here == self._resting else 1
        self._resting = here
        self._on_button = self._on_button + 1 if self._over(tip, BUTTON) and tip[2] < PRESS_HEIGHT else 0
        if here is not None and self._since == PRESS_FRAMES:
            self._arrive(here)
        self._light_go()
        limit = self.trial.max_frames if self.go is None else min(self.go + TIME_LIMIT, self.trial.max_frames)
        if self.outcome is None and self.frame >= limit:
            self._end(False, "out of time")

    def _arrive(self, place: str) -> None:
        if self.go is None:
            if not self.trial.button:
                self._end(False, f"pressed {place} before go")
        elif self.done and place == self.trial.goals[self.done - 1]:
            pass  # still on the pad that was just pressed
        elif place != self.trial.goals[self.done]:
            self._end(False, f"went to {place}, not to {self.trial.goals[self.done]}")
        else:
            self.done += 1
            if self.done == len(self.trial.goals):
                self._end(True, "reached " + " and ".join(self.trial.goals))

    def _end(self, outcome: bool, reason: str) -> None:
        self.outcome, self.reason = outcome, reason

    def _light_go(self) -> None:
        trial = self.trial
        ready = self._on_button >= trial.wait if trial.button else self.frame >= trial.go
        if self.go is None and ready:
            self.go = self.frame

    def _place(self, tip: Sequence[float]) -> str | None:
        """The place that the tip presses, or is back over in a task with a button."""
        reached = tip[2] > HOVER_HEIGHT if self.trial.button else tip[2] < PRESS_HEIGHT
        if not reached:
            return None
        candidates = PLACES if self.trial.button else self.trial.pads
        return next((p for p in candidates if self._over(tip, PLACES[p])), None)

    @staticmethod
    def _over(tip: Sequence[float], place: tuple[float, float]) -> bool:
        return bool(np.hypot(tip[0] - place[0], tip[1] - place[1]) < PAD_RADIUS)

    @property
    def colours(self) -> dict[str, Rgb | None]:
        """What each thing in the scene looks like now; None for what is not there."""
        trial = self.trial
        pressed = trial.goals[: self.done]
        colours: dict[str, Rgb | None] = {f"pad_{place}": None for place in PLACES}
        for place, colour in trial.pads.items():
            colours[f"pad_{place}"] = WHITE if place in pressed else COLOURS[colour]
        colours["button"] = (YELLOW if self._on_button else WHITE) if trial.button else None
        lit = trial.lit(self.frame, self.done)
        colours["lamp_cue"] = COLOURS[lit] if lit else DARK
        colours["lamp_go"] = DARK if self.go is None else WHITE
        return colours
