# SPDX-License-Identifier: Apache-2.0
"""Runs a policy over a rosbag2 and tells what it would have done, with its memory and without.

Nothing is commanded: the bag is read as fast as the model infers, through the same contract, observation
buffer and episode as the live node.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from smolvla_mem_ros.cli.bag_progress import bag_progress
from smolvla_mem_ros.share import CHECKPOINT, CONTRACT, share_path

EPILOG = """\
examples:
  make demo RECORD=outputs/demo_bag && evaluate_bag outputs/demo_bag --memory on,off,stale
  evaluate_bag monday.mcap --checkpoint my_checkpoint --contract my_robot.yaml --task "fold the towel"
  evaluate_bag monday --compare old_checkpoint new_checkpoint --contract my_robot.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bag", type=Path, help="a rosbag2 folder, or one .mcap or .db3 file")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", help=f"folder or hub name (default {CHECKPOINT})")
    which.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two of them, on the same bag")
    add(
        "--contract",
        type=Path,
        help=f"topics, joints, units (default {CONTRACT} for the default checkpoint, else "
        "config/contract.yaml); inspect_bag proposes one",
    )
    add(
        "--memory",
        default="on,off",
        help="what is done to the memory, one or more of on, off, reset_every_step, stale, with commas "
        "(default %(default)s)",
    )
    add(
        "--ticks",
        choices=("clock", "recorded"),
        default="clock",
        help="infer on the control clock, or when and on what the recorded policy did (default %(default)s)",
    )
    add(
        "--episodes",
        type=Path,
        help="YAML list of {start, end, task}, in seconds from the bag's beginning (default: the bag's own "
        "events, else an episode ends where nothing comes for --gap)",
    )
    add("--gap", type=float, default=1.0, help="seconds (default %(default)s)")
    add("--task", default="", help="what was to be done, where the bag does not tell")
    add("--seed", type=int, help="of the action noise (default: the recorded policy's, else 0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default %(default)s)")
    add("--output", type=Path, help="folder of results.json, report.md, pictures (default outputs/bags/NAME)")
    add("--salvage", action="store_true", help="use what can be read of a damaged bag")
    args = parser.parse_args(argv)
    args.command = shlex.join(["evaluate_bag", *(sys.argv[1:] if argv is None else argv)])
    # LeRobot and torch take seconds to import, which --help need not wait for.
    from smolvla_mem_ros.bags.replay import MODES
    from smolvla_mem_ros.bags.storage import BagError
    from smolvla_mem_ros.policy.checkpoint import CheckpointError
    from smolvla_mem_ros.runtime.contract import ContractError

    args.modes = list(dict.fromkeys(args.memory.split(",")))
    if unknown := set(args.modes) - set(MODES):
        parser.error(f"--memory: there is no {min(unknown)!r}; there are {', '.join(MODES)}")
    if args.compare and args.compare[0] == args.compare[1]:
        parser.error("--compare: name two different checkpoints")
    if not args.gap > 0:
        parser.error("--gap must be more than 0")
    try:
        return evaluate(args)
    except (BagError, CheckpointError, ContractError, OSError, ValueError) as error:
        print(f"evaluate_bag: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate_bag: stopped; nothing was written", file=sys.stderr)
        return 130


def evaluate(args: argparse.Namespace) -> int:
    from smolvla_mem_ros.bags import report
    from smolvla_mem_ros.bags.bag import Bag
    from smolvla_mem_ros.evaluation.provenance import machine, versions

    output = args.output or Path("outputs/bags") / args.bag.resolve().stem
    checkpoints = args.compare or [args.checkpoint or str(share_path(CHECKPOINT))]
    contract_path = args.contract or share_path(
        CONTRACT if args.checkpoint is None and not args.compare else "config/contract.yaml"
    )
    with Bag(args.bag, args.salvage) as bag:
        if bag.span is None:
            raise ValueError(f"{args.bag} holds no message")
        spans = _spans(args.episodes, bag.span[0]) if args.episodes else None
        runs = {
            name: _replay(bag, checkpoint, contract_path, spans, args)
            for name, checkpoint in zip(_names(checkpoints), checkpoints, strict=True)
        }
        problems, span, count = bag.problems, bag.span, bag.count
    first = next(iter(runs.values()))
    results: dict[str, Any] = {
        "bag": {
            "path": str(args.bag),
            "seconds": round((span[1] - span[0]) / 1e9, 6),
            "messages": count,
            "problems": problems,
        },
        "target": first["target"].kind,
        "checkpoints": {name: run["results"] for name, run in runs.items()},
        "streams": {stream: clock.summary() for stream, clock in first["replay"].clocks.items()},
        "unused": dict(sorted(first["replay"].unused.items())),
        "settings": {
            "contract": str(args.contract or contract_path.name), "ticks": args.ticks, "gap": args.gap,
            "task": args.task,
        },
        "command": args.command,
        "machine": {**machine(), "device": first["device"]},
        "versions": versions(),
        "timing": {"checkpoints": {name: run["timing"] for name, run in runs.items()}},
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, run in runs.items():
        if any(p.inferences for p in run["replay"].played):
            pictures += _draw(run, output, "" if len(runs) == 1 else f"{name}_", args.modes)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (output / "report.md").write_text(report.page(results, pictures))
    print(report.table(results))
    print(
        f"\nwritten: {output / 'report.md'}, results.json" + "".join(f", {picture}" for picture in pictures)
    )
    return 0


def _names(checkpoints: Sequence[str]) -> list[str]:
    """Short ones, in which they differ."""
    short = [Path(checkpoint).name for checkpoint in checkpoints]
    return short if len(set(short)) == len(short) else list(checkpoints)


def _replay(bag, checkpoint: str, contract_path: Path, spans, args: argparse.Namespace) -> dict[str, Any]:
    """One checkpoint over the bag."""
    from smolvla_mem_ros.bags import measures
    from smolvla_mem_ros.bags.replay import Modes, Replay
    from smolvla_mem_ros.bags.streams import find_topics
    from smolvla_mem_ros.policy.checkpoint import load_checkpoint, load_config
    from smolvla_mem_ros.runtime.contract import load_contract
    from smolvla_mem_ros.runtime.engine import Engine

    contract = load_contract(contract_path, load_config(checkpoint))
    topics = find_topics(bag, contract)
    seed = args.seed if args.seed is not None else _recorded_seed(bag, topics)
    loaded = {}
    if set(args.modes) - {"off"}:
        loaded["on"] = load_checkpoint(checkpoint, args.device)
    if "off" in args.modes:
        loaded["off"] = load_checkpoint(checkpoint, args.device, 0)
    engines = {name: Engine(each, contract, seed) for name, each in loaded.items()}
    for engine in engines.values():
        engine.warm_up()
    with bag_progress(bag.span, Path(checkpoint).name) as progress:
        replay = Replay(
            bag,
            contract,
            topics,
            Modes(engines, args.modes, contract),
            spans=spans,
            gap=args.gap,
            task=args.task,
            recorded_ticks=args.ticks == "recorded",
            progress=progress,
        )
        replay.run()
    if not replay.played:
        raise ValueError(f"{bag.path} holds no episode; name some with --episodes FILE")
    target = measures.Target(replay.reference)
    modes, errors = measures.score(replay.played, target, args.modes, contract)
    return {
        "replay": replay,
        "contract": contract,
        "target": target,
        "errors": errors,
        "device": next(iter(loaded.values())).config.device,
        "timing": {mode: measures.timing(replay.played, mode) for mode in args.modes},
        "results": {
            "checkpoint": checkpoint,
            "seed": seed,
            "control_hz": contract.fps,
            "n_action_steps": contract.n_action_steps,
            "modes": modes,
            "episodes": [
                _episode(p, {m: measures.error_summary(e[i], contract) for m, e in errors.items()})
                for i, p in enumerate(replay.played)
            ],
        },
    }


def _episode(played, modes: dict[str, Any]) -> dict[str, Any]:
    return {
        "number": played.number,
        "task": played.task,
        "start_ns": played.start,
        "seconds": round((played.end - played.start) / 1e9, 6),
        "inferences": max((len(i) for i in played.inferences.values()), default=0),
        "resets": len(played.resets),
        "skipped": dict(sorted(played.skips.items())),
        "failures": played.failures,
        "modes": modes,
    }


def _recorded_seed(bag, topics) -> int:
    if topics.events is not None:
        for message in bag.messages([topics.events]):
            return int(bag.decode(message).seed)
    return 0


def _spans(file: Path, begin: int):
    """Episodes that a file names. Raises ValueError when it is not as it should be."""
    from smolvla_mem_ros.bags.replay import Span

    try:
        entries = yaml.safe_load(file.read_text())
        spans = [
            Span(
                begin + round(float(e["start"]) * 1e9),
                begin + round(float(e["end"]) * 1e9),
                str(e.get("task", "")),
            )
            for e in entries
        ]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{file} is no list of episodes ({error!r}); an entry looks like "
            "'- {start: 1.5, end: 20, task: ...}'"
        ) from error
    if not spans:
        raise ValueError(f"{file} names no episode")
    spans.sort(key=lambda span: span.start)
    if any(s.end <= s.start for s in spans) or any(b.start < a.end for a, b in pairwise(spans)):
        raise ValueError(f"{file}: an episode ends before it starts, or two overlap")
    return spans


def _draw(run: dict[str, Any], output: Path, prefix: str, modes: Sequence[str]) -> list[str]:
    from smolvla_mem_ros.bags import report

    played, contract = run["replay"].played, run["contract"]
    names = [f"{prefix}predictions.png", f"{prefix}error.png"]
    report.draw_predictions(played, run["target"], contract, modes[0], output / names[0])
    report.draw_errors(played, run["errors"], contract, output / names[1])
    if any(i.norm.size for p in played for i in p.inferences.get(modes[0], ())):
        names.append(f"{prefix}memory.png")
        report.draw_memory(played, modes[0], output / names[2])
    return names


if __name__ == "__main__":
    sys.exit(main())
