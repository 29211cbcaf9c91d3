# SPDX-License-Identifier: Apache-2.0
"""Makes the demo's policy: demonstrations, a base, a training with memory on all tasks, a small checkpoint.

Run it again to go on where it was stopped; what is done is not done again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smolvla_mem_ros.cli import pack_checkpoint
from smolvla_mem_ros.cli.arguments import positive
from smolvla_mem_ros.cli.run_ablations import make, preparation
from smolvla_mem_ros.training import jobs
from smolvla_mem_ros.training.ablations import RESULTS, is_stale, plan, read_result
from smolvla_mem_ros.training.jobs import JobError
from smolvla_mem_ros.training.recipe import QUICK, RECIPE, WORK


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="example: train_memory_tasks --jobs 2 --output config/checkpoints/demo",
    )
    parser.add_argument("--work", type=Path, help=f"demonstrations and trainings (default {WORK})")
    parser.add_argument("--output", type=Path, help="the checkpoint (default: memory_tasks in --work)")
    parser.add_argument("--results", type=Path, help="of run_ablations, for the scores on the model card "
                        f"(default {RESULTS})")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the training with memory (default 0)")
    parser.add_argument(
        "--jobs",
        type=positive,
        default=1,
        help="cores to use: steps run side by side, and a training's batches are shared (default 1)",
    )
    parser.add_argument("--keep", action="store_true", help="keep all checkpoints, not only the last")
    parser.add_argument("--quick", action="store_true", help="a smoke run: few demonstrations and steps; in "
                        f"{WORK}/quick unless told otherwise")  # fmt: skip
    args = parser.parse_args(argv)
    recipe = QUICK if args.quick else RECIPE
    work = args.work or (WORK / "quick" if args.quick else WORK)
    folder = args.results or (work / "results" if args.quick else RESULTS)
    # The run that the studies call so; whoever comes first trains it.
    training = recipe.training(recipe.all.tasks, args.seed, {})
    try:
        failures = make(preparation(recipe, work, args.keep), work, args.jobs)
        stages = [jobs.training(stage, work, args.keep, args.jobs) for stage in training.stages]
        failures = failures or make([stages], work, args.jobs)
        results = []
        for run in plan(recipe)["main"].values():
            path = run.result(folder)
            if run.training == training and path.is_file() and not is_stale(run, recipe, read_result(path)):
                results = ["--results", str(path)]
    except KeyboardInterrupt:
        print("train_memory_tasks: stopped; the same command goes on", file=sys.stderr)
        return 130
    except (JobError, ValueError, OSError) as error:
        failures = [str(error)]
    for failure in failures:
        print(f"train_memory_tasks: {failure}", file=sys.stderr)
    if failures:
        return 1
    output = args.output or work / "memory_tasks"
    return pack_checkpoint.main([str(training.checkpoint(work)), str(output), *results])


if __name__ == "__main__":
    sys.exit(main())
