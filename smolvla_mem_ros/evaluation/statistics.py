# SPDX-License-Identifier: Apache-2.0
"""Intervals for success rates."""

from __future__ import annotations

import math
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson, 1927), by default with 95 % confidence.

    Raises:
        ValueError: not 0 <= successes <= n with n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes in {n} episodes make no rate")
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def difference(a: tuple[int, int], b: tuple[int, int], z: float = Z95) -> tuple[float, float, float]:
    """Rate of ``b`` minus rate of ``a``, each (successes, n), and its interval's ends.

    Newcombe's score interval for independent proportions (Newcombe, 1998, method 10). For models that
    played the same episodes it is on the wide side.
    """
    (low_a, high_a), (low_b, high_b) = wilson(*a, z), wilson(*b, z)
    p_a, p_b = a[0] / a[1], b[0] / b[1]
    d = p_b - p_a
    return d, d - math.hypot(p_b - low_b, high_a - p_a), d + math.hypot(high_b - p_b, p_a - low_a)
