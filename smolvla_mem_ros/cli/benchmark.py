# SPDX-License-Identifier: Apache-2.0
"""Measures what this project costs and can do: memory beside stock LeRobot, bags, recording, the arm."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smolvla_mem_ros.cli.arguments import positive
from smolvla_mem_ros.cli.bag_progress import bag_progress
from smolvla_mem_ros.evaluation.provenance import machine, versions

if TYPE_CHECKING:
    from smolvla_mem_ros.bags.synthetic import Form

EXAMPLES = """\
examples:
  benchmark memory_cost
  benchmark memory_cost --size full --repeats 5 --output benchmarks/results/memory_cost_full.json
  benchmark bags --output benchmarks/results/bags.json
  benchmark recording --output benchmarks/results/recording.json
  benchmark arm_loop --seconds 600 --json --output benchmarks/results/arm_loop.json
  benchmark arm_loop --seconds 5 --seams 20 --faults 26 --stops 20 --messages 200
"""

# That a speed depends on.
BAG_PACKAGES = ("numpy", "opencv-python-headless", "rosbags", "mcap", "zstandard", "apsw", "torch")


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
    bags = commands.add_parser("bags", help="bags of two cameras at 30 Hz and an arm: how fast they are "
                               "read, decoded and evaluated without a model, and peak memory")  # fmt: skip
    bags.add_argument("--seconds", type=positive, default=30, help="of the bags that are read for their "
                      "speed (default %(default)s)")  # fmt: skip
    bags.add_argument("--long", type=positive, default=600, help="seconds of a bag whose peak memory is set "
                      "beside that of a tenth of it (default %(default)s)")  # fmt: skip
    bags.add_argument("--repeats", type=positive, default=5, help="turns for the speed (default %(default)s)")
    bags.add_argument("--size", type=_size, default=(640, 480), help="of the pictures (default 640x480)")
    bags.add_argument("--work", type=Path, help="folder in which the bags are made, and deleted (default: "
                      "that of temporary files)")  # fmt: skip
    bags.add_argument("--output", type=Path, help="JSON file (default: none)")
    bags.set_defaults(measure=read_bags)
    recording = commands.add_parser("recording", help="whether a recorder loses nothing of two cameras of "
                                    "640x480 at 30 Hz and an arm while the policy runs")  # fmt: skip
    recording.add_argument("--seconds", type=positive, default=300, help="default %(default)s")
    recording.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap",
                           help="of the bag (default %(default)s)")  # fmt: skip
    recording.add_argument("--work", type=Path, help="folder in which the bag is made, and deleted (default: "
                           "that of temporary files)")  # fmt: skip
    recording.add_argument("--output", type=Path, help="JSON file (default: none)")
    recording.set_defaults(measure=record)
    arm = commands.add_parser("arm_loop", help="whether the arm's loop keeps its rate beside a busy policy, "
                              "goes smoothly from chunk to chunk, survives faults, stops at once and is not "
                              "misled; most of an hour with the defaults")  # fmt: skip
    arm.add_argument("--seconds", type=positive, default=600, help="at which the rate is measured (default "
                     "%(default)s)")  # fmt: skip
    arm.add_argument("--seams", type=positive, default=300, help="between chunks (default %(default)s)")
    arm.add_argument("--faults", type=positive, default=500, help="of bus and servos (default %(default)s)")
    arm.add_argument("--stops", type=positive, default=1000, help="emergency stops (default %(default)s)")
    arm.add_argument("--messages", type=positive, default=10_000, help="malformed ones (default %(default)s)")
    arm.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default %(default)s)")
    arm.add_argument("--json", action="store_true", help="print the result as a line of JSON, and tables on "
                     "standard error")  # fmt: skip
    arm.add_argument("--output", type=Path, help="JSON file (default: none)")
    arm.set_defaults(measure=arm_loop)
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


def record(args: argparse.Namespace) -> int:
    # It speaks ROS, which the others do without.
    from smolvla_mem_ros.cli import benchmark_recording

    return benchmark_recording.measure(args)


def arm_loop(args: argparse.Namespace) -> int:
    # It speaks ROS too.
    from smolvla_mem_ros.cli import benchmark_arm

    return benchmark_arm.measure(args)


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


def read_bags(args: argparse.Namespace) -> int:
    from smolvla_mem_ros.bags.synthetic import FORMS, JPEG, RAW, Recording
    from smolvla_mem_ros.evaluation import report

    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="smolvla_mem_ros_", dir=args.work) as folder:
        largest = ((RAW, args.seconds), (JPEG, args.long))
        needed = 1.1 * max(Recording(form, args.size).bytes_per_second * s for form, s in largest)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(
                f"{Path(folder).parent} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed: "
                "name another folder with --work, or make shorter bags with --seconds and --long"
            )
        result = {
            "size": args.size,
            "speed": [_speed(form, args, Path(folder)) for form in FORMS],
            "memory": [_memory(JPEG, s, args, Path(folder)) for s in (args.long / 10, args.long)],
            "turns": args.repeats,
            "command": args.command,
            "seed": 0,
            "machine": machine(),
            "versions": versions(BAG_PACKAGES),
        }
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    for rows in (report.speed_rows(result), report.peak_rows(result)):
        print(*report.aligned(rows), "", sep="\n")
    if args.output:
        print(f"written: {args.output}")
    return 0


def _speed(form: Form, args: argparse.Namespace, folder: Path) -> dict:
    """How often faster than real time a bag is: median and quartiles. The ways take turns."""
    from tqdm import tqdm

    from smolvla_mem_ros.bags import throughput
    from smolvla_mem_ros.evaluation.measure import quartiles

    with _bag(form, args.seconds, args.size, folder) as (bag, about):
        times: dict[str, list[float]] = {way: [] for way in throughput.WAYS}
        for _ in tqdm(range(args.repeats), f"{form.name}, {args.seconds} s", unit="turn"):
            for way, found in times.items():
                found.append(throughput.speed(bag, way))
        return {**about, "ways": {way: quartiles(found) for way, found in times.items()}}


def _memory(form: Form, seconds: float, args: argparse.Namespace, folder: Path) -> dict:
    from smolvla_mem_ros.bags import throughput

    with _bag(form, seconds, args.size, folder) as (bag, about):
        ways = {}
        for way in throughput.WAYS:
            with bag_progress(_span(seconds), f"{form.name}, {seconds:g} s: {way}") as progress:
                ways[way] = throughput.memory(bag, way, progress)
        return {**about, "ways": ways}


@contextmanager
def _bag(form: Form, seconds: float, size: tuple[int, int], folder: Path) -> Iterator[tuple[Path, dict]]:
    """A bag that is deleted at the end, and what it is."""
    from smolvla_mem_ros.bags.synthetic import Recording

    bag = folder / "bag"
    with bag_progress(_span(seconds), f"{form.name}, {seconds:g} s: writing") as progress:
        Recording(form, size).write(bag, seconds, progress)
    size_on_disk = sum(file.stat().st_size for file in bag.iterdir())
    yield bag, {"form": form.name, "seconds": seconds, "bytes": size_on_disk}
    shutil.rmtree(bag)


def _span(seconds: float) -> tuple[int, int]:
    from smolvla_mem_ros.bags.synthetic import START

    return START, START + round(seconds * 1e9)


def _size(text: str) -> tuple[int, int]:
    """Raises argparse.ArgumentTypeError unless ``text`` is a width and a height."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 640x480")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(main())
