# SPDX-License-Identifier: Apache-2.0
"""The trials of a memory task in real time: when one may start, and what came of it."""

from __future__ import annotations

import numpy as np

from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.expert import rest_pose
from smolvla_mem_ros.sim.scene import Scene
from smolvla_mem_ros.sim.tasks import DARK, FPS, PLACES, Referee, Rgb, Trial, get_task

REST_TOLERANCE = 0.1  # rad of each joint
REST_TIME = 0.3  # s within it; an arm that only passes by is not at rest

DARK_LAMPS = {"lamp_cue": DARK, "lamp_go": DARK}
NOTHING = {f"pad_{place}": None for place in PLACES} | {"button": None} | DARK_LAMPS


class TrialRefused(Exception):
    """The trial cannot be started now; the text says why and what to do."""


class Trials:
    """The trials of one memory task, one after another, judged in real time.

    Trial number n of a seed is that of the offline evaluation. A trial is *idle* until the arm is at rest
    where it starts, then *ready*; :meth:`start` makes it *running*, its end *success* or *failure*.

    Args:
        task: a name from ``sim.tasks.TASKS``.
        seed: of the trials.
        delay: frames between cue and go; None draws them.
        scene: the memory tasks' scene, which whoever holds it keeps showing the arm.

    Raises:
        ValueError: there is no such task, or ``delay`` is too short.
    """

    def __init__(self, task: str, seed: int, delay: int | None, scene: Scene) -> None:
        self.task, self.seed = task, seed
        self.episode = -1
        self.trial: Trial | None = None
        self.state, self.reason = "idle", "no trial; call reset_scene"
        self._draw = lambda episode: draw(get_task(task), seed, episode, delay=delay)[0]
        self._draw(0)
        self._scene, self._tip = scene, scene.model.site("tip").id
        self._referee: Referee | None = None
        self._started = self._moved = 0.0
        self._before: tuple[float, np.ndarray] | None = None  # time and tip of the last call of follow

    @property
    def rest(self) -> np.ndarray:
        """(6,) rad, where the present trial starts."""
        return rest_pose(self._scene, self.trial.start)

    @property
    def colours(self) -> dict[str, Rgb | None]:
        """As the referee's; before a trial runs its lamps are dark."""
        if self.trial is None:
            return NOTHING
        waiting = self.state in ("idle", "ready")
        return self._referee.colours | (DARK_LAMPS if waiting else {})

    def next(self, now: float) -> None:
        """Draw the next trial at ``now`` (s, monotonic); one that is still running counts no more."""
        self.episode += 1
        self.trial = self._draw(self.episode)
        self._referee = Referee(self.trial)
        self._wait_for_rest(now)

    def start(self, now: float) -> None:
        """Start the clock: frame 0 is at ``now`` (s, monotonic). Raises TrialRefused unless one is ready."""
        if self.state == "running":
            raise TrialRefused(f"trial {self.episode} is running already; reset_scene ends it")
        if self.state in ("success", "failure"):
            raise TrialRefused(f"trial {self.episode} is over ({self.reason}); call reset_scene for the next")
        if self.state != "ready":
            raise TrialRefused(self.reason)
        self.state, self._started = "running", now

    def follow(self, now: float) -> None:
        """Judge what happened up to ``now`` (s, monotonic), when the arm is where the scene shows it.

        Frames that have passed since the last call are judged one by one, at a tip on the straight line
        between both calls: how often this is called does not matter much.
        """
        tip = self._scene.data.site_xpos[self._tip].copy()
        if self.state == "running":
            self._judge(now, tip)
        elif self.state in ("idle", "ready") and self.trial is not None:
            if np.abs(self._scene.arm_position - self.rest).max() > REST_TOLERANCE:
                self._wait_for_rest(now)
            elif now - self._moved >= REST_TIME:
                self.state, self.reason = "ready", ""
        self._before = now, tip

    def _judge(self, now: float, tip: np.ndarray) -> None:
        referee = self._referee
        times, tips = zip(self._before, (now, tip), strict=True)
        while referee.outcome is None:
            end_of_frame = self._started + (referee.frame + 1) / FPS
            if end_of_frame > now:
                return
            referee.step([np.interp(end_of_frame, times, axis) for axis in np.transpose(tips)])
        self.state, self.reason = "success" if referee.outcome else "failure", referee.reason

    def _wait_for_rest(self, now: float) -> None:
        self.state, self._moved = "idle", now
        self.reason = f"the arm is not at rest where trial {self.episode} starts; wait, or see what holds it"

    def report(self) -> dict[str, str | int | None]:
        """What may be known from outside; the secret is not in it."""
        trial, referee = self.trial, self._referee
        return {
            "task": self.task,
            "seed": self.seed,
            "episode": self.episode,
            "state": self.state,
            "reason": self.reason,
            "frame": referee.frame if referee else 0,
            "go": referee.go if referee else None,
            "instruction": trial.instruction if trial else "",
        }
