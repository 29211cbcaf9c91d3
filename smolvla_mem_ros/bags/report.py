# SPDX-License-Identifier: Apache-2.0
"""Shows an evaluation of a bag: a table for the screen, a page and pictures to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from smolvla_mem_ros.bags.measures import Target
from smolvla_mem_ros.bags.replay import Inference, Played
from smolvla_mem_ros.evaluation.report import aligned, markdown
from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.units import NANOSECONDS

COLOURS = {"on": "#1f77b4", "off": "#d9a441", "reset_every_step": "#c26d3f", "stale": "#a05195"}
LEAST = 4.0  # degrees that an axis shows
SHOWN = 60.0  # seconds of an episode in the picture of its joints


def summary_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A header, then a row for each checkpoint and memory mode."""
    rows = [["checkpoint", "memory", "error", "executed", "p95", "seam / inside p99: position", "velocity",
             "jerk rms", "inference p50"]]  # fmt: skip
    for name, one in results["checkpoints"].items():
        for mode, scores in one["modes"].items():
            error, smooth = scores["error"], scores["smoothness"]
            ratio = smooth["seam_p99_to_inside_p99"]
            times = results["timing"]["checkpoints"][name][mode]
            rows.append(
                [
                    name,
                    mode,
                    _degrees(error["mean_deg"]),
                    _degrees(error["executed_mean_deg"]),
                    _degrees(error["p95_deg"]),
                    _number(ratio["position_deg"], ".2f"),
                    _number(ratio["velocity_deg_s"], ".2f"),
                    _number(smooth["jerk_rms_deg_s3"], ".0f", " °/s³"),
                    _number(times.get("p50_ms"), ".1f", " ms"),
                ]
            )
    return rows


def table(results: Mapping[str, Any]) -> str:
    """All of it for the screen."""
    bag = results["bag"]
    lines = [
        f"{bag['path']}: {bag['seconds']:.1f} s, {bag['messages']} messages; errors against "
        f"{'what was commanded' if results['target'] == 'commands' else 'where the joints went'}",
        "",
        *aligned(summary_rows(results)),
        "",
    ]
    for name, one in results["checkpoints"].items():
        inferences = sum(e["inferences"] for e in one["episodes"])
        lines.append(f"{name}: {len(one['episodes'])} episodes, {inferences} inferences{_skips(one)}")
    lines += ["", *aligned(stream_rows(results))]
    return "\n".join([*lines, *(f"not used: {problem}" for problem in problems(results))])


def page(results: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """All of it in Markdown."""
    bag = results["bag"]
    parts = [
        f"# {bag['path']}",
        f"`{results['command']}`",
        f"{bag['seconds']:.1f} s, {bag['messages']} messages. Errors are against "
        + (
            "the recorded commands." if results["target"] == "commands" else "the joint states that followed."
        ),
        _markdown(summary_rows(results)),
    ]
    for name, one in results["checkpoints"].items():
        rows = [
            [
                "episode",
                "task",
                "seconds",
                "inferences",
                *(f"error, memory {m}" for m in one["modes"]),
                "skipped ticks",
            ]
        ]
        for e in one["episodes"]:
            errors = [_degrees(e["modes"].get(mode, {}).get("mean_deg")) for mode in one["modes"]]
            rows.append([str(e["number"]), e["task"], f"{e['seconds']:.1f}", str(e["inferences"]), *errors,
                         str(sum(e["skipped"].values()))])  # fmt: skip
        joints = [["joint", *(f"memory {mode}" for mode in one["modes"])]]
        joints += [
            [joint, *(_degrees(s["error"]["per_joint_deg"][joint]) for s in one["modes"].values())]
            for joint in next(iter(one["modes"].values()))["error"]["per_joint_deg"]
        ]
        parts += [f"## {name}", _markdown(rows), "Mean error of each joint:", _markdown(joints)]
    parts += ["## Streams", _markdown(stream_rows(results))]
    if left_out := problems(results):
        parts += ["Not used:", "\n".join(f"* {problem}" for problem in left_out)]
    parts += [f"![{picture}]({picture})" for picture in pictures]
    return "\n\n".join(parts) + "\n"


def problems(results: Mapping[str, Any]) -> list[str]:
    """What of the bag was not used, in words."""
    return [*results["bag"]["problems"], *(f"{n} x {what}" for what, n in results["unused"].items())]


def stream_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A header, then a row for each stream of the contract."""
    header = ["stream", "messages", "rate", "longest gap", "delay", "clock problems"]
    return [header, *(_stream(name, s) for name, s in results["streams"].items())]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return markdown(rows[0], rows[1:])


def _skips(one: Mapping[str, Any]) -> str:
    counts: dict[str, int] = {}
    for episode in one["episodes"]:
        for reason, count in episode["skipped"].items():
            counts[reason] = counts.get(reason, 0) + count
    return "".join(f"; {count} ticks without one: {reason}" for reason, count in counts.items())


def _stream(name: str, s: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{s[key]} {key.replace('_', ' ')}"
        for key in ("without_stamp", "stamped_backwards", "stamped_by_another_clock")
        if s[key]
    ]
    delay = _number(None if s["median_delay_s"] is None else 1000 * s["median_delay_s"], ".1f", " ms")
    return [name, str(s["messages"]), f"{s['rate_hz']:.1f} Hz", f"{s['longest_gap_s']:.2f} s", delay,
            ", ".join(problems) or "none"]  # fmt: skip


def _degrees(value: float | None) -> str:
    return _number(value, ".2f", "°")


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


# Pictures -------------------------------------------------------------------------------------------


def draw_predictions(
    played: Sequence[Played], target: Target, contract: Contract, mode: str, file: Path
) -> None:
    """Chunks against what was recorded, joint by joint, in the episode with the most inferences."""
    episode = max(played, key=lambda p: len(p.inferences.get(mode, ())))
    inferences = episode.inferences.get(mode, [])
    begin, end = episode.start, min(episode.end, episode.start + round(SHOWN * NANOSECONDS))
    times = np.arange(begin, max(end, begin + 1), contract.control_period // 2)
    known = np.degrees(target.at(times))
    figure = _figure(9, 1.5 * len(contract.joints) + 0.8)
    for axes, (j, joint) in zip(_rows(figure, len(contract.joints)), enumerate(contract.joints), strict=True):
        axes.plot(
            (times - begin) / NANOSECONDS, known[:, j], color="k", lw=1.2, label=f"recorded {target.kind}"
        )
        for n, inference in enumerate(i for i in inferences if i.stamp < end):
            at = (inference.stamp - begin) / NANOSECONDS + np.arange(len(inference.positions)) / contract.fps
            executed = slice(contract.n_action_steps + 1)
            degrees = np.degrees(inference.positions[:, j])
            label = {"label": f"chunks, memory {mode}"} if n == 0 else {}
            axes.plot(at, degrees, color=COLOURS[mode], lw=0.6, alpha=0.5)
            axes.plot(at[executed], degrees[executed], color=COLOURS[mode], lw=1.4, **label)
        low, high = axes.get_ylim()
        # What does not move should not look as if it did.
        margin = max(0.0, LEAST - (high - low)) / 2
        axes.set_ylim(low - margin, high + margin)
        axes.set_ylabel(f"{joint}\n°", fontsize=8)
    axes.set_xlabel(f"seconds of episode {episode.number}: {episode.task}")
    figure.axes[0].legend(fontsize=8, frameon=False, ncols=2, loc="upper right")
    figure.savefig(file, dpi=110)


def draw_errors(
    played: Sequence[Played], errors: Mapping[str, Sequence[np.ndarray]], contract: Contract, file: Path
) -> None:
    """Mean error of each chunk over time, and over the horizon.

    Args:
        errors: mode -> (N, T, D) degrees of each episode's inferences.
    """
    figure = _figure(10, 3.6)
    over_time, over_horizon = figure.subplots(1, 2, width_ratios=[3, 1])
    begin = played[0].start
    for mode, each in errors.items():
        all_errors, label = [], f"memory {mode}"
        for p, error in zip(played, each, strict=True):
            inferences = p.inferences.get(mode, [])
            if len(error) and np.isfinite(error).any():
                times = [(i.stamp - begin) / NANOSECONDS for i in inferences]
                over_time.plot(
                    times, _mean(error, (1, 2)), ".-", color=COLOURS[mode], lw=0.8, ms=3, label=label
                )
                all_errors.append(error)
                label = None
        if all_errors:
            over_horizon.plot(
                np.arange(contract.chunk_size) / contract.fps,
                _mean(np.concatenate(all_errors), (0, 2)),
                color=COLOURS[mode],
            )
    for p in played:
        over_time.axvline((p.start - begin) / NANOSECONDS, color="k", lw=0.6, ls=":")
        for reset in p.resets:
            over_time.axvline((reset - begin) / NANOSECONDS, color="r", lw=0.6, ls=":")
    over_time.set(
        xlabel="seconds; dotted: episode starts, red: memory resets", ylabel="mean error of a chunk, °"
    )
    over_horizon.set(xlabel="seconds ahead", ylabel="mean error, °")
    for axes in (over_time, over_horizon):
        axes.set_ylim(0, None)
    if over_time.lines:
        over_time.legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=110)


def draw_memory(played: Sequence[Played], mode: str, file: Path) -> None:
    """Size of each memory token, and how far each write turned it."""
    figure = _figure(9, 4)
    norm, drift = _rows(figure, 2)
    begin = played[0].start
    for p in played:
        inferences: list[Inference] = p.inferences.get(mode, [])
        if inferences:
            times = [(i.stamp - begin) / NANOSECONDS for i in inferences]
            for axes, values in (
                (norm, [i.norm for i in inferences]),
                (drift, [i.cosine_distance if i.step else np.full_like(i.norm, np.nan) for i in inferences]),
            ):
                axes.set_prop_cycle(None)
                axes.plot(times, np.array(values), ".-", lw=0.8, ms=3)
        norm.axvline((p.start - begin) / NANOSECONDS, color="k", lw=0.6, ls=":")
        drift.axvline((p.start - begin) / NANOSECONDS, color="k", lw=0.6, ls=":")
    norm.set(ylabel="norm of each token", ylim=(0, None))
    drift.set(ylabel="cosine distance\nto the one before", ylim=(0, None), xlabel="seconds")
    figure.savefig(file, dpi=110)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _rows(figure: Figure, count: int) -> list:
    return list(np.atleast_1d(figure.subplots(count, 1, sharex=True)))


def _mean(values: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    return np.divide(
        np.where(known, values, 0).sum(axis=axis), count, out=np.full(count.shape, np.nan), where=count > 0
    )
