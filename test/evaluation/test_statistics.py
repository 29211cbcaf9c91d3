# SPDX-License-Identifier: Apache-2.0
"""The intervals are those of the literature, and hold what they promise."""

import math

import numpy as np
import pytest

from smolvla_mem_ros.evaluation.statistics import difference, wilson


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [  # Newcombe, 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilsons_interval_is_that_of_newcombes_table(successes, n, interval):
    assert wilson(successes, n) == pytest.approx(interval, abs=6e-5)


@pytest.mark.parametrize(
    ("a", "b", "interval"),
    [  # Newcombe, 1998, "Interval estimation for the difference between independent proportions", table II,
        # method 10. There the first rate minus the second.
        ((48, 80), (56, 70), (0.0524, 0.3339)),
        ((3, 10), (9, 10), (0.1705, 0.8090)),
        ((2, 7), (6, 7), (0.0582, 0.8062)),
        ((0, 29), (5, 56), (-0.0381, 0.1926)),
        ((0, 20), (0, 10), (-0.1611, 0.2775)),
        ((0, 10), (10, 10), (0.6075, 1.0000)),
    ],
)
def test_the_interval_of_a_difference_is_that_of_newcombes_table(a, b, interval):
    d, low, high = difference(a, b)
    assert d == pytest.approx(b[0] / b[1] - a[0] / a[1])
    assert (low, high) == pytest.approx(interval, abs=6e-5)


def test_all_and_none_have_intervals_too():
    assert wilson(0, 100)[0] == 0.0
    assert wilson(100, 100)[1] == 1.0
    assert wilson(0, 100)[1] == pytest.approx(1 - wilson(100, 100)[0])


@pytest.mark.parametrize("p", [0.05, 0.5, 0.97])
@pytest.mark.parametrize("n", [20, 100])
def test_about_95_of_100_intervals_hold_the_true_rate(p, n):
    k = np.arange(n + 1)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    chance = np.exp(logs + k * math.log(p) + (n - k) * math.log1p(-p))
    holds = np.array([low <= p <= high for low, high in (wilson(int(i), n) for i in k)])
    assert 0.91 < chance[holds].sum() < 0.99


@pytest.mark.parametrize("counts", [(1, 0), (0, 0), (5, 4), (-1, 4)])
def test_counts_that_make_no_rate_are_refused(counts):
    with pytest.raises(ValueError, match="make no rate"):
        wilson(*counts)
