# SPDX-License-Identifier: Apache-2.0
"""Shows the results of an evaluation: a table for the screen, a picture for a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"baseline": "#8a8a8a", "on": "#1f77b4", "off": "#d9a441", "reset_every_step": "#c26d3f",
           "noise": "#a05195", "frozen": "#5b8c5a"}  # fmt: skip


def series(results: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, dict]]:
    """(model, memory mode) -> task -> scores, in the order in which they are shown."""
    shown: dict[tuple[str, str], dict[str, dict]] = {}
    for model in ("baseline", "memory"):
        for task, modes in (results[model] or {"tasks": {}})["tasks"].items():
            for mode, scores in modes.items():
                shown.setdefault((model, mode), {})[task] = scores
    return shown


def table(results: Mapping[str, Any]) -> str:
    """The results as text, at most 110 columns wide."""
    rows = [["task", "model", "memory", "success", "95 % interval", "reward", "best without memory"]]
    for task, ceiling in results["ceilings"].items():
        for (model, mode), tasks in series(results).items():
            s = tasks[task]
            low, high = s["success_ci95"]
            rate = f"{100 * s['success_rate']:.1f} % ({s['successes']}/{s['n_episodes']})"
            interval = f"{100 * low:.1f} to {100 * high:.1f} %"
            mode = _mode_name(results, model, mode)
            rows.append(
                [task, model, mode, rate, interval, f"{s['mean_reward']:.2f}", f"{100 * ceiling:.1f} %"]
            )
    costs = [["model", "inference of a chunk, median (quartiles)", "peak memory", "parameters"]]
    for model in ("baseline", "memory"):
        if result := results[model]:
            t = result["inference_time_ms"]
            peak = result["peak_memory_mb"]
            costs.append(
                [
                    model,
                    f"{t['median']:.1f} ms ({t['p25']:.1f} to {t['p75']:.1f})",
                    "unknown" if peak is None else f"{peak:.1f} MiB",
                    f"{result['num_parameters']:,}",
                ]
            )
    lines = [*aligned(rows), "", *aligned(costs)]
    if c := results["comparison"]:
        low, high = c["success_rate_difference_ci95"]
        lines += [
            "",
            f"memory against baseline: success {100 * c['success_rate_difference']:+.1f} points "
            f"({100 * low:+.1f} to {100 * high:+.1f}), "
            f"inference {_percent(c['inference_overhead_percent'])}, "
            f"peak memory {_percent(c['memory_overhead_percent'])}, "
            f"parameters {_percent(c['parameter_overhead_percent'])}",
        ]
    return "\n".join(lines)


def _mode_name(results: Mapping[str, Any], model: str, mode: str) -> str:
    return mode if results[model]["num_mem_tokens"] else "none"


def cost_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """What ``benchmark memory_cost`` measured: a header, then stock and memory, median and quartiles."""
    rows = [["", "turns", "stock", "memory", "memory / stock"]]
    for each in result["comparisons"]:
        sides, ratio = (each["stock"], each["memory"]), each["ratio"]
        time = ratio["time"]
        spread = f"{time['median']:.3f} ({time['p25']:.3f} to {time['p75']:.3f})"
        rows.append(
            [each["name"], str(each["turns"]), *(f"{s['ms']['median']:.0f} ms" for s in sides), spread]
        )
        if ratio["peak"]:
            peaks = [f"{side['peak_mb']:.0f} MiB" for side in sides]
            rows.append(["its peak memory", "", *peaks, f"{ratio['peak']:.3f}"])
    counts = [f"{side['parameters']:,}" for side in sides]
    return [*rows, ["weights", "", *counts, f"{ratio['parameters']:.4f}"]]


def speed_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """What ``benchmark bags`` measured: a header, then how many times faster than real time each form is."""
    rows = [["bag", "MB a second", *result["speed"][0]["ways"]]]
    for bag in result["speed"]:
        cells = [f"{s['median']:.1f} ({s['p25']:.1f} to {s['p75']:.1f})" for s in bag["ways"].values()]
        rows.append([bag["form"], f"{bag['bytes'] / bag['seconds'] / 1e6:.1f}", *cells])
    return rows


def peak_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The most that came to the memory of the process: a header, then a row for each length."""
    rows = [["bag", "size", *result["memory"][0]["ways"]]]
    for bag in result["memory"]:
        peaks = [way["peak_mib"] for way in bag["ways"].values()]
        cells = ["unknown" if peak is None else f"{peak:.0f} MiB" for peak in peaks]
        rows.append([f"{bag['form']}, {bag['seconds']:g} s", f"{bag['bytes'] / 1e6:.0f} MB", *cells])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table for the screen; the first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; None becomes a dash."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join('-' if c is None else str(c) for c in line)} |" for line in lines)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2f} %"


def picture(results: Mapping[str, Any], times_ms: Mapping[str, np.ndarray], file: Path) -> None:
    """Writes ``file`` (PNG): success of each model and mode on each task, and the inference times.

    Args:
        times_ms: model -> (N,) milliseconds.

    Raises:
        OSError: ``file`` cannot be written.
    """
    shown = series(results)
    tasks = list(results["ceilings"])
    figure = Figure(figsize=(3.5 + 1.7 * len(tasks) * max(1.0, len(shown) / 3), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    bars, box = figure.subplots(1, 2, width_ratios=[len(tasks) * max(1.0, len(shown) / 3), 1])

    width = 0.8 / len(shown)
    for i, ((model, mode), scores) in enumerate(shown.items()):
        x = np.arange(len(tasks)) + (i - (len(shown) - 1) / 2) * width
        rates = np.array([scores[task]["success_rate"] for task in tasks])
        ends = np.array([scores[task]["success_ci95"] for task in tasks]).T
        name = _mode_name(results, model, mode)
        bars.bar(
            x,
            100 * rates,
            0.92 * width,
            yerr=(100 * np.abs(ends - rates)).tolist(),
            capsize=3,
            color=COLOURS["baseline" if model == "baseline" else mode],
            label=model if model == "baseline" else f"memory {name}",
        )
    ceilings = 100 * np.array(list(results["ceilings"].values()))
    at = np.arange(len(tasks))
    bars.hlines(ceilings, at - 0.45, at + 0.45, "k", "--", lw=1, label="best without memory")
    bars.set(ylim=(0, 105), ylabel="success, %", xticks=range(len(tasks)), xticklabels=tasks)
    n = results["n_episodes"]
    bars.set_title(f"{n} episodes of each task, 95 % intervals", fontsize=10)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)

    box.boxplot(list(times_ms.values()), tick_labels=list(times_ms), showfliers=False, widths=0.5)
    box.set(ylabel="inference of a chunk, ms", ylim=(0, None))
    box.set_title(results["machine"]["device"], fontsize=10)
    figure.savefig(file, dpi=120)
