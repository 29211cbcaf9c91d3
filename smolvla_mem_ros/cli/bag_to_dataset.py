# SPDX-License-Identifier: Apache-2.0
"""Makes a LeRobotDataset of rosbags, or adds to one.

A frame is made in each control period in which every stream is fresh, by the live node's own rules; where one
is missing or stale there is no frame, and it is counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from smolvla_mem_ros.cli.bag_progress import bag_progress
from smolvla_mem_ros.share import share_path

LEDGER = "bags.json"
EPILOG = """\
examples:
  bag_to_dataset outputs/demo_bag --contract config/memory_tasks.yaml --output outputs/from_bags
  bag_to_dataset monday tuesday.mcap --contract my_robot.yaml --task "fold the towel" --output outputs/towels
  scripts/train_smolvla_with_memory.sh --dataset.repo_id=local/towels --dataset.root=outputs/towels
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bags", type=Path, nargs="+", help="rosbag2 folders, or .mcap or .db3 files")
    add("--output", type=Path, required=True, help="folder of the dataset; one that is there is added to")
    add("--contract", type=Path, help="topics, joints, units, frames a second (default config/contract.yaml)")
    add("--task", default="", help="what was to be done, where a bag does not tell")
    add(
        "--gap",
        type=float,
        default=1.0,
        help="seconds without anything that end an episode of a bag without events (default %(default)s)",
    )
    add(
        "--max_gap",
        type=float,
        default=0.5,
        help="seconds without a frame after which another episode begins (default %(default)s)",
    )
    add("--repo_id", help="name of the dataset (default local/NAME_OF_THE_FOLDER)")
    add("--images", action="store_true", help="keep pictures as PNG instead of video")
    add("--salvage", action="store_true", help="use what can be read of damaged bags")
    args = parser.parse_args(argv)
    if not (args.gap > 0 and args.max_gap > 0):
        parser.error("--gap and --max_gap must be more than 0")
    from smolvla_mem_ros.bags.storage import BagError
    from smolvla_mem_ros.runtime.contract import ContractError

    try:
        return convert(args)
    except (BagError, ContractError, OSError, ValueError) as error:
        print(f"bag_to_dataset: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bag_to_dataset: stopped; the same command goes on with the bag it was at", file=sys.stderr)
        return 130


def convert(args: argparse.Namespace) -> int:
    from smolvla_mem_ros.runtime.contract import contract_alone

    contract_path = args.contract or share_path("config/contract.yaml")
    contract = contract_alone(contract_path)
    ledger = _ledger(args.output, contract_path.read_text())
    for bag in args.bags:
        key = str(bag.resolve())
        if key in ledger["bags"]:
            print(f"{bag}: is in {args.output} already")
            continue
        begun = ledger["begun"]
        if not begun or begun["bag"] != key:
            begun = ledger["begun"] = {"bag": key, "episodes_before": _episodes(args.output)}
        _write(args.output / LEDGER, ledger)
        quality = _add(bag, contract, args, _episodes(args.output) - begun["episodes_before"])
        ledger["begun"] = None
        if quality["frames"]:
            ledger["bags"][key] = quality
        _write(args.output / LEDGER, ledger)
        print(_told(bag, quality))
    episodes = sum(bag["episodes"] for bag in ledger["bags"].values())
    frames = sum(bag["frames"] for bag in ledger["bags"].values())
    if not frames:
        raise ValueError("no frame could be made; the lines above say why")
    print(f"{args.output}: {episodes} episodes, {frames} frames of {len(ledger['bags'])} bags")
    return 0


def _ledger(output: Path, contract: str) -> dict:
    """What is in the dataset so far. Raises ValueError when the folder is something else."""
    path = output / LEDGER
    if path.is_file():
        ledger = json.loads(path.read_text())
        if ledger["contract"] != contract:
            raise ValueError(f"{output} was made with another contract; give that one, or another --output")
        return ledger
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty and not made by bag_to_dataset; name another folder")
    return {"contract": contract, "bags": {}, "begun": None}


def _episodes(output: Path) -> int:
    """How many the dataset has."""
    info = output / "meta" / "info.json"
    return json.loads(info.read_text())["total_episodes"] if info.is_file() else 0


def _add(path: Path, contract, args: argparse.Namespace, done: int) -> dict:
    """Adds the frames of one bag, but for its first ``done`` episodes, which are there already."""
    import datasets

    from smolvla_mem_ros.bags.bag import Bag
    from smolvla_mem_ros.bags.frames import Framer

    datasets.disable_progress_bars()
    with Bag(path, args.salvage) as bag:
        if bag.span is None:
            raise ValueError(f"{path} holds no message")
        dataset, episode = None, 0
        with bag_progress(bag.span, path.name) as progress:
            framer = Framer(
                bag, contract, gap=args.gap, task=args.task, max_gap=args.max_gap,
                progress=progress,
            )  # fmt: skip
            try:
                for frame in framer.frames():
                    if frame.episode <= done:
                        continue
                    if dataset is None:
                        dataset = _open(args, contract, frame)
                    if episode not in (0, frame.episode):
                        dataset.save_episode()
                    episode = frame.episode
                    dataset.add_frame(
                        {**frame.images, "observation.state": frame.state, "action": frame.action,
                         "task": frame.task}
                    )  # fmt: skip
                if dataset is not None:
                    dataset.save_episode()
            finally:
                if dataset is not None:
                    dataset.clear_episode_buffer()
                    dataset.finalize()
        return {**framer.quality.summary(), "actions_from": framer.actions_from, "problems": bag.problems}


def _open(args: argparse.Namespace, contract, frame):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    repo_id = args.repo_id or f"local/{args.output.resolve().name}"
    if (args.output / "meta" / "info.json").is_file():
        return LeRobotDataset.resume(repo_id, root=args.output)
    names = [f"{joint}.pos" for joint in contract.joints]
    joints = {"dtype": "float32", "shape": (len(names),), "names": names}
    kind = "image" if args.images else "video"
    # LeRobot makes the folder itself; the ledger goes in again afterwards.
    ledger = (args.output / LEDGER).read_text()
    shutil.rmtree(args.output)
    dataset = LeRobotDataset.create(
        repo_id,
        round(contract.fps),
        root=args.output,
        use_videos=not args.images,
        features={
            **{
                key: {"dtype": kind, "shape": image.shape, "names": ["height", "width", "channels"]}
                for key, image in frame.images.items()
            },
            "observation.state": joints,
            "action": joints,
        },
    )
    (args.output / LEDGER).write_text(ledger)
    return dataset


def _told(bag: Path, quality: dict) -> str:
    lines = [
        f"{bag}: {quality['episodes']} episodes, {quality['frames']} frames, actions from "
        f"{quality['actions_from']}"
    ]
    lines += [
        f"  {count} control periods without a frame: {reason}" for reason, count in quality["dropped"].items()
    ]
    lines += [
        f"  {stream}: {s['rate_hz']:.1f} Hz, longest gap {s['longest_gap_s']:.2f} s, age at a frame "
        + (f"{quality['age_ms'][stream]['median']:.0f} ms, at most {quality['age_ms'][stream]['max']:.0f} ms"
           if stream in quality["age_ms"] else "unknown")
        for stream, s in quality["streams"].items()
    ]  # fmt: skip
    lines += [f"  not used: {count} x {what}" for what, count in quality["unused"].items()]
    lines += [f"  not read: {problem}" for problem in quality["problems"]]
    return "\n".join(lines)


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.rename(path)


if __name__ == "__main__":
    sys.exit(main())
