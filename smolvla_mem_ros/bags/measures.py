# SPDX-License-Identifier: Apache-2.0
"""Figures about what a policy would have done in a bag, in degrees and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from smolvla_mem_ros.bags.replay import Inference, Played, Reference
from smolvla_mem_ros.runtime.contract import Contract
from smolvla_mem_ros.units import NANOSECONDS

GOAL_HOLDS = NANOSECONDS // 5  # ns; who streams goals does so at 5 Hz or more


class Target:
    """Where the joints were to be, as a function of time: what was commanded, or else where they went.

    Attributes:
        kind: "commands" or "joint states".
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self.kind = "commands" if reference.begins else "joint states"
        if reference.begins:
            begins = np.array(reference.begins)
            self._order = np.argsort(begins, kind="stable")
            self._begins = begins[self._order]
        else:
            times, positions = reference.states.all
            order = np.argsort(times, kind="stable")
            self._times, self._positions = times[order], positions[order]

    def at(self, times: np.ndarray) -> np.ndarray:
        """(N, D) radians at ``times`` (N,) ns, N > 0; NaN where nothing is known."""
        if self.kind == "commands":
            return self._commanded(times)
        near = slice(
            max(0, np.searchsorted(self._times, times.min(), side="right") - 1),
            np.searchsorted(self._times, times.max()) + 1,
        )
        return between(times, self._times[near], self._positions[near])

    def _commanded(self, times: np.ndarray) -> np.ndarray:
        found = np.full((len(times), self._reference.states.width), np.nan)
        latest = np.searchsorted(self._begins, times, side="right") - 1
        for number in np.unique(latest[latest >= 0]):
            rows = latest == number
            points, positions = self._reference.command(self._order[number])
            # Beyond its end a trajectory says nothing, and a single goal holds until the next one;
            # before its first point the arm is on its way there.
            end = points[-1] + (GOAL_HOLDS if len(points) == 1 else 0)
            within = rows & (times <= end)
            found[within] = between(np.clip(times[within], points[0], points[-1]), points, positions)
        return found


def between(times: np.ndarray, known: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Linear interpolation; NaN outside."""
    if not len(known):
        return np.full((len(times), positions.shape[1]), np.nan)
    base = known[0]
    x, xs = (times - base).astype(float), (known - base).astype(float)
    columns = [np.interp(x, xs, positions[:, j], np.nan, np.nan) for j in range(positions.shape[1])]
    return np.stack(columns, axis=1)


def score(
    played: Sequence[Played], target: Target, modes: Sequence[str], contract: Contract
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Figures of each mode, and its errors: mode -> (N, T, D) degrees of each episode."""
    scores, each = {}, {}
    for mode in modes:
        episodes = [p.inferences.get(mode, []) for p in played]
        each[mode] = [
            errors(episode, target, contract, p.end) for episode, p in zip(episodes, played, strict=True)
        ]
        scores[mode] = {
            "error": error_summary(np.concatenate(each[mode]), contract),
            "smoothness": smoothness(episodes, contract),
            "memory": memory_summary([i for episode in episodes for i in episode]),
        }
    return scores, each


def errors(
    inferences: Sequence[Inference], target: Target, contract: Contract, end: int | None = None
) -> np.ndarray:
    """(N, T, D) degrees, absolute: each chunk against the target at the times of its actions.

    NaN after ``end`` (ns) of the episode: what the robot did then was for something else.
    """
    found = np.full((len(inferences), contract.chunk_size, len(contract.joints)), np.nan)
    steps = np.arange(contract.chunk_size) * contract.control_period
    for error, inference in zip(found, inferences, strict=True):
        times = inference.stamp + steps
        within = slice(len(times) if end is None else np.searchsorted(times, end, side="right"))
        if times[within].size:
            error[within] = np.abs(inference.positions[within] - target.at(times[within]))
    return np.degrees(found)


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
