# SPDX-License-Identifier: Apache-2.0
"""What came of a demo: its figures and its picture, from what was heard on the topics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from trajectory_msgs.msg import JointTrajectory

from smolvla_mem_ros.msg import MemoryState, PolicyStatus
from smolvla_mem_ros.runtime.stamps import from_time
from smolvla_mem_ros.sim.tasks import FPS, MemoryTask, Trial
from smolvla_mem_ros.units import NANOSECONDS

FILMED = 4  # episodes of which pictures are shown
LEAST_SPAN = 10  # degrees that a plot of a joint shows, or noise would look like motion
BEFORE_GO = 4  # frames before the go lamp lights: what the policy waits at


@dataclass
class Recording:
    """What the demo heard; times are seconds on the ROS clock."""

    statuses: list[PolicyStatus] = field(default_factory=list)
    memories: list[tuple[float, MemoryState]] = field(default_factory=list)
    trajectories: list[tuple[float, JointTrajectory]] = field(default_factory=list)
    joints: list[tuple[float, list[float]]] = field(default_factory=list)
    pictures: list[tuple[float, np.ndarray]] = field(default_factory=list)
    simulation: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    joint_names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Played:
    """One episode of the policy.

    Args:
        start, stop: seconds on the ROS clock.
        marks: (label, seconds on the ROS clock) of pictures worth a look.
        success: by the simulation's referee; None when there was no trial.
        reason: what ended the trial, in words.
        frames: that the trial took, of FPS a second.
        goals: the places that had to be reached.
    """

    start: float
    stop: float
    marks: tuple[tuple[str, float], ...]
    success: bool | None = None
    reason: str = ""
    frames: int = 0
    goals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """All episodes, in their order, and when ``reset_memory`` was called (seconds on the ROS clock)."""

    episodes: tuple[Played, ...]
    reset: float
    task: MemoryTask | None = None

    @property
    def start(self) -> float:
        return self.episodes[0].start

    @property
    def stop(self) -> float:
        return self.episodes[-1].stop

    @property
    def successes(self) -> int:
        return sum(bool(episode.success) for episode in self.episodes)


def trial_marks(trial: Trial, start: float, go: int | None, end: int) -> tuple[tuple[str, float], ...]:
    """When to look at a trial that began at ``start`` (s): its cues (or its start), the wait, the choice.

    Args:
        go: frame of the go lamp; None when it was over before.
        end: its last frame.
    """
    frames = [("cue", (flash.start + flash.end) / 2) for flash in trial.flashes] or [("start", 0)]
    if go is not None:
        frames.append(("wait", go - BEFORE_GO))
    frames.append(("choice", end))
    return tuple((label, start + frame / FPS) for label, frame in frames if frame <= end)


def summarise(recording: Recording, run: Run) -> dict:
    """The figures of the whole run; ``ok`` says that no part was silent, whatever the score."""
    policy = [t for t, m in recording.trajectories if _stamp(m) and run.start <= t <= run.stop + 0.5]
    final = recording.statuses[-1]
    sent = [_counted(recording.simulation, f"images_sent_{camera}", run) for camera in ("front", "wrist")]
    received = [(_stamp(s), {"n": s.images_received}) for s in recording.statuses]
    latency = {
        p: _milliseconds(getattr(final, f"stamp_to_command_latency_{p}")) for p in ("p50", "p95", "p99")
    }
    parts = {
        "inferences": int(final.inferences),
        "memory_commits": sum(m.step > 0 for _, m in recording.memories),
        "trajectories": len(policy),
        "servo_writes": _counted(recording.simulation, "servo_writes", run),
        "joint_motion_rad": round(sum(_motion(recording, episode) for episode in run.episodes), 3),
        "images_sent": sum(sent),
        "images_received": _counted(received, "n", run),
        "stamp_to_command_ms": latency,
        "reset_to_zero": _reset_to_zero(recording, run),
    }
    ok = all(parts.values()) and parts["joint_motion_rad"] > 0.05 and None not in latency.values()
    score = {
        "task": type(run.task).__name__ if run.task else None,
        "episodes": len(run.episodes) if run.task else 0,
        "successes": run.successes,
    }
    return {"ok": bool(ok), **score, **parts}


def results(recording: Recording, run: Run) -> list[dict]:
    """Of each episode its outcome, and when the policy first looked (seconds after the trial began)."""
    rows = []
    for number, episode in enumerate(run.episodes):
        first = [
            _stamp(m) for t, m in recording.memories if m.step == 1 and episode.start <= t <= episode.stop
        ]
        rows.append(
            {
                "episode": number,
                "success": episode.success,
                "reason": episode.reason,
                "frames": episode.frames,
                "goals": list(episode.goals),
                "first_observation_s": round(first[0] - episode.start, 3) if first else None,
            }
        )
    return rows


def _stamp(message) -> float:
    """Seconds; 0 for a message that carries none, as a trajectory that shall start on arrival."""
    return from_time(message.header.stamp) / NANOSECONDS


def _motion(recording: Recording, episode: Played) -> float:
    """Way of all joints together (rad) while the policy was at work."""
    joints = np.array([q for t, q in recording.joints if episode.start <= t <= episode.stop])
    return float(np.abs(np.diff(joints, axis=0)).sum()) if len(joints) > 1 else 0.0


def _counted(reports: list[tuple[float, dict]], key: str, run: Run) -> int:
    """Growth of a counter between start and stop, interpolated between the reports around them."""
    points = [(t, float(values[key])) for t, values in reports if key in values]
    if len(points) < 2:
        return 0
    times, counts = zip(*points, strict=True)
    return round(np.interp(run.stop, times, counts) - np.interp(run.start, times, counts))


def _reset_to_zero(recording: Recording, run: Run) -> bool:
    """The first memory after the reset is empty, and the next commit counts from one again."""
    after = [m for _, m in recording.memories if from_time(m.last_reset) / NANOSECONDS >= run.reset - 0.001]
    steps = [m.step for m in after if from_time(m.last_reset) == from_time(after[0].last_reset)]
    return bool(after) and not any(after[0].norm) and steps[:2] == [0, 1] and steps == sorted(set(steps))


def _milliseconds(seconds: float) -> float | None:
    return round(seconds * 1e3, 2) if math.isfinite(seconds) else None


# The picture ------------------------------------------------------------------------------------

_COLOURS = {True: "tab:green", False: "tab:red", None: "tab:gray"}


def draw(recording: Recording, run: Run, path: Path) -> None:
    """Camera pictures, joints commanded and measured, memory norms with the reset marked, and the score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = math.ceil(min(len(run.episodes), FILMED) / 2)
    heights = (1.9 * rows, 6, 3 + 0.1 * len(run.episodes))
    figure = plt.figure(figsize=(15, sum(heights)), layout="constrained")
    if run.task:
        figure.suptitle(
            f"{type(run.task).__name__}: {run.successes} of {len(run.episodes)} episodes succeeded "
            f"(without memory at most {run.task.ceiling:.0%} do)"
        )
    film, joints, below = figure.subfigures(3, 1, height_ratios=heights)
    _draw_film(film, recording, run)
    _draw_joints(joints, recording, run)
    axes = below.subplots(1, 3 if run.task else 2)
    _draw_memory(axes[:2], recording, run)
    if run.task:
        _draw_results(axes[2], run)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_film(figure, recording: Recording, run: Run) -> None:
    shown = run.episodes[:FILMED]
    columns = min(len(shown), 2)
    cells = figure.subfigures(math.ceil(len(shown) / columns), columns, squeeze=False).flat
    for number, (cell, episode) in enumerate(zip(cells, shown, strict=False)):
        if episode.success is not None:
            text = f"episode {number}: {episode.reason}"
            cell.suptitle(text, fontsize=10, color=_COLOURS[episode.success])
        axes = cell.subplots(1, len(episode.marks), squeeze=False)[0]
        for plot, (label, time) in zip(axes, episode.marks, strict=True):
            plot.axis("off")
            if recording.pictures:
                plot.imshow(_picture_at(recording.pictures, time))
                moment = f"{max(time - episode.start, 0):.1f} s"
                plot.set_title(f"{label}, {moment}" if label else moment, fontsize=9)


def _picture_at(pictures: list[tuple[float, np.ndarray]], time: float) -> np.ndarray:
    """The last one until ``time``: the one after it may be of the next trial."""
    return [picture for t, picture in pictures if t <= time or t == pictures[0][0]][-1]


def _draw_joints(figure, recording: Recording, run: Run) -> None:
    measured = np.array([[t, *q] for t, q in recording.joints])
    commanded = _commanded(recording)
    plots = figure.subplots(2, 3, sharex=True).flat
    for i, (name, axes) in enumerate(zip(recording.joint_names, plots, strict=False)):
        for t, points in commanded.get(name, []):
            axes.plot(t - run.start, np.rad2deg(points), color="tab:orange", lw=1.2)
        if len(measured):
            axes.plot(measured[:, 0] - run.start, np.rad2deg(measured[:, 1 + i]), color="tab:blue", lw=1)
        low, high = axes.get_ylim()
        middle, half = (low + high) / 2, max(high - low, LEAST_SPAN) / 2
        axes.set_ylim(middle - half, middle + half)
        axes.set_title(name, fontsize=10)
        _mark_episodes(axes, run)
    figure.suptitle("joint positions in degrees: commanded (orange) and measured (blue)", fontsize=11)
    figure.supxlabel("seconds since the first episode started", fontsize=9)


def _draw_memory(plots: Sequence, recording: Recording, run: Run) -> None:
    times = np.array([t - run.start for t, _ in recording.memories])
    for axes, attribute, label in (
        (plots[0], "norm", "norm of each memory token"),
        (plots[1], "cosine_distance", "change of each token per commit (cosine distance)"),
    ):
        values = [getattr(m, attribute) for _, m in recording.memories]
        if values and len(values[0]):
            axes.plot(times, np.array(values), marker=".", ms=4, lw=1)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("seconds", fontsize=9)
        _mark_episodes(axes, run)
        axes.legend(fontsize=8)


def _mark_episodes(axes, run: Run) -> None:
    for number, episode in enumerate(run.episodes):
        begin, end = episode.start - run.start, episode.stop - run.start
        axes.axvspan(begin, end, color=_COLOURS[episode.success], alpha=0.08, lw=0)
        axes.axvline(begin, color="black", ls=":", lw=0.8, label="start_episode" if number == 0 else None)
    axes.axvline(run.reset - run.start, color="crimson", ls="--", lw=1, label="reset_memory")
    axes.set_xlim(0, run.stop - run.start)
    axes.grid(alpha=0.3)


def _draw_results(axes, run: Run) -> None:
    numbers = range(len(run.episodes))
    seconds = [episode.frames / FPS for episode in run.episodes]
    axes.barh(numbers, seconds, color=[_COLOURS[episode.success] for episode in run.episodes], alpha=0.5)
    for number, episode in enumerate(run.episodes):
        axes.text(0.05, number, episode.reason, va="center", fontsize=8)
    axes.set_title("episodes: green succeeded", fontsize=10)
    axes.set_xlabel("seconds to its end", fontsize=9)
    axes.set_yticks(numbers)
    axes.invert_yaxis()


def _commanded(recording: Recording) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Per joint, the part of each trajectory that was in force: until the next one came."""
    pieces: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    arrivals = [t for t, _ in recording.trajectories]
    for (arrived, message), replaced in zip(recording.trajectories, [*arrivals[1:], math.inf], strict=True):
        stamp = _stamp(message) or arrived
        times = np.array(
            [stamp + p.time_from_start.sec + p.time_from_start.nanosec / NANOSECONDS for p in message.points]
        )
        inside = (times >= arrived) & (times <= replaced)
        for j, name in enumerate(message.joint_names):
            values = np.array([p.positions[j] for p in message.points])
            pieces.setdefault(name, []).append((times[inside], values[inside]))
    return pieces
