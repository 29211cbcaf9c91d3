# SPDX-License-Identifier: Apache-2.0
"""Draws the results of run_ablations, and writes their tables and those of benchmark into the docs.

Works with whatever results are there and says what is missing. The same results give the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from smolvla_mem_ros.evaluation.arm_report import arm_tables
from smolvla_mem_ros.evaluation.report import COLOURS, cost_rows, markdown, peak_rows, speed_rows
from smolvla_mem_ros.evaluation.statistics import wilson
from smolvla_mem_ros.sim.tasks import DELAYS, FPS, TASKS
from smolvla_mem_ros.training import ablations
from smolvla_mem_ros.training.ablations import RESULTS, STUDIES, Key, plan
from smolvla_mem_ros.training.recipe import RECIPE

# (variant of the study main, what is done to the memory) -> name in legends and tables, colour.
SERIES = {
    ("memory", "on"): ("memory", COLOURS["on"]),
    ("no memory", "on"): ("no memory", COLOURS["baseline"]),
    ("memory", "noise"): ("memory replaced by noise", COLOURS["noise"]),
    ("memory", "off"): ("memory switched off", COLOURS["off"]),
}
MODES = {mode: SERIES["memory", mode] for mode in ("on", "noise", "off")}
AXES = {"depth": "segment boundaries that the gradient crosses", "update": "update",
        "tokens": "memory tokens", "anchor": "anchor", "cache": "read_mem_from_cache"}  # fmt: skip


@dataclass(frozen=True)
class Rate:
    """Successes of all seeds together, and the share of each."""

    successes: int
    n: int
    seeds: tuple[float, ...]

    @property
    def share(self) -> float:
        return self.successes / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.0f} % ({100 * low:.0f} to {100 * high:.0f}), {self.successes}/{self.n}"


class Results:
    """What is there of one study."""

    def __init__(self, study: str, found: Mapping[Key, dict]) -> None:
        self.study, self.found = study, found

    def rate(
        self, label: str, tasks: tuple[str, ...], task: str, mode: str = "on", delay: int | None = None
    ) -> Rate | None:
        """Of ``task`` for a policy trained on ``tasks``; None when no seed has been measured."""
        scores = [
            score
            for (its_label, its_tasks, _), result in sorted(self.found.items(), key=lambda item: item[0][2])
            for score in result["scores"]
            if (its_label, its_tasks) == (label, tasks)
            and (score["task"], score["mode"], score["delay"]) == (task, mode, delay)
        ]
        if not scores:
            return None
        shares = tuple(score["successes"] / score["n"] for score in scores)
        return Rate(sum(s["successes"] for s in scores), sum(s["n"] for s in scores), shares)

    @property
    def stale(self) -> list[str]:
        """Runs that were made with another recipe."""
        runs = plan(RECIPE)[self.study]
        return [runs[k].name for k, found in self.found.items() if ablations.is_stale(runs[k], RECIPE, found)]

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The tuples of tasks that anything was measured of, in the study's order."""
        return [tasks for tasks in STUDIES[self.study].tasks if any(key[1] == tasks for key in self.found)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="example: plot_memory_results, after run_ablations"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="default %(default)s")
    parser.add_argument(
        "--page", type=Path, default=Path("docs/memory_results.md"), help="default %(default)s"
    )
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="default %(default)s")
    parser.add_argument("--rosbags", type=Path, default=Path("docs/rosbags.md"), help="default %(default)s")
    parser.add_argument("--so100", type=Path, default=Path("docs/so100.md"), help="default %(default)s")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="default %(default)s")
    args = parser.parse_args(argv)
    try:
        found = ablations.read_results(RECIPE, args.results)
        if not any(found.values()):
            raise ValueError(f"there are no results in {args.results}; run_ablations makes them")
        args.images.mkdir(parents=True, exist_ok=True)
        benchmarks = args.results.parent
        studies = {
            study: section(Results(study, results), args.images, args.page.parent)
            for study, results in found.items()
        }
        places = {
            args.page: {**studies, "made": provenance(found), "cost": table_cost(benchmarks)},
            args.rosbags: {"speed": table_bags(benchmarks)},
            args.so100: {"arm": table_arm(benchmarks)},
            args.readme: {"results": summary(Results("main", found["main"]))},
        }
        pages = {page: fill(page.read_text(), parts) for page, parts in places.items()}
        for page, text in pages.items():
            page.write_text(text)
    except (ValueError, OSError) as error:
        print(f"plot_memory_results: {error}", file=sys.stderr)
        return 1
    for study, results in found.items():
        runs = plan(RECIPE)[study]
        if missing := [runs[key].name for key in runs if key not in results]:
            print(f"{study}: {len(missing)} of {len(runs)} runs are missing: {_some(missing)}")
        if stale := Results(study, results).stale:
            print(f"{study}: {len(stale)} were made with another recipe: {_some(stale)}")
    print(f"written: {', '.join(map(str, [*pages, args.images]))}")
    return 0


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def fill(page: str, parts: Mapping[str, str]) -> str:
    """``page`` with each of ``parts`` between the markers of its name. Raises ValueError when it has none."""
    for name, text in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        found = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", page, re.DOTALL)
        if not found:
            raise ValueError(f"the page has no place for {name}; put the lines {begin} and {end} into it")
        page = page[: found.start()] + f"{begin}\n{text}\n{end}" + page[found.end() :]
    return page


def section(results: Results, images: Path, page: Path) -> str:
    """The tables and the picture of a study, as text for a page in the folder ``page``."""
    total = len(plan(RECIPE)[results.study])
    if not results.found:
        return f"None of the {total} runs has been made yet."
    draw, table = {
        "main": (draw_main, table_main),
        "oracle": (None, table_oracle),
        "delay": (draw_delays, table_delays),
        "delay_all": (draw_delays, table_delays),
        "gate": (draw_delays, table_delays),
        "pause": (draw_delays, table_delays),
    }.get(results.study, (draw_variants, table_variants))
    parts = [table(results)]
    if draw:
        picture = images / f"memory_{'success' if results.study == 'main' else results.study}.png"
        draw(results).savefig(picture, dpi=110, metadata={"Software": None})
        parts.insert(0, f"![{STUDIES[results.study].question}]({os.path.relpath(picture, page)})")
    if len(results.found) < total:
        parts.append(f"{len(results.found)} of {total} runs; the others have not been made yet.")
    if stale := results.stale:
        parts.append(f"{len(stale)} of them were trained with an earlier recipe, as their files say.")
    return "\n\n".join(parts)


# Tables ---------------------------------------------------------------------------------------------


def table_main(results: Results) -> str:
    parts = []
    each = [tasks for tasks in results.groups if len(tasks) == 1]
    together = [tasks for tasks in results.groups if len(tasks) > 1]
    for title, groups in (("One policy for each task:", each), ("One policy for all tasks:", together)):
        rows = [
            [
                task,
                f"{ceiling(task)} %",
                *(results.rate(label, tasks, task, mode) for label, mode in SERIES),
                _seeds(results.rate("memory", tasks, task)),
            ]
            for tasks in groups
            for task in tasks
        ]
        names = [name for name, _ in SERIES.values()]
        if rows:
            header = ["task", "best without memory", *names, "memory, each seed"]
            parts.append(f"{title}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def summary(results: Results) -> str:
    """Of the policy for all tasks, for the README."""
    tasks = tuple(TASKS)
    shown = [("memory", "on"), ("memory", "noise"), ("no memory", "on")]
    shown = [(label, mode) for label, mode in shown if results.rate(label, tasks, tasks[0], mode)]
    if not shown:
        return "Not measured yet."
    rates = {task: [results.rate(label, tasks, task, mode) for label, mode in shown] for task in tasks}
    rows = [
        [task, *(f"{100 * rate.share:.0f} %" for rate in each), f"{ceiling(task)} %"]
        for task, each in rates.items()
    ]
    counts = [sum(key[:2] == (label, tasks) for key in results.found) for label in ("memory", "no memory")]
    table = markdown(["task", *(SERIES[key][0] for key in shown), "best without memory"], rows)
    text = f"{table}\n\nTrainings: {counts[0]} with memory, {counts[1]} without."
    ours = {run.name for key, run in plan(RECIPE)["main"].items() if key[1] == tasks}
    if stale := ours.intersection(results.stale):
        text += f" {len(stale)} of them with an earlier recipe than the one that is in the tree."
    return text


def table_cost(folder: Path) -> str:
    """What ``benchmark memory_cost`` wrote into ``folder``: stock and memory, median and quartiles."""
    parts = []
    for path in sorted(folder.glob("memory_cost*.json")):
        result = json.loads(path.read_text())
        header, *rows = cost_rows(result)
        at, memory = result["machine"], result["memory"]
        parts.append(
            f"Size `{result['size']}`, {memory['num_mem_tokens']} tokens, `{memory['mem_update']}`, "
            f"batch size {result['batch_size']}; {at['cpu']}, {at['device']}, threads: {at['threads']} "
            f"(`{result['command']}`):\n\n" + markdown(header, rows)
        )
    return "\n\n".join(parts) or "Not measured yet."


def table_bags(folder: Path) -> str:
    """What ``benchmark bags`` wrote into ``folder``: speeds, then peak memory."""
    path = folder / "bags.json"
    if not path.is_file():
        return "Not measured yet."
    result = json.loads(path.read_text())
    at = result["machine"]
    speed, peak = (markdown(header, rows) for header, *rows in (speed_rows(result), peak_rows(result)))
    return (
        f"{at['cpu']}, {at['cores']} cores; median and quartiles of {result['turns']} turns "
        f"(`{result['command']}`):\n\n{speed}\n\nThe most that came to the memory of the process:\n\n{peak}"
    )


def table_arm(folder: Path) -> str:
    """What ``benchmark arm_loop`` wrote into ``folder``."""
    path = folder / "arm_loop.json"
    if not path.is_file():
        return "Not measured yet."
    result = json.loads(path.read_text())
    at, loop = result["machine"], result["loop"]
    tables = "\n\n".join(markdown(header, rows) for header, *rows in arm_tables(result))
    return (
        f"{at['cpu']}, {at['cores']} cores, {loop['seconds']:g} s of the loop with {loop['inferences']} "
        f"inferences beside it (`{result['command']}`):\n\n{tables}"
    )


def ceiling(task: str) -> str:
    return f"{100 * TASKS[task].ceiling:.0f}"


def table_oracle(results: Results) -> str:
    (variant,) = STUDIES["oracle"].variants
    rows = [[tasks[0], results.rate(variant.label, tasks, tasks[0])] for tasks in results.groups]
    return markdown(["task", "the cue lit to the end"], rows)


def table_variants(results: Results) -> str:
    rows = [
        [
            tasks[0],
            variant.label,
            *(results.rate(variant.label, tasks, tasks[0], mode) for mode in MODES),
            f"{ceiling(tasks[0])} %",
        ]
        for tasks in results.groups
        for variant in STUDIES[results.study].variants
    ]
    names = [name for name, _ in MODES.values()]
    return markdown(["task", AXES[results.study], *names, "best without memory"], rows)


def table_delays(results: Results) -> str:
    study = STUDIES[results.study]
    columns = [
        (tasks, task, variant.label)
        for tasks in results.groups
        for task in tasks
        for variant in study.variants
    ]
    rows = [
        [
            f"{delay} ({delay / FPS:.1f} s)",
            f"{delay / DELAYS[1]:g} x",
            *(results.rate(label, tasks, task, delay=delay) for tasks, task, label in columns),
        ]
        for delay in study.delays
    ]
    names = [f"{task}, {label}" for _, task, label in columns]
    return markdown(["frames from cue to go", "of the longest demonstrated", *names], rows)


def _seeds(rate: Rate | None) -> str:
    return ", ".join(f"{100 * share:.0f}" for share in rate.seeds) + " %" if rate else ""


def provenance(found: Mapping[str, Mapping[Key, dict]]) -> str:
    """What made the results: budgets, time, versions, machine."""
    by_name = {result["run"]: result for results in found.values() for result in results.values()}
    trained = [result for _, result in sorted(by_name.items())]

    def values(read: Callable[[dict], object]) -> str:
        return "; ".join(sorted({str(read(result)) for result in trained}))

    def minutes(policy: str) -> str | None:
        took = [r["training"]["seconds"] for r in trained if r["policy"] == policy]
        took = [seconds / 60 for seconds in took if seconds is not None]
        return f"{min(took):.0f} to {max(took):.0f} minutes" if took else None

    rows = [
        ["runs", len(trained)],
        ["steps x batch size", values(lambda r: f"{r['training']['steps']} x {r['training']['batch_size']}")],
        ["steps of the base", values(lambda r: r["training"]["base_steps"])],
        ["time of a training with memory", minutes("smolvla_mem")],
        ["time of a training without", minutes("smolvla")],
        ["seed of the episodes played", values(lambda r: r["evaluation"]["seed"])],
        ["machine", values(_machine)],
        ["versions", values(lambda r: ", ".join(f"{k} {v}" for k, v in r["versions"].items()))],
    ]
    return markdown(["", ""], rows)


def _machine(result: dict) -> str:
    at = result["machine"]
    return f"{at['cpu']}, {at['threads_per_run']} of {at['cores']} cores"


# Pictures -------------------------------------------------------------------------------------------


def draw_main(results: Results) -> Figure:
    each = [tasks for tasks in results.groups if len(tasks) == 1]
    together = [tasks for tasks in results.groups if len(tasks) > 1]
    panels = [(t, groups) for t, groups in (("a policy for each task", each),
                                           ("one policy for all tasks", together)) if groups]  # fmt: skip
    figure = _figure(10.5, 3.6 * len(panels))
    for axes, (title, groups) in zip(_rows(figure, len(panels)), panels, strict=True):
        places = [(tasks, task) for tasks in groups for task in tasks]
        for i, ((label, mode), (name, colour)) in enumerate(SERIES.items()):
            rates = [results.rate(label, tasks, task, mode) for tasks, task in places]
            _bars(axes, rates, i, len(SERIES), name, colour)
        _ceilings(axes, [task for _, task in places])
        axes.set(title=title, xticks=range(len(places)), xticklabels=[task for _, task in places])
    return _finished(figure)


def draw_variants(results: Results) -> Figure:
    variants = STUDIES[results.study].variants
    figure = _figure(1.5 + 4 * len(results.groups), 3.6)
    for axes, tasks in zip(_grid(figure, len(results.groups)), results.groups, strict=True):
        for i, (mode, (name, colour)) in enumerate(MODES.items()):
            rates = [results.rate(variant.label, tasks, tasks[0], mode) for variant in variants]
            _bars(axes, rates, i, len(MODES), name, colour)
        _ceilings(axes, [tasks[0]] * len(variants))
        labels = [variant.label for variant in variants]
        axes.set(title=tasks[0], xticks=range(len(variants)), xticklabels=labels, xlabel=AXES[results.study])
    return _finished(figure)


def draw_delays(results: Results) -> Figure:
    study = STUDIES[results.study]
    panels = [(tasks, task) for tasks in results.groups for task in tasks]
    figure = _figure(1.5 + 4 * min(len(panels), 3), 3.6 * -(-len(panels) // 3))
    for axes, (tasks, task) in zip(_grid(figure, len(panels)), panels, strict=True):
        for variant in study.variants:
            points = [(d, results.rate(variant.label, tasks, task, delay=d)) for d in study.delays]
            points = [(delay, rate) for delay, rate in points if rate]
            if not points:
                continue
            shares = np.array([rate.share for _, rate in points])
            ends = np.array([rate.interval for _, rate in points]).reshape(-1, 2).T
            errors = (100 * np.abs(ends - shares)).tolist()
            x = [delay for delay, _ in points]
            axes.errorbar(x, 100 * shares, errors, marker="o", capsize=3, label=variant.label)
        label = "best without memory"
        axes.axhline(100 * TASKS[task].ceiling, color="black", ls="--", lw=1, label=label)
        axes.axvspan(DELAYS[0], DELAYS[1], color="tab:green", alpha=0.12, lw=0, label="demonstrated")
        axes.set_xscale("log", base=2)
        ticks = [f"{delay}\n{delay / DELAYS[1]:g}x" for delay in study.delays]
        axes.set(title=task, xticks=study.delays, xticklabels=ticks, xlabel="frames from cue to go")
        axes.minorticks_off()
    return _finished(figure)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _rows(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(count, 1, squeeze=False)[:, 0])


def _grid(figure: Figure, count: int) -> list[Axes]:
    """At most three side by side."""
    rows = -(-count // 3)
    places = list(figure.subplots(rows, min(count, 3), squeeze=False, sharey=True).flat)
    for axes in places[count:]:
        axes.remove()
    return places[:count]


def _bars(axes: Axes, rates: Sequence[Rate | None], i: int, of: int, name: str, colour: str) -> None:
    """The ``i``th of ``of`` bars in each group, with an interval and a dot for each seed."""
    width = 0.8 / of
    x = np.arange(len(rates)) + (i - (of - 1) / 2) * width
    shares = np.array([rate.share if rate else np.nan for rate in rates])
    ends = np.array([rate.interval if rate else (np.nan, np.nan) for rate in rates]).T
    errors = (100 * np.abs(ends - shares)).tolist()
    axes.bar(x, 100 * shares, 0.92 * width, yerr=errors, capsize=2, color=colour, label=name)
    for place, rate in zip(x, rates, strict=True):
        if rate and len(rate.seeds) > 1:
            dots = [100 * share for share in rate.seeds]
            axes.plot([place] * len(dots), dots, "o", ms=2.5, color="black", alpha=0.5)


def _ceilings(axes: Axes, tasks: Sequence[str]) -> None:
    for i, task in enumerate(tasks):
        label = None if i else "best without memory"
        axes.plot([i - 0.45, i + 0.45], [100 * TASKS[task].ceiling] * 2, "k--", lw=1, label=label)


def _finished(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.set_ylim(0, 105)
    figure.axes[0].set_ylabel("success, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
