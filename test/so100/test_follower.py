# SPDX-License-Identifier: Apache-2.0
"""The follower takes and refuses what joint_trajectory_controller does, and never jumps or leaves limits."""

import math

import numpy as np
import pytest

from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig
from smolvla_mem_ros.so100.follower import (
    Trajectory,
    TrajectoryFollower,
    TrajectoryPoint,
    TrajectoryRejected,
)

DT = 0.01
REST = np.zeros(6)


def points(*rows, velocities=None, accelerations=None, size=6):
    """Rows of (time, position of every joint)."""
    return [
        TrajectoryPoint(
            time,
            [position] * size,
            [] if velocities is None else [velocities[i]] * size,
            [] if accelerations is None else [accelerations[i]] * size,
        )
        for i, (time, position) in enumerate(rows)
    ]


def trajectory(*rows, start=None, joints=JOINTS, **more):
    return Trajectory(joints, points(*rows, size=len(joints), **more), start)


# With it a motion turns at once.
AT_ONCE = {"max_acceleration": np.full(6, 1e5)}


def follower(position=REST, now=0.0, **config):
    return TrajectoryFollower(ArmConfig(**config), np.array(position, float), now)


def run(follower, begin, end):
    """Times (N,) and samples, every DT from begin to end."""
    times = begin + DT * np.arange(round((end - begin) / DT) + 1)
    return times, [follower.sample(t) for t in times]


def first_joint(samples):
    return np.array([s.position[0] for s in samples])


# What is accepted, and when it starts -----------------------------------------------------------


def test_without_a_trajectory_it_holds_where_it_began():
    f = follower(np.full(6, 0.3))
    _, samples = run(f, 0, 1)
    assert all((s.position == 0.3).all() and not s.moving and not s.clamped for s in samples)


def test_stamp_zero_starts_now_and_every_point_is_passed_in_time():
    f = follower(now=10.0, **AT_ONCE)
    f.accept(trajectory((0.5, 0.2), (1.0, 0.6)), 10.0)
    times, samples = run(f, 10, 11.2)
    np.testing.assert_allclose(np.interp([10.5, 11.0], times, first_joint(samples)), [0.2, 0.6], atol=1e-9)
    assert samples[-1].position == pytest.approx(0.6) and not samples[-1].moving


def test_after_the_last_point_it_holds_there():
    f = follower()
    f.accept(trajectory((0.5, 0.3), (1.0, 0.5), velocities=[0.4, 0.4]), 0.0)
    _, samples = run(f, 0, 3)
    late = samples[110:]
    assert all((s.position == 0.5).all() and (s.velocity == 0).all() and not s.moving for s in late)


def test_points_that_have_passed_are_skipped():
    f = follower(np.full(6, 0.9), **AT_ONCE)
    f.sample(5.0)
    f.accept(trajectory((0.0, 0.0), (1.0, 1.0), (2.0, 0.0), start=4.0), 5.0)
    f.sample(5.0)
    times, samples = run(f, 5.0, 6.0)
    blended = times > 5.0 + ArmConfig().blend_time
    np.testing.assert_allclose(first_joint(samples)[blended], (6.0 - times)[blended], atol=1e-9)


def test_a_future_stamp_lets_the_current_motion_go_on_until_then():
    f = follower(**AT_ONCE)
    f.accept(trajectory((1.0, 0.5), velocities=[0.5]), 0.0)
    run(f, 0, 0.2)
    alone = follower(**AT_ONCE)
    alone.accept(trajectory((1.0, 0.5), velocities=[0.5]), 0.0)
    f.accept(trajectory((0.5, -0.5), start=0.6), 0.2)
    times, samples = run(f, 0.2, 1.4)
    _, undisturbed = run(alone, 0, 1.4)
    np.testing.assert_allclose(first_joint(samples)[:40], first_joint(undisturbed[20:60]), atol=1e-9)
    assert samples[-1].position[0] == pytest.approx(-0.5)
    np.testing.assert_allclose(np.interp(1.1, times, first_joint(samples)), -0.5, atol=1e-6)


def test_joints_may_come_in_any_order():
    f = follower()
    names = tuple(reversed(JOINTS))
    f.accept(Trajectory(names, [TrajectoryPoint(0.5, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])]), 0.0)
    _, samples = run(f, 0, 1)
    np.testing.assert_allclose(samples[-1].position, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_omitted_joints_stay_where_they_were_last_told_to_be():
    f = follower([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], allow_partial=True)
    f.accept(Trajectory(("elbow_flex", "gripper"), [TrajectoryPoint(0.5, [1.0, 0.0])]), 0.0)
    _, samples = run(f, 0, 1)
    np.testing.assert_allclose(samples[-1].position, [0.1, 0.2, 1.0, 0.4, 0.5, 0.0])


def test_a_partial_goal_that_waits_does_not_pull_other_joints_back():
    f = follower(allow_partial=True)
    f.accept(trajectory((1.0, 0.5)), 0.0)
    run(f, 0, 0.5)
    f.accept(Trajectory(("gripper",), [TrajectoryPoint(0.5, [1.0])], start=2.0), 0.5)
    _, samples = run(f, 0.5, 3)
    np.testing.assert_allclose(samples[-1].position, [0.5] * 5 + [1.0])


def test_a_single_point_at_time_zero_is_approached_smoothly():
    f = follower()
    f.accept(trajectory((0.0, 1.0)), 0.0)
    _, samples = run(f, 0, 3)
    assert samples[-1].position == pytest.approx(1.0)
    assert not any(s.clamped for s in samples)


# What is rejected -------------------------------------------------------------------------------

nan, inf = math.nan, math.inf
BAD = {
    "it names no joints": Trajectory((), [TrajectoryPoint(1.0, [])]),
    "unknown joint thumb": Trajectory((*JOINTS, "thumb"), points((1, 0), size=7)),
    "names a joint twice": Trajectory((*JOINTS, "gripper"), points((1, 0), size=7)),
    "joint wrist_roll, gripper missing": Trajectory(JOINTS[:4], points((1, 0), size=4)),
    "it has no points": Trajectory(JOINTS, []),
    "5001 points, more than 5000": trajectory(*((0.1 * n, 0) for n in range(5001))),
    "not strictly increasing": trajectory((1, 0), (1, 0.1)),
    "time_from_start": trajectory((1, 0), (0.5, 0.1)),
    "zero or later": trajectory((-0.1, 0), (0.5, 0.1)),
    "increasing": trajectory((nan, 0)),
    "point 1 has 5 positions for 6 joints": Trajectory(JOINTS, [*points((1, 0)), *points((2, 0), size=5)]),
    "point 0 has 0 positions": Trajectory(JOINTS, [TrajectoryPoint(1.0, [])]),
    "point 0 has 2 velocities": Trajectory(JOINTS, [TrajectoryPoint(1.0, [0] * 6, [0] * 2)]),
    "point 0 has 7 accelerations": Trajectory(JOINTS, [TrajectoryPoint(1.0, [0] * 6, [], [0] * 7)]),
    "positions that are not finite": Trajectory(JOINTS, [TrajectoryPoint(1.0, [0, 0, nan, 0, 0, 0])]),
    "velocities that are not finite": Trajectory(JOINTS, [TrajectoryPoint(1.0, [0] * 6, [inf] * 6)]),
    "accelerations that are not": Trajectory(JOINTS, [TrajectoryPoint(1.0, [0] * 6, [], [-inf] * 6)]),
    "beyond 1e": Trajectory(JOINTS, [TrajectoryPoint(1.0, [1e300] * 6)]),
    "in the past": trajectory((0.1, 0.0), (0.5, 0.1), start=-0.3),
    "stamp is not a number": trajectory((1, 0), start=nan),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_broken_rule_is_named_and_leaves_the_motion_as_it_was(reason):
    told, untold = follower(), follower()
    for f in (told, untold):
        f.accept(trajectory((0.5, 0.4), (1.0, 0.1), velocities=[0.2, 0.0]), 0.0)
        run(f, 0, 0.3)
    with pytest.raises(TrajectoryRejected, match=reason):
        told.accept(BAD[reason], 0.3)
    for a, b in zip(run(told, 0.3, 1.2)[1], run(untold, 0.3, 1.2)[1], strict=True):
        np.testing.assert_array_equal(a.position, b.position)
        np.testing.assert_array_equal(a.velocity, b.velocity)


def test_a_last_point_that_is_only_just_due_is_taken():
    follower().accept(trajectory((0.5, 0.1), start=-0.5), 0.0)


# Between points ---------------------------------------------------------------------------------


def settled_on(path, begin):
    """A follower that is on ``path`` already when it is looked at, so that no blend shows."""
    f = follower(path.points[0].positions, blend_time=0.001, **AT_ONCE)
    f.accept(path, 0.0)
    return run(f, begin, path.points[-1].time)


def test_without_velocities_the_way_between_points_is_straight():
    times, samples = settled_on(trajectory((0.0, 0.0), (1.0, 1.0), (2.0, 0.5)), 0.01)
    np.testing.assert_allclose(first_joint(samples), np.interp(times, [0, 1, 2], [0, 1, 0.5]), atol=1e-6)


def test_with_velocities_it_is_the_cubic_through_both_ends():
    t, samples = settled_on(trajectory((0.0, 0.0), (1.0, 1.0), velocities=[0.0, 0.0]), 0.01)
    np.testing.assert_allclose(first_joint(samples), 3 * t**2 - 2 * t**3, atol=1e-6)
    np.testing.assert_allclose([s.velocity[0] for s in samples[:-1]], (6 * t - 6 * t**2)[:-1], atol=1e-4)


def test_with_accelerations_too_it_is_the_quintic():
    path = trajectory((0.0, 0.0), (1.0, 1.0), velocities=[0.0, 0.0], accelerations=[0.0, 0.0])
    t, samples = settled_on(path, 0.01)
    np.testing.assert_allclose(first_joint(samples), 10 * t**3 - 15 * t**4 + 6 * t**5, atol=1e-6)


def test_the_quintic_meets_the_accelerations_of_both_ends():
    # x = t^2 (1 + t^3) has these derivatives at 0 and at 1.
    path = trajectory((0.0, 0.0), (1.0, 2.0), velocities=[0.0, 7.0], accelerations=[2.0, 22.0])
    t, samples = settled_on(path, 0.01)
    expected = t**2 + t**5
    inside = expected < 1.9
    np.testing.assert_allclose(first_joint(samples)[inside][:40], expected[inside][:40], atol=1e-6)


# Replacing the motion ---------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0.0, 0.1, 0.3])
def test_a_new_trajectory_takes_over_without_a_step_in_position_or_velocity(late):
    """A stream of chunks of one sine, stamped ``late`` in the past, alternately 0.02 rad above and below."""
    f = follower()
    samples = []
    arrivals = {round(now / DT): now for now in np.arange(0, 4, 0.3)}
    for k in range(400):
        now = k * DT
        if k in arrivals:
            start = now - late
            t = start + np.arange(25) / 30
            error = 0.02 * (-1) ** (k // 30)
            rows = [
                TrajectoryPoint(i / 30, [0.5 * np.sin(x) + error] * 6, [0.5 * np.cos(x)] * 6)
                for i, x in enumerate(t)
            ]
            f.accept(Trajectory(JOINTS, rows, start), now)
        samples.append(f.sample(now))
    position = first_joint(samples)[30:]
    velocity = np.array([s.velocity[0] for s in samples])[30:]
    np.testing.assert_allclose(np.diff(position) / DT, (velocity[1:] + velocity[:-1]) / 2, atol=0.08)
    assert np.abs(np.diff(velocity)).max() < 0.25
    assert np.abs(np.diff(position)).max() < 0.02


def test_it_starts_from_the_last_command_and_reaches_the_new_path_within_the_blend():
    f = follower()
    f.accept(trajectory((1.0, 1.0), velocities=[1.0]), 0.0)
    _, before = run(f, 0, 0.5)
    f.accept(trajectory((0.0, 0.6), (2.0, 0.6), velocities=[0.0, 0.0]), 0.5)
    times, after = run(f, 0.51, 1.5)
    assert after[0].position[0] == pytest.approx(before[-1].position[0], abs=0.02)
    assert after[0].velocity[0] == pytest.approx(before[-1].velocity[0], abs=0.3)
    # It begins 0.225 rad away at 1.25 rad/s; at 30 rad/s^2 that takes 0.212 and 0.167 s.
    np.testing.assert_allclose(first_joint(after)[times > 0.72], 0.6, atol=1e-9)


def test_hold_drops_the_motion_and_what_waits():
    f = follower()
    f.accept(trajectory((1.0, 1.0)), 0.0)
    run(f, 0, 0.3)
    f.accept(trajectory((1.0, -1.0), start=0.5), 0.3)
    f.hold(np.full(6, 0.25), 0.31)
    _, samples = run(f, 0.32, 2)
    assert all((s.position == 0.25).all() and not s.moving for s in samples)


# Limits -----------------------------------------------------------------------------------------


def test_positions_beyond_a_limit_are_clamped_and_said_to_be():
    f = follower()
    f.accept(trajectory((2.0, 5.0)), 0.0)
    _, samples = run(f, 0, 5)
    np.testing.assert_allclose(samples[-1].position, f.config.upper)
    assert any(s.clamped for s in samples) and not samples[-1].moving


def test_no_step_is_larger_than_the_largest_velocity_allows():
    f = follower(max_velocity=np.full(6, 0.5))
    f.accept(trajectory((0.1, 1.0), (0.2, -1.0), (0.3, 1.0), velocities=[9.0, -9.0, 0.0]), 0.0)
    _, samples = run(f, 0, 4)
    steps = np.abs(np.diff([s.position for s in samples], axis=0))
    assert steps.max() <= 0.5 * DT * (1 + 1e-9)
    assert samples[-1].position == pytest.approx(1.0)
    assert all(np.abs(s.velocity).max() <= 0.5 * (1 + 1e-9) for s in samples)


def test_a_pause_in_sampling_does_not_become_a_large_step():
    f = follower()
    f.accept(trajectory((0.1, 0.0), (5.0, 1.5)), 0.0)
    f.sample(0.01)
    before = f.sample(0.1).position
    assert np.abs(f.sample(4.9).position - before).max() <= 3.0 * 0.1 + 1e-9


def test_an_arm_found_beyond_its_limits_is_held_there_and_then_brought_inside_at_limited_speed():
    start = np.array([2.5, 0, 0, 0, 0, 0])
    f = follower(start)
    assert (f.sample(0.5).position == start).all()
    f.accept(trajectory((1.0, 0.0)), 0.5)
    _, samples = run(f, 0.5, 3)
    assert np.abs(np.diff(first_joint(samples))).max() <= 3.0 * DT * (1 + 1e-9)
    assert samples[-1].position[0] == 0


def test_random_streams_never_leave_the_limits_or_turn_into_nan():
    rng = np.random.default_rng(0)
    f = follower(allow_partial=True)
    last, refused = f.sample(0.0).position, 0
    for k in range(1, 6000):
        now = k * DT
        if rng.random() < 0.05:
            joints = tuple(rng.permutation(JOINTS)[: rng.integers(1, 7)])
            n = rng.integers(1, 6)
            scale = 10 ** rng.uniform(-1, 5)
            rows = [
                TrajectoryPoint(
                    float(t),
                    *(
                        rng.normal(0, scale, len(joints)) if kind == 0 or rng.random() < 0.6 else []
                        for kind in range(3)
                    ),
                )
                for t in np.cumsum(10 ** rng.uniform(-6, 0, n))
            ]
            try:
                f.accept(Trajectory(joints, rows, now + rng.normal(0, 0.3)), now)
            except TrajectoryRejected:
                refused += 1
        sample = f.sample(now)
        assert np.isfinite(sample.position).all() and np.isfinite(sample.velocity).all()
        assert (sample.position >= f.config.lower).all() and (sample.position <= f.config.upper).all()
        assert (np.abs(sample.position - last) <= f.config.max_velocity * DT * (1 + 1e-6)).all()
        last = sample.position
    assert 0 < refused < 270
