# SPDX-License-Identifier: Apache-2.0
"""The arm's loop at work and in trouble: rate, seams between chunks, faults, stops, malformed messages.

Everything is measured on the emulated arm through LeRobot's driver. What must hold is in TARGETS.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from smolvla_mem_ros.cli import arm_node_bench
from smolvla_mem_ros.evaluation import arm_faults, arm_seams, arm_stops
from smolvla_mem_ros.evaluation.arm_bench import EMULATOR, RATE
from smolvla_mem_ros.evaluation.arm_path import Stream
from smolvla_mem_ros.evaluation.provenance import machine, versions
from smolvla_mem_ros.evaluation.report import aligned
from smolvla_mem_ros.policy.checkpoint import load_config
from smolvla_mem_ros.runtime.contract import load_contract
from smolvla_mem_ros.share import CHECKPOINT, CONTRACT, share_path

PACKAGES = ("numpy", "rclpy", "torch", "lerobot", "pyserial", "feetech-servo-sdk")
# What seams may add to the largest step of the path itself, which chance puts on a seam or off it.
SAME_AS_PATH = 1.02
DISAGREEMENT = 1.0  # degrees, between chunks that do not agree


@dataclass(frozen=True)
class Target:
    """What must hold.

    Args:
        text: of the quantity and its bound.
        value: of a result, as shown.
        holds: whether the result keeps it.
    """

    text: str
    value: Callable[[Mapping[str, Any]], object]
    holds: Callable[[Mapping[str, Any]], bool]


def _at_most(text: str, bound: float, value: Callable[[Mapping[str, Any]], float]) -> Target:
    return Target(f"{text}, at most {bound:g}", value, lambda result: value(result) <= bound)


def _seam_ratio(result: Mapping[str, Any]) -> float:
    return result["seam_velocity_step_ratio"]


TARGETS = (
    Target("period jitter p99, below 10 %", lambda r: r["period_jitter_p99_pct"],
           lambda r: r["period_jitter_p99_pct"] < 10),
    _at_most("missed cycles", 0, lambda r: r["missed_cycles"]),
    _at_most("limit violations", 0, lambda r: r["limit_violations"]),
    Target("velocity step at seams / inside chunks, at most 1 or as the path's own", _seam_ratio,
           lambda r: _seam_ratio(r) <= max(1, SAME_AS_PATH * r["seams"]["agreeing"]["ratio_of_path"])),
    _at_most("faults not named", 0, lambda r: r["faults"]["not_named"]),
    _at_most("faults after which motion resumed late", 0, lambda r: r["faults"]["resumed_late"]),
    _at_most("unhandled exceptions", 0, lambda r: r["faults"]["exceptions"] + r["stops"]["exceptions"]
             + r["fuzz"]["tracebacks"]),
    _at_most("stops later than a period", 0, lambda r: r["stops"]["late"]),
    _at_most("malformed messages not rejected", 0, lambda r: r["fuzz"]["messages"] - r["fuzz"]["rejected"]),
    _at_most("malformed messages accepted", 0, lambda r: r["fuzz"]["accepted"]),
    _at_most("goals that malformed messages moved", 0, lambda r: r["fuzz"]["goals_off_the_path"]),
)  # fmt: skip


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
    table = "\n".join(show(result))
    print(table, file=sys.stderr if args.json else sys.stdout)
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


def show(result: Mapping[str, Any]) -> list[str]:
    """The result in tables: what must hold, the faults by kind, how close the arm keeps to the path."""
    rows = [["", "measured", ""]]
    for target in TARGETS:
        rows.append([target.text, f"{target.value(result):g}", "" if target.holds(result) else "MISSED"])
    lines = [*aligned(rows), ""]

    rows = [["fault", "number", "named", "connection lost", "slowest to move again"]]
    for kind, each in result["faults"]["kinds"].items():
        slowest = "never" if each["slowest_resume_s"] is None else f"{each['slowest_resume_s']:.2f} s"
        counts = (str(each[key]) for key in ("count", "named", "connection_lost"))
        rows.append([kind, *counts, slowest])
    lines += [*aligned(rows), ""]

    rows = [["chunks", "step at seams / inside", "of the path itself", "off the path, rms", "max"]]
    for name, each in result["seams"].items():
        error = each["tracking_error_deg"]
        rms, most = (f"{max(error[kind].values()):.2f} degrees" for kind in ("rms", "max"))
        rows.append([name, f"{each['ratio']:.2f}", f"{each['ratio_of_path']:.2f}", rms, most])
    lines += [*aligned(rows), ""]

    rows = [["emergency stop, ms from the request to", "p50", "p99", "max"]]
    for text, key in (("the last motion", "last_motion_ms"), ("the hold is written", "held_ms")):
        rows.append([text, *(f"{value:.1f}" for value in result["stops"][key].values())])
    return [*lines, *aligned(rows)]
