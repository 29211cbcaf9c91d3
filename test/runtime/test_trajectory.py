# SPDX-License-Identifier: Apache-2.0
"""Pins units, times and velocities of commanded trajectories, and that a hold comes to rest."""

import numpy as np
import pytest

from smolvla_mem_ros.runtime.trajectory import STOP_TIME, Chunk, hold, to_segment

from .conftest import SECOND


def ramp(contract, steps=20, per_step=3.0):
    actions = np.zeros((steps, 6))
    actions[:, 0] = per_step * np.arange(steps)
    return to_segment(Chunk(SECOND, actions, 1 / 30, 0), contract)


def test_actions_become_radians_at_control_periods_after_the_stamp(contract):
    segment = ramp(contract)
    np.testing.assert_allclose(segment.times, np.arange(20) / 30)
    np.testing.assert_allclose(segment.positions[:, 0], np.deg2rad(3.0 * np.arange(20)))
    assert segment.positions[0, 5] == pytest.approx(-0.2), "0 percent is the closed gripper"
    assert segment.end == SECOND + round(19 / 30 * SECOND)


def test_velocities_are_those_of_the_motion_and_end_at_rest(contract):
    velocities = ramp(contract).velocities
    np.testing.assert_allclose(velocities[:-1, 0], np.deg2rad(90))
    np.testing.assert_array_equal(velocities[-1], np.zeros(6))


def test_a_chunk_of_one_action_is_a_single_point_at_rest(contract):
    segment = ramp(contract, steps=1)
    np.testing.assert_array_equal(segment.velocities, np.zeros((1, 6)))


def test_a_hold_stops_in_even_deceleration_from_where_the_motion_is(contract):
    segment = ramp(contract)
    stop = hold(segment, SECOND + SECOND // 3)
    velocity = np.deg2rad(90)
    assert stop.stamp == SECOND + SECOND // 3 and stop.times[-1] == STOP_TIME
    assert stop.positions[0, 0] == pytest.approx(np.deg2rad(30) + velocity * STOP_TIME / 2, abs=1e-6)
    np.testing.assert_array_equal(stop.velocities, np.zeros((1, 6)))


def test_there_is_nothing_to_hold_after_the_end(contract):
    segment = ramp(contract)
    assert hold(segment, segment.end) is None


def test_a_motion_that_has_not_begun_is_held_at_its_start(contract):
    stop = hold(ramp(contract), SECOND // 2)
    assert stop.positions[0, 0] == pytest.approx(0)


def test_the_first_velocity_is_as_exact_as_the_others_on_a_curve(contract):
    # A chunk that is taken over at its first point must not differ from the one before.
    times = np.arange(20) / 30
    actions = np.zeros((20, 6))
    actions[:, 0] = 50 * times**2
    velocities = to_segment(Chunk(SECOND, actions, 1 / 30, 0), contract).velocities
    np.testing.assert_allclose(velocities[:-1, 0], np.deg2rad(100 * times[:-1]), atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_short_chunk_has_velocities_too(contract, steps):
    velocities = ramp(contract, steps=steps).velocities
    np.testing.assert_allclose(velocities[: steps - 1, 0], np.full(steps - 1, np.deg2rad(90)))
    np.testing.assert_array_equal(velocities[-1], np.zeros(6))
