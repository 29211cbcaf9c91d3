# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds; per-joint affine maps between ROS radians and the units of a driver or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NANOSECONDS = 1_000_000_000  # in a second


@dataclass(frozen=True)
class JointUnits:
    """``other = scale * radians + offset``, joint by joint.

    Args:
        scale: (D,) units per radian; negative where the joint turns the other way.
        offset: (D,) units at zero radians.

    Raises:
        ValueError: the lengths differ, a value is not finite or a scale is zero.
    """

    scale: np.ndarray
    offset: np.ndarray

    def __post_init__(self) -> None:
        scale, offset = np.asarray(self.scale, float), np.asarray(self.offset, float)
        if scale.shape != offset.shape or scale.ndim != 1:
            raise ValueError(f"scale {scale.shape} and offset {offset.shape} must be vectors of one length")
        if not (np.isfinite(scale).all() and np.isfinite(offset).all() and scale.all()):
            raise ValueError("every scale must be finite and non-zero, and every offset finite")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "offset", offset)

    @classmethod
    def stack(cls, joints: Sequence[JointUnits]) -> JointUnits:
        """One map for all ``joints``, in their order."""
        return cls(np.concatenate([j.scale for j in joints]), np.concatenate([j.offset for j in joints]))

    @classmethod
    def radians(cls) -> JointUnits:
        return cls(np.ones(1), np.zeros(1))

    @classmethod
    def degrees(cls) -> JointUnits:
        return cls(np.full(1, 180 / np.pi), np.zeros(1))

    @classmethod
    def percent(cls, zero: float, full: float) -> JointUnits:
        """0 at ``zero`` radians and 100 at ``full`` radians (LeRobot's gripper)."""
        if zero == full:
            raise ValueError(f"a joint in percent needs two different ends, not {zero} rad twice")
        scale = 100 / (full - zero)
        return cls(np.full(1, scale), np.full(1, -zero * scale))

    def from_radians(self, radians: np.ndarray) -> np.ndarray:
        """(..., D) radians to (..., D) units."""
        return np.asarray(radians) * self.scale + self.offset

    def to_radians(self, values: np.ndarray) -> np.ndarray:
        """(..., D) units to (..., D) radians."""
        return (np.asarray(values) - self.offset) / self.scale

    def rate_to_radians(self, rates: np.ndarray) -> np.ndarray:
        """(..., D) units per second to (..., D) radians per second."""
        return np.asarray(rates) / self.scale
