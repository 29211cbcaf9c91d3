# SPDX-License-Identifier: Apache-2.0
"""Plays memory tasks with a policy, and with a baseline to compare: success, inference time, memory."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from smolvla_mem_ros.cli.arguments import positive
from smolvla_mem_ros.evaluation import measure, report
from smolvla_mem_ros.evaluation.provenance import machine, versions
from smolvla_mem_ros.evaluation.rollout import MODES, Outcome, Stage, check_fits, observe, rollout
from smolvla_mem_ros.evaluation.statistics import difference, wilson
from smolvla_mem_ros.policy.checkpoint import Checkpoint, load_checkpoint
from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.tasks import TASKS, get_task
from smolvla_mem_ros.sim.world import World

EXAMPLES = """\
examples:
  evaluate_models --memory_path outputs/memory --task CueRecall2 --n_episodes 20
  evaluate_models --baseline_path outputs/stock --memory_path outputs/memory --task CueRecall2,LateCue2 \\
      --memory_mode on,noise,frozen --device cuda --output_file outputs/results.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory_path", required=True, help="checkpoint with memory, a folder or hub name")
    parser.add_argument("--baseline_path", help="checkpoint to compare it with, such as a stock SmolVLA")
    parser.add_argument("--task", default="CueRecall2", help=f"one or more of {','.join(TASKS)}, with "
                        "commas; or all (default %(default)s)")  # fmt: skip
    parser.add_argument("--n_episodes", type=positive, default=100, help="of each task (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="of the episodes (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default %(default)s)")
    parser.add_argument("--output_file", type=Path, default=Path("results.json"), help="JSON; a PNG is laid "
                        "beside it (default %(default)s)")  # fmt: skip
    parser.add_argument("--memory_mode", default="on", help=f"one or more of {','.join(MODES)}, with commas: "
                        "what is done to the memory between inferences (default %(default)s)")  # fmt: skip
    parser.add_argument("--delay", type=int, help="frames between cue and go (default: drawn each episode)")
    parser.add_argument("--cue_visible", action="store_true", help="the cue stays lit: no memory is needed")
    parser.add_argument(
        "--batch", type=positive, default=25, help="worlds side by side (default %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error("--seed must be 0 or more")
    command = shlex.join(["evaluate_models", *(sys.argv[1:] if argv is None else argv)])
    try:
        results, times = evaluate(args, command)
        picture = args.output_file.with_suffix(".png")
        args.output_file.write_text(json.dumps(results, indent=2) + "\n")
        report.picture(results, times, picture)
    except KeyboardInterrupt:
        print("evaluate_models: stopped, nothing was written", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError as error:
        print(f"evaluate_models: {str(error).splitlines()[0]}; try a smaller --batch", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(f"evaluate_models: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(report.table(results))
    print(f"\nwritten: {args.output_file}, {picture}")
    return 0


def evaluate(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Everything that goes into the JSON file, and the inference times of each model in milliseconds.

    Raises:
        ValueError: an option or a checkpoint cannot be used; the message names cause and cure.
        OSError: the results could not be written where they should be.
    """
    tasks = list(TASKS) if args.task == "all" else list(dict.fromkeys(args.task.split(",")))
    modes = list(dict.fromkeys(args.memory_mode.split(",")))
    for task in tasks:
        draw(get_task(task), args.seed, 0, delay=args.delay, cue_visible=args.cue_visible)
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise ValueError(f"there is no memory mode {unknown[0]!r}; there are {', '.join(MODES)}")
    if args.output_file.suffix != ".json":
        raise ValueError(f"--output_file {args.output_file} must end in .json")
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    if args.output_file.is_dir() or not os.access(args.output_file.parent, os.W_OK):
        raise ValueError(f"--output_file {args.output_file} cannot be written; name another")

    # (model, mode) -> checkpoint; modes share one, except "off", which is a model of its own.
    players: dict[tuple[str, str], Checkpoint] = {}
    if args.baseline_path is not None:
        players["baseline", "on"] = _load(args.baseline_path, args.device)
    trained = _load(args.memory_path, args.device)
    if trained.config.num_mem_tokens == 0 and modes != ["on"]:
        raise ValueError(
            f"checkpoint {args.memory_path} has no memory (num_mem_tokens=0), so there is no --memory_mode "
            f"{','.join(modes)} for it; leave that option out, or name a checkpoint with memory"
        )
    for mode in modes:
        players["memory", mode] = _load(args.memory_path, args.device, 0) if mode == "off" else trained
    size = _picture_size(list(players.values()))

    played: dict[tuple[str, str], dict[str, list[Outcome]]] = {}
    with Stage(min(args.batch, args.n_episodes), *size) as stage:
        for (model, mode), checkpoint in players.items():
            for task in tasks:
                with tqdm(total=args.n_episodes, desc=f"{task}, {model} {mode}", unit="ep") as bar:
                    outcomes = rollout(
                        checkpoint,
                        stage,
                        task,
                        range(args.n_episodes),
                        seed=args.seed,
                        delay=args.delay,
                        cue_visible=args.cue_visible,
                        memory_mode=mode,
                        progress=bar.update,
                    )
                played.setdefault((model, mode), {})[task] = outcomes
        # What is measured is the first mode, as trained unless asked otherwise.
        first = {model: "on" if model == "baseline" else modes[0] for model, _ in players}
        measured = {model: (mode, players[model, mode]) for model, mode in first.items()}
        costs, times = _measure(measured, stage.worlds[0], tasks[0], args.seed)

    results: dict[str, Any] = {
        "baseline": None,
        "memory": None,
        "comparison": None,
        "ceilings": {task: 1.0 if args.cue_visible else TASKS[task].ceiling for task in tasks},
        "n_episodes": args.n_episodes,
        "seed": args.seed,
        "delay": args.delay,
        "cue_visible": args.cue_visible,
        "picture_size": list(size),
        "command": command,
        "machine": {**machine(), "device": _device_name(trained), "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    for model, mode in first.items():
        results[model] = {
            **_scores([o for outcomes in played[model, mode].values() for o in outcomes]),
            **costs[model],
            "checkpoint": args.memory_path if model == "memory" else args.baseline_path,
            "num_mem_tokens": (trained if model == "memory" else players[model, mode]).config.num_mem_tokens,
            "memory_mode": mode,
            "tasks": {
                task: {mode: _scores(t[task], True) for (m, mode), t in played.items() if m == model}
                for task in tasks
            },
        }
    if results["baseline"]:
        results["comparison"] = _compare(results["baseline"], results["memory"], modes[0])
    return results, times


def _load(path: str, device: str, num_mem_tokens: int | None = None) -> Checkpoint:
    checkpoint = load_checkpoint(path, device, num_mem_tokens)
    try:
        check_fits(checkpoint)
    except ValueError as error:
        raise ValueError(f"checkpoint {path} does not fit the memory tasks: {error}") from error
    return checkpoint


def _picture_size(checkpoints: Sequence[Checkpoint]) -> tuple[int, int]:
    """Width and height of the pictures that the policies were trained with."""
    sizes = {feature.shape[:0:-1] for c in checkpoints for feature in c.config.image_features.values()}
    if len(sizes) > 1:
        found = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise ValueError(
            f"the policies were trained with pictures of {found}, and can only be compared on one size; "
            "train them on the same demonstrations"
        )
    return sizes.pop()


def _measure(
    measured: dict[str, tuple[str, Checkpoint]], world: World, task: str, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Costs of each model (name -> its memory mode and checkpoint), and its times (N,) in milliseconds."""
    world.reset(*draw(get_task(task), seed, 0))
    runs = {
        model: measure.one_inference(
            checkpoint, observe(checkpoint, [world]), with_memory=mode != "reset_every_step"
        )
        for model, (mode, checkpoint) in measured.items()
    }
    device = measured["memory"][1].config.device
    with tqdm(desc="timing inference", unit="chunk") as bar:
        each = measure.times_in_turn(list(runs.values()), device, progress=bar.update)
    times = dict(zip(runs, each, strict=True))
    costs = {
        model: {
            "inference_time_ms": measure.quartiles(times[model]) | {"n": len(times[model])},
            "peak_memory_mb": measure.peak_memory_mb(checkpoint.policy, device, runs[model]),
            "num_parameters": measure.num_parameters(checkpoint.policy),
        }
        for model, (_, checkpoint) in measured.items()
    }
    return costs, times


def _scores(outcomes: Sequence[Outcome], in_full: bool = False) -> dict[str, Any]:
    """``in_full`` adds how episodes ended, and the numbers of those that succeeded."""
    successes, n = sum(o.success for o in outcomes), len(outcomes)
    scores = {
        "success_rate": successes / n,
        "success_ci95": list(wilson(successes, n)),
        "n_episodes": n,
        "successes": successes,
        "mean_reward": float(np.mean([o.reward for o in outcomes])),
    }
    if in_full:
        scores["mean_frames"] = float(np.mean([o.frames for o in outcomes]))
        scores["endings"] = dict(Counter(o.reason for o in outcomes).most_common())
        scores["succeeded"] = [o.episode for o in outcomes if o.success]
    return scores


def _compare(baseline: dict[str, Any], memory: dict[str, Any], mode: str) -> dict[str, Any]:
    def success(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        d, low, high = difference((a["successes"], a["n_episodes"]), (b["successes"], b["n_episodes"]))
        return {"success_rate_difference": d, "success_rate_difference_ci95": [low, high]}

    def overhead(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else 100 * (b / a - 1)

    return {
        **success(baseline, memory),
        "inference_overhead_percent": overhead(
            baseline["inference_time_ms"]["median"], memory["inference_time_ms"]["median"]
        ),
        "memory_overhead_percent": overhead(baseline["peak_memory_mb"], memory["peak_memory_mb"]),
        "parameter_overhead_percent": overhead(baseline["num_parameters"], memory["num_parameters"]),
        "tasks": {
            task: success(baseline["tasks"][task]["on"], memory["tasks"][task][mode])
            for task in memory["tasks"]
        },
    }


def _device_name(checkpoint: Checkpoint) -> str:
    device = checkpoint.config.device
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


if __name__ == "__main__":
    sys.exit(main())
