# SPDX-License-Identifier: Apache-2.0
"""Writes demonstrations of the memory tasks as a LeRobotDataset; run again, it goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tqdm import tqdm

from smolvla_mem_ros.cli.arguments import positive
from smolvla_mem_ros.sim.demos import draw, play
from smolvla_mem_ros.sim.tasks import FPS, REACTION, TASKS, get_task
from smolvla_mem_ros.sim.world import CAMERAS, World
from smolvla_mem_ros.so100.arm import JOINTS

RECIPE = "recipe.json"
KEEP_EVERY = 50  # episodes; what was collected since then is collected again after a crash


class CollectError(RuntimeError):
    """The folder cannot be used; the message names cause and cure."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: collect_demos --task CueRecall2,LateCue2 --episodes 200 --output outputs/demos",
    )
    parser.add_argument("--task", required=True, help=f"all, or with commas: {','.join(TASKS)}")
    parser.add_argument("--episodes", type=positive, default=200, help="of each task (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--delay", type=int, help="frames between cue and go (default: drawn each episode)")
    parser.add_argument("--cue_visible", action="store_true", help="the cue stays lit: no memory is needed")
    parser.add_argument("--width", type=int, default=64, help="of a picture, pixels (default 64)")
    parser.add_argument("--height", type=int, default=48, help="default 48")
    parser.add_argument("--output", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--repo_id", default="local/so100_memory", help="its name (default %(default)s)")
    args = parser.parse_args(argv)
    tasks = list(TASKS) if args.task == "all" else args.task.split(",")
    datasets.disable_progress_bars()  # one for each episode that is saved
    try:
        for task in tasks:
            draw(get_task(task), args.seed, 0, delay=args.delay, cue_visible=args.cue_visible)
        failures = collect(args, tasks)
    except KeyboardInterrupt:
        print(f"collect_demos: stopped; the same command goes on with {args.output}", file=sys.stderr)
        return 130
    except (CollectError, ValueError, OSError) as error:
        print(f"collect_demos: {error}", file=sys.stderr)
        return 1
    total = args.episodes * len(tasks)
    print(f"{args.output}: {total} episodes; the expert failed {failures} more, which were left out")
    return 0


def collect(args: argparse.Namespace, tasks: Sequence[str]) -> int:
    """Plays what is missing in the dataset. Returns how many episodes failed and were left out."""
    total = args.episodes * len(tasks)
    recipe = {k: getattr(args, k) for k in ("seed", "delay", "cue_visible", "width", "height")}
    recipe |= {"tasks": tasks, "reaction": REACTION}
    done, attempt, failures = _progress(args.output, recipe)
    with (
        World(args.width, args.height) as world,
        tqdm(total=total, initial=min(done, total), desc="episodes", unit="ep") as bar,
    ):
        while done < total:
            dataset = _open(args, recipe)
            try:
                for _ in range(min(KEEP_EVERY, total - done)):
                    # Tasks take turns, so that more episodes can be added to every one of them later.
                    task = tasks[done % len(tasks)]
                    while not _record(dataset, world, task, attempt, args):
                        attempt, failures = attempt + 1, failures + 1
                    done, attempt = done + 1, attempt + 1
                    bar.update()
            finally:
                dataset.clear_episode_buffer()
                dataset.finalize()
                done = dataset.meta.total_episodes
                progress = {"recipe": recipe, "episodes": done, "attempts": attempt, "failures": failures}
                (args.output / RECIPE).write_text(json.dumps(progress, indent=2) + "\n")
    return failures


def _record(dataset: LeRobotDataset, world: World, task: str, attempt: int, args: argparse.Namespace) -> bool:
    """One episode, kept when the expert succeeds."""
    trial, rng = draw(get_task(task), args.seed, attempt, delay=args.delay, cue_visible=args.cue_visible)
    for frame in play(world, trial, rng):
        images = {f"observation.images.{camera}": image for camera, image in frame.images.items()}
        dataset.add_frame(
            {
                **images,
                "observation.state": frame.state,
                "action": frame.action,
                "task": trial.instruction,
            }
        )
    if world.referee.outcome:
        dataset.save_episode()
    else:
        dataset.clear_episode_buffer()
    return bool(world.referee.outcome)


def _progress(folder: Path, recipe: dict) -> tuple[int, int, int]:
    """Episodes, attempts and failures so far. Raises CollectError when the folder holds something else."""
    if not folder.exists() or not any(folder.iterdir()):
        return 0, 0, 0
    if not (folder / RECIPE).is_file():
        raise CollectError(f"{folder} is not empty and not made by collect_demos; name another folder")
    progress = json.loads((folder / RECIPE).read_text())
    begun = progress["recipe"]
    if other := [f"{k} {begun.get(k)}, not {v}" for k, v in recipe.items() if begun.get(k) != v]:
        # No option sets the reaction: it is the expert's.
        raise CollectError(
            f"{folder} was begun with {'; '.join(other)}: give the same options, or another folder"
        )
    return progress["episodes"], progress["attempts"], progress["failures"]


def _open(args: argparse.Namespace, recipe: dict) -> LeRobotDataset:
    if (args.output / "meta" / "info.json").is_file():
        return LeRobotDataset.resume(args.repo_id, root=args.output)
    shutil.rmtree(args.output, ignore_errors=True)  # empty, or the recipe of a run that kept nothing
    shape = (args.height, args.width, 3)
    picture = {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
    joints = {"dtype": "float32", "shape": (len(JOINTS),), "names": [f"{joint}.pos" for joint in JOINTS]}
    dataset = LeRobotDataset.create(
        args.repo_id,
        FPS,
        robot_type="so100_sim",
        root=args.output,
        use_videos=False,
        features={
            **{f"observation.images.{camera}": picture for camera in CAMERAS},
            "observation.state": joints,
            "action": joints,
        },
    )
    progress = {"recipe": recipe, "episodes": 0, "attempts": 0, "failures": 0}
    (args.output / RECIPE).write_text(json.dumps(progress, indent=2) + "\n")
    return dataset


if __name__ == "__main__":
    sys.exit(main())
