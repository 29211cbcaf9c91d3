# SPDX-License-Identifier: Apache-2.0
"""Shows what is in a rosbag2, and proposes a contract for a policy that is to run on it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.inspection import inspect, propose
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.cli.bag_progress import bag_progress
from smolvla_mem_ros.evaluation.report import aligned
from smolvla_mem_ros.policy.checkpoint import CheckpointError, load_config

EPILOG = """\
examples:
  inspect_bag outputs/monday
  inspect_bag theirs.mcap --checkpoint my_checkpoint --contract my_robot.yaml
  evaluate_bag theirs.mcap --checkpoint my_checkpoint --contract my_robot.yaml --task "fold the towel"
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bag", type=Path, help="a rosbag2 folder, or one .mcap or .db3 file")
    parser.add_argument("--checkpoint", default="", help="whose names for the cameras to use")
    parser.add_argument("--contract", type=Path, help="write the proposal to this file (default: show it)")
    parser.add_argument(
        "--fps", type=float, help="control rate of the training data (default: as the cameras)"
    )
    parser.add_argument("--salvage", action="store_true", help="use what can be read of a damaged bag")
    args = parser.parse_args(argv)
    if args.fps is not None and not args.fps > 0:
        parser.error("--fps must be more than 0")
    try:
        cameras = list(load_config(args.checkpoint).image_features) if args.checkpoint else None
        if args.contract and args.contract.exists():
            raise OSError(f"{args.contract} is there already; name a new file")
        with Bag(args.bag, args.salvage) as bag:
            begin, end = bag.span or (0, 0)
            with bag_progress((begin, end), args.bag.name) as progress:
                inspection = inspect(bag, progress)
            print(f"{args.bag}: {(end - begin) / 1e9:.1f} s, {bag.count} messages\n")
            print(*aligned(_rows(bag, inspection)), "", sep="\n")
            for problem in [*bag.problems, *(f"{n} x {what}" for what, n in inspection.problems.items())]:
                print(f"not used: {problem}")
            proposal = propose(inspection, cameras, args.fps)
        if args.contract:
            args.contract.write_text(proposal)
    except (BagError, CheckpointError, OSError) as error:
        print(f"inspect_bag: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if args.contract:
        print(f"written: {args.contract}; look at the lines with ?")
    else:
        print(proposal, end="")
    return 0


def _rows(bag: Bag, inspection) -> list[list[str]]:
    rows = [["topic", "type", "messages", "rate", "longest gap", "what"]]
    for topic in sorted(bag.topics.values(), key=lambda t: t.name):
        row = [topic.name, topic.kind, str(topic.count)]
        if seen := inspection.seen.get(topic.name):
            row += [f"{seen.clock.rate:.1f} Hz", f"{seen.clock.longest_gap:.2f} s", seen.form]
        rows.append([*row, *[""] * (6 - len(row))])
    return rows


if __name__ == "__main__":
    sys.exit(main())
