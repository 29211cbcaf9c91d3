# SPDX-License-Identifier: Apache-2.0
"""Figures about what a policy would have done in a bag, in degrees and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from smolvla_mem_ros.bags.replay import Inference, Played, Reference
from smolvla_mem_ros.runtime.contract import NANOSECONDS, Contract


class Target:
    """Where the joints were to be, as a function of time: what was commanded, or else where they went.

    Attributes:
        kind: "commands" or "joint states".
    """

    def __init__(self, reference: Reference) -> None:
        self._commands = sorted(reference.commands, key=lambda command: command[0])
        self.kind = "commands" if self._commands else "joint states"
        order = np.argsort(reference.stamps, kind="stable")
        self._times = np.array(reference.stamps, dtype=np.int64)[order]
        self._positions = np.array(reference.positions)[order] if len(order) else np.zeros((0, 0))
        self._begins = np.array([begin for begin, _, _ in self._commands], dtype=np.int64)

    def at(self, times: np.ndarray) -> np.ndarray:
        """(N, D) radians at ``times`` (N,) ns; NaN where nothing is known."""
        return self._commanded(times) if self._commands else between(times, self._times, self._positions)

    def _commanded(self, times: np.ndarray) -> np.ndarray:
        joints = self._commands[0][2].shape[1]
        found = np.full((len(times), joints), np.nan)
        latest = np.searchsorted(self._begins, times, side="right") - 1
        for number in np.unique(latest[latest >= 0]):
            rows = latest == number
            _, points, positions = self._commands[number]
            # Beyond its end a trajectory says nothing; before its first point the arm is on its way there.
            within = rows & (times <= points[-1])
            found[within] = between(np.maximum(times[within], points[0]), points, positions)
        return found


def between(times: np.ndarray, known: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Linear interpolation; NaN outside."""
    if not len(known):
        return np.full((len(times), positions.shape[1] if positions.ndim == 2 else 0), np.nan)
    base = known[0]
    x, xs = (times - base).astype(float), (known - base).astype(float)
    columns = [np.interp(x, xs, positions[:, j], np.nan, np.nan) for j in range(positions.shape[1])]
    return np.stack(columns, axis=1)


def errors(inferences: Sequence[Inference], target: Target, contract: Contract) -> np.ndarray:
    """(N, T, D) degrees, absolute: each chunk against the target at the times of its actions."""
    steps = np.arange(contract.chunk_size) * contract.control_period
    found = [np.abs(i.positions - target.at(i.stamp + steps)) for i in inferences]
    return np.degrees(np.array(found)) if found else np.zeros((0, len(steps), len(contract.joints)))


def error_summary(error: np.ndarray, contract: Contract) -> dict[str, Any]:
    """Means of (N, T, D) degrees; None where nothing could be compared."""
    executed = error[:, : contract.n_action_steps]
    return {
        "mean_deg": _mean(error),
        "executed_mean_deg": _mean(executed),
        "p95_deg": None if np.isnan(error).all() else _round(np.nanpercentile(error, 95)),
        "per_joint_deg": {
            joint: _mean(error[:, :, j]) for j, joint in enumerate(contract.joints)
        },
        "per_horizon_step_deg": [_mean(error[:, t]) for t in range(error.shape[1])],
        "compared": int(np.isfinite(error).all(axis=2).sum()),
    }  # fmt: skip


def smoothness(played: Sequence[Sequence[Inference]], contract: Contract) -> dict[str, Any]:
    """How chunks join: jumps at seams against the steps inside chunks, and the jerk of what is executed.

    Args:
        played: the inferences of each episode.

    A seam is where the next chunk takes over while the one before still lasts. Its jump in position is that
    between the two chunks at that moment; its jump in velocity likewise. Inside a chunk the counterparts are
    the motion in a period, and the change of velocity from one to the next.
    """
    dt = contract.control_period / NANOSECONDS
    jumps, kinks, steps, bends, jerks = [], [], [], [], []
    for inferences in played:
        for inference in inferences:
            moved = np.diff(np.degrees(inference.positions), axis=0)
            steps.append(np.abs(moved))
            bends.append(np.abs(np.diff(moved, axis=0)) / dt)
        for before, after in pairwise(inferences):
            at = (after.stamp - before.stamp) / contract.control_period
            if not 0 < at < len(before.positions) - 2:
                continue
            old = np.degrees(before.positions)
            grid = np.arange(len(old))
            here, there = (
                np.array([np.interp(x, grid, old[:, j]) for j in range(old.shape[1])]) for x in (at, at + 1)
            )
            new = np.degrees(after.positions)
            jumps.append(np.abs(new[0] - here))
            kinks.append(np.abs((new[1] - new[0]) - (there - here)) / dt)
        if path := [i.positions[: contract.n_action_steps] for i in inferences]:
            jerks.append(np.diff(np.degrees(np.concatenate(path)), 3, axis=0) / dt**3)
    inside = {"position_deg": _percentile(steps, 99), "velocity_deg_s": _percentile(bends, 99)}
    seam = {
        name: {
            "median": _percentile(values, 50),
            "p99": _percentile(values, 99),
            "max": _percentile(values, 100),
        }
        for name, values in (("position_deg", jumps), ("velocity_deg_s", kinks))
    }
    return {
        "seams": len(jumps),
        "seam_jump": seam,
        "inside_p99": inside,
        "seam_p99_to_inside_p99": {name: _ratio(seam[name]["p99"], inside[name]) for name in inside},
        "jerk_rms_deg_s3": _round(np.sqrt(np.mean(np.concatenate(jerks) ** 2))) if _any(jerks) else None,
    }


def memory_summary(inferences: Sequence[Inference]) -> dict[str, Any]:
    """How large the memory was and how fast it changed."""
    norms = np.array([i.norm for i in inferences])
    drift = np.array([i.cosine_distance for i in inferences if i.step])
    return {
        "tokens": int(norms.shape[1]) if norms.size else 0,
        "mean_norm": _mean(norms) if norms.size else None,
        "mean_cosine_distance": _mean(drift) if drift.size else None,
    }


def timing(played: Sequence[Played], mode: str) -> dict[str, Any]:
    """Of inferences, in milliseconds."""
    ms = np.array([1000 * i.seconds for p in played for i in p.inferences.get(mode, ())])
    if not len(ms):
        return {"inferences": 0}
    return {
        "inferences": len(ms),
        **{f"p{p}_ms": round(float(np.percentile(ms, p)), 3) for p in (50, 95, 99)},
    }


def _any(parts: Sequence[np.ndarray]) -> bool:
    return any(part.size for part in parts)


def _percentile(parts: Sequence[np.ndarray], percent: float) -> float | None:
    if not _any(parts):
        return None
    return _round(np.percentile(np.concatenate([part.ravel() for part in parts]), percent))


def _ratio(one: float | None, other: float | None) -> float | None:
    return _round(one / other) if one is not None and other else None


def _mean(values: np.ndarray) -> float | None:
    return _round(np.nanmean(values)) if np.isfinite(values).any() else None


def _round(value: float) -> float:
    return round(float(value), 6)
