# SPDX-License-Identifier: Apache-2.0
"""The arm's loop at work and in trouble: rate, seams between chunks, faults, stops, malformed messages.

Everything is measured on the emulated arm through LeRobot's driver. What must hold is in arm_report.TARGETS.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from smolvla_mem_ros.cli import arm_node_bench
from smolvla_mem_ros.evaluation import arm_faults, arm_seams, arm_stops
from smolvla_mem_ros.evaluation.arm_bench import EMULATOR, RATE
from smolvla_mem_ros.evaluation.arm_path import Stream
from smolvla_mem_ros.evaluation.arm_report import TARGETS, arm_tables
from smolvla_mem_ros.evaluation.provenance import machine, versions
from smolvla_mem_ros.evaluation.report import aligned
from smolvla_mem_ros.policy.checkpoint import load_config
from smolvla_mem_ros.runtime.contract import load_contract
from smolvla_mem_ros.share import CHECKPOINT, CONTRACT, share_path

PACKAGES = ("numpy", "rclpy", "torch", "lerobot", "pyserial", "feetech-servo-sdk")
DISAGREEMENT = 1.0  # degrees, between chunks that do not agree


def measure(args: argparse.Namespace) -> int:
    """0, or 1 when a target is missed. Raises RuntimeError when something does not start or ends early."""
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    parts = run(args)
    agreeing, faults = parts["seams"]["agreeing"], parts["faults"]
    seam_violations = sum(each["limit_violations"] for each in parts["seams"].values())
    result = {
        "period_jitter_p99_pct": parts["loop"]["period_jitter_pct"]["p99"],
        "missed_cycles": parts["loop"]["missed_cycles"],
        "limit_violations": sum(faults["limit_violations"].values()) + seam_violations,
        "seam_velocity_step_ratio": agreeing["ratio"],
        "tracking_error_deg": agreeing["tracking_error_deg"],
        **parts,
    }
    missed = [target.text for target in TARGETS if not target.holds(result)]
    result |= {
        "missed_targets": missed,
        "rate": RATE,
        "emulator": list(EMULATOR),
        "command": args.command,
        "seed": args.seed,
        "machine": machine(),
        "versions": versions(PACKAGES),
    }
    tables = "\n\n".join("\n".join(aligned(rows)) for rows in arm_tables(result))
    print(tables, file=sys.stderr if args.json else sys.stdout)
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {args.output}", file=sys.stderr)
    if args.json:
        print(json.dumps(result))
    return int(bool(missed))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All measurements, one after the other."""
    contract = load_contract(share_path(CONTRACT), load_config(share_path(CHECKPOINT)))
    parts: dict[str, Any] = {}
    with tqdm(total=args.seconds, desc="loop", unit="s", bar_format=BAR) as bar:
        parts["loop"] = arm_node_bench.loop(args.seconds, contract, args.seed, bar.update)
    parts["seams"] = {}
    for name, disagreement in (("agreeing", 0.0), ("disagreeing", np.radians(DISAGREEMENT))):
        stream = Stream(disagreement=float(disagreement))
        seconds = args.seams * stream.every / stream.hertz
        with tqdm(total=seconds, desc=f"seams, {name} chunks", unit="s", bar_format=BAR) as bar:
            parts["seams"][name] = arm_seams.measure(seconds, stream, contract, args.seed, bar.update)
    with tqdm(total=args.faults, desc="faults", unit="fault") as bar:
        parts["faults"] = arm_faults.measure(args.faults, contract, args.seed, bar.update)
    with tqdm(total=args.stops, desc="stops", unit="stop") as bar:
        parts["stops"] = arm_stops.measure(args.stops, contract, args.seed, bar.update)
    with tqdm(total=args.messages, desc="malformed messages", unit="message") as bar:
        parts["fuzz"] = arm_node_bench.fuzz(args.messages, args.seed, bar.update)
    return parts


BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} s"
