# SPDX-License-Identifier: Apache-2.0
"""What ``benchmark arm_loop`` found: what must hold, and its tables for the screen and for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# What seams may add to the largest step of the path itself, which chance puts on a seam or off it.
SAME_AS_PATH = 1.02


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


def arm_tables(result: Mapping[str, Any]) -> list[list[list[str]]]:
    """What must hold, the faults by kind, how close the arm keeps to the path, stops; header rows first."""
    held = [["must hold", "measured", ""]]
    for target in TARGETS:
        held.append([target.text, f"{target.value(result):g}", "" if target.holds(result) else "MISSED"])

    faults = [["fault", "number", "named", "connection lost", "slowest to move again"]]
    for kind, each in result["faults"]["kinds"].items():
        slowest = "never" if each["slowest_resume_s"] is None else f"{each['slowest_resume_s']:.2f} s"
        counts = (str(each[key]) for key in ("count", "named", "connection_lost"))
        faults.append([kind, *counts, slowest])

    seams = [["chunks", "step at seams / inside", "of the path itself", "off the path, rms", "max"]]
    for name, each in result["seams"].items():
        error = each["tracking_error_deg"]
        rms, most = (f"{max(error[kind].values()):.2f} degrees" for kind in ("rms", "max"))
        seams.append([name, f"{each['ratio']:.2f}", f"{each['ratio_of_path']:.2f}", rms, most])

    stops = [["emergency stop, ms from the request to", "p50", "p99", "max"]]
    for text, key in (("the last motion", "last_motion_ms"), ("the hold is written", "held_ms")):
        stops.append([text, *(f"{value:.1f}" for value in result["stops"][key].values())])
    return [held, faults, seams, stops]
