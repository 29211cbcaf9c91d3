# SPDX-License-Identifier: Apache-2.0
"""Radians become a checkpoint's or a driver's units and come back, joint by joint."""

import numpy as np
import pytest

from smolvla_mem_ros.units import JointUnits


def mixed():
    return JointUnits.stack([JointUnits.radians(), JointUnits.degrees(), JointUnits.percent(-0.2, 1.8)])


def test_known_values_in_each_unit():
    np.testing.assert_allclose(mixed().from_radians([1.0, np.pi / 2, -0.2]), [1.0, 90.0, 0.0])
    np.testing.assert_allclose(mixed().from_radians([1.0, -np.pi, 1.8]), [1.0, -180.0, 100.0])


def test_what_goes_there_comes_back_for_whole_chunks():
    chunk = np.random.default_rng(0).uniform(-2, 2, (5, 3))
    np.testing.assert_allclose(mixed().to_radians(mixed().from_radians(chunk)), chunk)


def test_rates_are_scaled_but_not_shifted():
    np.testing.assert_allclose(mixed().rate_to_radians([1.0, 180.0, 50.0]), [1.0, np.pi, 1.0])


def test_a_joint_that_turns_the_other_way_has_a_negative_scale():
    turned = JointUnits([-2.0], [1.0])
    assert turned.from_radians([3.0]) == [-5.0]
    assert turned.to_radians([-5.0]) == [3.0]
    assert turned.rate_to_radians([-4.0]) == [2.0]


NOT_REVERSIBLE = [([0.0], [0.0]), ([np.nan], [0.0]), ([1.0], [np.inf]), ([1.0], [0.0, 1.0])]


@pytest.mark.parametrize("scale, offset", NOT_REVERSIBLE)
def test_a_map_that_cannot_be_reversed_is_refused(scale, offset):
    with pytest.raises(ValueError):
        JointUnits(scale, offset)


def test_percent_between_two_equal_ends_is_refused():
    with pytest.raises(ValueError, match="two different ends"):
        JointUnits.percent(0.5, 0.5)
