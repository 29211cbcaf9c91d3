# SPDX-License-Identifier: Apache-2.0
"""The studies of the memory as data, and what is recorded of each of their runs.

lerobot-train imports this whole package as its plugin, so what is heavy is imported where it is used.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smolvla_mem_ros.evaluation.provenance import machine, versions
from smolvla_mem_ros.sim.tasks import DELAYS, REACTION, TASKS
from smolvla_mem_ros.training.recipe import WORK, Options, Recipe, Training, without

RESULTS = Path("benchmarks/results/memory")

# What is done to the memory while a policy with one is evaluated; see evaluation.rollout.
MODES = ("on", "off", "noise")
SEEDS = (0, 1, 2)
# Frames between cue and go: the longest of the demonstrations, and up to sixteen times as long.
LASTING = tuple(DELAYS[1] * times for times in (1, 2, 4, 8, 16))
STAGE = 25  # worlds that an evaluation plays in side by side


@dataclass(frozen=True)
class Variant:
    """One bar or point: ``memory`` overrides fields of the recipe's memory; None is the baseline without."""

    label: str
    memory: Options | None = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it: every variant on every tuple of tasks with every seed.

    Args:
        delays: frames between cue and go to evaluate at; None is as trained.
        cue_visible: the base itself, the cue lit to the end: what is reached where no memory is needed.
    """

    question: str
    variants: tuple[Variant, ...]
    tasks: tuple[tuple[str, ...], ...] = (("LateCue2",),)
    seeds: tuple[int, ...] = (0,)
    modes: tuple[str, ...] = MODES
    delays: tuple[int | None, ...] = (None,)
    cue_visible: bool = False


def _each(field_name: str, values: dict[str, object]) -> tuple[Variant, ...]:
    return tuple(Variant(label, {field_name: value}) for label, value in values.items())


STUDIES: dict[str, Study] = {
    "main": Study(
        "Does memory help? One policy for each task, and one for all tasks.",
        variants=(Variant("memory"), Variant("no memory", None)),
        tasks=(*((task,) for task in TASKS), tuple(TASKS)),
        seeds=SEEDS,
    ),
    "oracle": Study(
        "How far does the base get, which has no memory, with the cue lit to the end?",
        variants=(Variant("cue visible", None),),
        tasks=(("CueRecall3",), ("CueRecallShuffled3",)),
        cue_visible=True,
    ),
    "delay": Study(
        "How long does a memory last, beyond the delays of the demonstrations?",
        variants=(Variant("memory"),),
        tasks=(("CueRecall3",), ("LateCue2",)),
        seeds=SEEDS,
        modes=("on",),
        delays=LASTING,
    ),
    "delay_all": Study(
        "How long does the memory of one policy for all tasks last?",
        variants=(Variant("memory"),),
        tasks=(tuple(TASKS),),
        seeds=SEEDS,
        modes=("on",),
        delays=tuple(DELAYS[1] * times for times in (1, 4, 16)),
    ),
    "depth": Study(
        "How many segment boundaries must the gradient cross?",
        variants=_each("mem_backprop_depth", {"0": 0, "1": 1, "all": None}),
    ),
    "update": Study(
        "How should outputs become memory?",
        variants=_each("mem_update", {name: name for name in ("rmt", "gated", "ema")}),
    ),
    "tokens": Study(
        "How many memory tokens?", variants=_each("num_mem_tokens", {str(n): n for n in (1, 2, 4, 8)})
    ),
    "gate": Study(
        "How much of what is known should the gates keep at first?",
        variants=_each("mem_gate_bias", {"73 %": -1.0, "95 %": -3.0, "99 %": -5.0}),
        modes=("on",),
        delays=LASTING,
    ),
    "pause": Study(
        "What is it worth to write one frame of a sample again and again?",
        variants=_each("mem_pause", {"never": 0, "up to 16 times": 16}),
        modes=("on",),
        delays=LASTING,
    ),
    "anchor": Study(
        "What is the first frame of the episode worth in a training sample?",
        variants=_each("mem_anchor", {"on": True, "off": False}),
        tasks=(("CueRecall3",), ("LateCue2",)),
    ),
    "cache": Study(
        "What is it worth to read the write tokens' keys and values too?",
        variants=_each("read_mem_from_cache", {"off": False, "on": True}),
    ),
}


@dataclass(frozen=True)
class Run:
    """A training and how it is evaluated. Studies that need the same one share it; the first names it."""

    study: str
    training: Training
    modes: tuple[str, ...]
    delays: tuple[int | None, ...]
    cue_visible: bool = False

    @property
    def name(self) -> str:
        return f"{self.study}/{Path(self.training.name).name}"

    def result(self, folder: Path = RESULTS) -> Path:
        return folder / f"{self.name}.json"

    @property
    def cells(self) -> list[tuple[str, str, int | None]]:
        """(task, mode, delay), each of which is one evaluation."""
        return [(t, m, d) for t in self.training.tasks for m in self.modes for d in self.delays]


# (label of the variant, tasks, seed)
Key = tuple[str, tuple[str, ...], int]


def plan(recipe: Recipe) -> dict[str, dict[Key, Run]]:
    """The runs of each study."""
    known: dict[tuple, Run] = {}

    def run(name: str, variant: Variant, tasks: tuple[str, ...], seed: int) -> Run:
        study = STUDIES[name]
        training = recipe.pretraining() if study.cue_visible else recipe.training(tasks, seed, variant.memory)
        modes = study.modes if variant.memory is not None else ("on",)
        new = Run(name, training, modes, study.delays, study.cue_visible)
        return known.setdefault((training.name, modes, study.delays, study.cue_visible), new)

    return {
        name: {
            (variant.label, tasks, seed): run(name, variant, tasks, seed)
            for tasks in study.tasks
            for variant in study.variants
            for seed in study.seeds
        }
        for name, study in STUDIES.items()
    }


def commands(run: Run, recipe: Recipe, episodes: int, work: Path = WORK) -> dict[str, str]:
    """All that leads to a result, as one would type it."""
    base = recipe.pretraining()
    first = {f"training on {t.tasks[0]} first": ["lerobot-train", *t.arguments(work)]
             for t in run.training.stages[1:-1]}  # fmt: skip
    lines = {
        "demonstrations": ["collect_demos", *run.training.demos.arguments(work)],
        "demonstrations for the base": ["collect_demos", *base.demos.arguments(work)],
        "base": ["lerobot-train", *base.arguments(work)],
        **first,
        "training": ["lerobot-train", *run.training.arguments(work)],
        "evaluation": ["run_ablations", "--evaluate", run.name, "--episodes", str(episodes)],
    }
    return {what: shlex.join(line) for what, line in lines.items()}


def evaluate(
    run: Run,
    recipe: Recipe,
    episodes: int,
    checkpoint: Path,
    scores: list[dict],
    keep: Callable[[list[dict]], None],
    progress: Callable[[int], None],
) -> list[dict]:
    """Plays every cell of ``run`` that is not in ``scores`` yet.

    Args:
        episodes: of each cell.
        keep: called with all scores after each cell.
        progress: called with the number of episodes that ended since the last call.

    Raises:
        ValueError: the checkpoint cannot be used.
    """
    from smolvla_mem_ros.evaluation.rollout import Stage, rollout
    from smolvla_mem_ros.evaluation.statistics import wilson
    from smolvla_mem_ros.policy.checkpoint import load_checkpoint

    scores = [score for score in scores if score["n"] == episodes and _cell(score) in run.cells]
    left = [cell for cell in run.cells if cell not in map(_cell, scores)]
    progress(len(scores) * episodes)
    trained, memoryless = load_checkpoint(checkpoint, "cpu"), load_checkpoint(checkpoint, "cpu", 0)
    with Stage(min(STAGE, episodes) if left else 0) as stage:
        for task, mode, delay in left:
            outcomes = rollout(
                memoryless if mode == "off" else trained,
                stage,
                task,
                range(episodes),
                seed=recipe.scoring_seed,
                delay=delay,
                cue_visible=run.cue_visible,
                memory_mode=mode,
                progress=progress,
            )
            successes = sum(outcome.success for outcome in outcomes)
            scores.append(
                {
                    "task": task,
                    "mode": mode,
                    "delay": delay,
                    "n": episodes,
                    "successes": successes,
                    "interval": [round(end, 4) for end in wilson(successes, episodes)],
                    "mean_reward": round(sum(outcome.reward for outcome in outcomes) / episodes, 4),
                }
            )
            keep(scores)
    return scores


def _cell(score: dict) -> tuple[str, str, int | None]:
    return score["task"], score["mode"], score["delay"]


def record(
    run: Run,
    recipe: Recipe,
    episodes: int,
    scores: Sequence[dict],
    seconds: float | None,
    base: float | None,
    processes: int = 1,
) -> dict:
    """What is written of a run.

    Args:
        seconds: of its training since the base, None when not known; base: of the base's.
        processes: that shared its batches.
    """
    training = run.training
    memory = {name: training.options.get(f"policy.{name}") for name in recipe.memory}
    return {
        "run": run.name,
        "policy": training.policy,
        "tasks": list(training.tasks),
        "seed": training.seed,
        "memory": memory if training.has_memory else None,
        "training": {
            "steps": training.budget.steps,
            "batch_size": training.budget.batch_size,
            "seconds": seconds,
            "base_steps": recipe.base.steps,
            "base_seconds": base,
        },
        "expert": expert(),
        "evaluation": {
            "episodes": episodes,
            "seed": recipe.scoring_seed,
            "cue_visible": run.cue_visible,
        },
        "scores": list(scores),
        "commands": commands(run, recipe, episodes),
        "versions": versions(),
        "machine": {**machine(), "threads_per_run": processes},
    }


def expert() -> dict:
    """What the commands do not tell of the demonstrations."""
    return {"reaction": REACTION}


def is_stale(run: Run, recipe: Recipe, result: dict) -> bool:
    """Whether ``result`` was trained otherwise than ``recipe`` says now."""
    now = commands(run, recipe, 1)
    del now["evaluation"]
    return result.get("expert") != expert() or any(
        without(shlex.split(result["commands"].get(what, "")), recipe.loop)
        != without(shlex.split(line), recipe.loop)
        for what, line in now.items()
    )


def read_results(recipe: Recipe, folder: Path) -> dict[str, dict[Key, dict]]:
    """The results that are there, by study.

    Raises:
        ValueError: a file is not a result.
    """
    found: dict[str, dict[Key, dict]] = {}
    for study, runs in plan(recipe).items():
        found[study] = {}
        for key, run in runs.items():
            path = run.result(folder)
            if path.is_file():
                found[study][key] = read_result(path)
    return found


def read_result(path: Path) -> dict:
    """Raises ValueError when ``path`` is not what a run writes."""
    try:
        result = json.loads(path.read_text())
        result["scores"], result["commands"]["training"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result of run_ablations ({error!r}); delete it") from error
    return result
