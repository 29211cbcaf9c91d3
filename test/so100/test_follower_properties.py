# SPDX-License-Identifier: Apache-2.0
"""Whatever comes, the motion keeps its limits, and what is refused leaves no trace."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig
from smolvla_mem_ros.so100.follower import (
    LONGEST_STEP,
    Trajectory,
    TrajectoryFollower,
    TrajectoryPoint,
    TrajectoryRejected,
)
from smolvla_mem_ros.so100.limiter import limited

# The same in every run.
properties = settings(max_examples=60, deadline=None, derandomize=True, database=None)

TIGHT = ArmConfig(
    lower=[-1, -0.5, 0, -2, -3, -0.1],
    upper=[1, 2, 0.3, 2, 3, 1.7],
    max_velocity=[1, 2, 3, 0.2, 4, 3],
    max_acceleration=[5, 30, 10, 2, 60, 0.5],
    allow_partial=True,
)
WIDE = ArmConfig(lower=np.full(6, -1.0), upper=np.ones(6))
ROUNDING = 1e-6

sizes = st.sampled_from([0.01, 1.0, 3.0, 100.0, 1e5])
values = st.floats(-1, 1, width=32)
rubbish = st.sampled_from([math.nan, math.inf, -math.inf, 1e300])


@st.composite
def points(draw, joints, number=values):
    """Of any size, with velocities and accelerations or without, and times of which some do not rise."""
    size = draw(sizes)
    time, rows = 0.0, []
    for _ in range(draw(st.integers(1, 5))):
        time += draw(st.sampled_from([1e-6, 0.01, 0.1, 0.5, 2.0]))
        lists = [
            [size * value for value in draw(st.lists(number, min_size=joints, max_size=joints))]
            if kind == 0 or draw(st.booleans())
            else []
            for kind in range(3)
        ]
        rows.append(TrajectoryPoint(time, *lists))
    return rows


@st.composite
def trajectories(draw, number=values):
    """(stamp relative to now or None, joints, points), for some of the joints."""
    joints = draw(st.lists(st.sampled_from(JOINTS), min_size=1, max_size=6, unique=True))
    stamp = draw(st.none() | st.floats(-1, 1))
    return stamp, tuple(joints), draw(points(len(joints), number))


# (s since the sample before, a trajectory that comes or None)
steps = st.tuples(st.sampled_from([0.0, 0.001, 0.009, 0.01, 0.013, 0.05, 1.0]), st.none() | trajectories())
streams = st.lists(steps, min_size=5, max_size=100)


def sent(follower, now, trajectory):
    """Whether it was taken."""
    stamp, joints, rows = trajectory
    try:
        follower.accept(Trajectory(joints, rows, None if stamp is None else now + stamp), now)
    except TrajectoryRejected:
        return False
    return True


@properties
@given(streams, st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_no_stream_leaves_a_limit_of_position_velocity_or_acceleration(stream, begin):
    start = TIGHT.lower + np.array(begin) * (TIGHT.upper - TIGHT.lower)
    follower = TrajectoryFollower(TIGHT, start, 0.0)
    now, last, rate = 0.0, start, np.zeros(6)
    for pause, trajectory in stream:
        now += pause
        if trajectory is not None:
            sent(follower, now, trajectory)
        sample = follower.sample(now)
        assert np.isfinite([sample.position, sample.velocity]).all()
        assert (sample.position >= TIGHT.lower).all() and (sample.position <= TIGHT.upper).all()
        dt = min(pause, LONGEST_STEP)
        step = sample.position - last
        assert (np.abs(step) <= TIGHT.max_velocity * dt + ROUNDING).all()
        if dt and follower._motion is not None:
            assert (np.abs(step / dt - rate) <= TIGHT.max_acceleration * dt + ROUNDING / dt).all()
        last, rate = sample.position, step / dt if dt else rate
        if follower._motion is None:
            rate = np.zeros(6)


@properties
@given(streams, trajectories(values | rubbish), st.integers(0, 99))
def test_what_is_rejected_leaves_the_motion_as_it_was(stream, broken, at):
    told, untold = (TrajectoryFollower(TIGHT, np.full(6, 0.1), 0.0) for _ in range(2))
    now = 0.0
    for number, (pause, trajectory) in enumerate(stream):
        now += pause
        for follower in (told, untold):
            if trajectory is not None:
                sent(follower, now, trajectory)
        if number == at % len(stream) and sent(told, now, broken):
            return  # it was none of the broken ones
        a, b = told.sample(now), untold.sample(now)
        np.testing.assert_array_equal(a.position, b.position)
        np.testing.assert_array_equal(a.velocity, b.velocity)


@properties
@given(st.lists(st.floats(-0.9, 0.9), min_size=6, max_size=6), st.sampled_from([0.005, 0.02]))
def test_a_still_target_is_reached_without_overshoot_and_stays_reached(goal, dt):
    config = replace(WIDE, max_velocity=np.linspace(0.5, 4, 6), max_acceleration=np.linspace(50, 2, 6))
    goal, position, rate = np.array(goal), np.zeros(6), np.zeros(6)
    for _ in range(round(3 / dt)):
        before = np.sign(goal - position)
        position, rate = limited(goal, np.zeros(6), position, rate, dt, config)
        assert (before * (goal - position) >= -1e-9).all()
    np.testing.assert_allclose(position, goal, atol=1e-9)
    np.testing.assert_allclose(rate, 0, atol=1e-6)


@properties
@given(st.floats(0.05, 0.8), st.floats(0.5, 5.0), st.sampled_from([0.002, 0.01, 0.02]))
def test_a_target_within_the_limits_is_followed_exactly(size, frequency, dt):
    """A sine that the joints can follow, once it has been caught up with."""
    config = replace(WIDE, max_velocity=np.full(6, 5.0), max_acceleration=np.full(6, 25.0))
    now, position, rate = 0.0, np.zeros(6), np.zeros(6)
    for _ in range(round(2 / dt)):
        now += dt
        wanted = np.full(6, size * math.sin(frequency * now))
        speed = np.full(6, size * frequency * math.cos(frequency * now))
        position, rate = limited(wanted, speed, position, rate, dt, config)
        if now > 1:
            np.testing.assert_allclose(position, wanted, atol=1e-9)
