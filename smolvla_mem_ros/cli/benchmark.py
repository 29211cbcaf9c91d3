# SPDX-License-Identifier: Apache-2.0
"""Measures what this project costs, side by side with stock LeRobot in one run."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from smolvla_mem_ros.cli.arguments import positive
from smolvla_mem_ros.evaluation.provenance import machine, versions

EXAMPLES = """\
examples:
  benchmark memory_cost
  benchmark memory_cost --size full --repeats 5 --output benchmarks/results/memory_cost_full.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    cost = commands.add_parser("memory_cost", help="SmolVLA with memory against stock SmolVLA: time of an "
                               "inference and of a training step, peak memory, weights")  # fmt: skip
    cost.add_argument("--size", choices=("tiny", "full"), default="tiny", help="the tiny model of the memory "
                      "tasks, or SmolVLA's 450 M weights, drawn at random (default %(default)s)")  # fmt: skip
    cost.add_argument("--repeats", type=positive, help="turns of each (default 100 for tiny, 5 for full)")
    cost.add_argument(
        "--segments", type=positive, help="unrolled in a training sample (default: tiny 6, full 3)"
    )
    cost.add_argument("--tokens", type=positive, default=4, help="memory tokens (default %(default)s)")
    cost.add_argument("--update", help="mem_update (default: that of the configuration)")
    cost.add_argument("--threads", type=positive, help="on a CPU (default: tiny 1, full all cores)")
    cost.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default %(default)s)")
    cost.add_argument("--output", type=Path, help="JSON file (default: none)")
    cost.set_defaults(measure=memory_cost)
    args = parser.parse_args(argv)
    args.command = shlex.join(["benchmark", *(sys.argv[1:] if argv is None else argv)])
    try:
        return args.measure(args)
    except KeyboardInterrupt:
        print("benchmark: stopped, nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"benchmark: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def memory_cost(args: argparse.Namespace) -> int:
    # They take seconds to import.
    import torch
    from tqdm import tqdm

    from smolvla_mem_ros.evaluation import cost, report
    from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig
    from smolvla_mem_ros.policy.tiny import make_backbone
    from smolvla_mem_ros.training.recipe import RECIPE

    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    is_tiny = args.size == "tiny"
    set_here = ("policy.load_vlm_weights", "policy.push_to_hub", "policy.device")
    tiny = {k.removeprefix("policy."): v for k, v in RECIPE.tiny.items() if k not in set_here}
    size = cost.Size(False, (48, 64), RECIPE.one_task.batch_size, tiny) if is_tiny else cost.FULL
    segments = args.segments or (RECIPE.memory["mem_segments"] if is_tiny else SmolVLAMemConfig.mem_segments)
    memory = {"num_mem_tokens": args.tokens, "mem_segments": segments}
    memory["mem_update"] = args.update or SmolVLAMemConfig.mem_update
    torch.set_num_threads(args.threads or (1 if is_tiny else torch.get_num_threads()))
    repeats = args.repeats or (100 if is_tiny else 5)

    with tempfile.TemporaryDirectory() as folder:
        backbone = str(make_backbone(Path(folder) / "backbone", full_size=size.full_backbone))
        planned = cost.comparisons(size, backbone, args.device, memory)
        measured = []
        for comparison in planned:
            with tqdm(total=repeats, desc=comparison.name, unit="turn") as bar:
                measured.append(cost.compare(comparison, args.device, repeats, bar.update))
    device = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device
    result = {
        "size": args.size,
        "batch_size": size.batch,
        "memory": memory,
        "comparisons": measured,
        "command": args.command,
        "seed": 0,
        "machine": {**machine(), "device": device, "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(*report.aligned(report.cost_rows(result)), sep="\n")
    if args.output:
        print(f"\nwritten: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
