# SPDX-License-Identifier: Apache-2.0
"""Follows joint trajectories: decides which to take, and where the joints shall be at any moment.

The rules are those of ros2_controllers' joint_trajectory_controller (Kilted) on its topic, with a blend
in place of a stop where a new trajectory replaces the one under way. Times are float seconds of one
monotonic clock; positions are radians in the order of JOINTS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig
from smolvla_mem_ros.so100.limiter import EXACT, limited

MOST_POINTS = 5000  # checking more would take longer than a period of the loop
ABSURD = 1e6  # rad and its rates; beyond it polynomials would overflow
LONGEST_STEP = 0.1  # s; after a longer pause a sample moves no further than after this


class TrajectoryRejected(Exception):
    """A trajectory that is not followed; the text says why."""


@dataclass(frozen=True)
class TrajectoryPoint:
    """One point, as it was sent: nothing is checked yet."""

    time: float  # s from the trajectory's start
    positions: Sequence[float]
    velocities: Sequence[float] = ()
    accelerations: Sequence[float] = ()


@dataclass(frozen=True)
class Trajectory:
    """A trajectory, as it was sent: nothing is checked yet.

    Args:
        joints: names, in the points' order.
        points: in the order of time.
        start: s on the follower's clock; None to start when it is accepted.
    """

    joints: Sequence[str]
    points: Sequence[TrajectoryPoint]
    start: float | None = None


@dataclass(frozen=True)
class Sample:
    """What the joints are told at one moment.

    Args:
        position: (6,) rad.
        velocity: (6,) rad/s, the rate of ``position``.
        clamped: whether a limit has changed the position.
        moving: false once the last point is reached, and while nothing is followed.
        wanted: (6,) rad, where the trajectory has them, whatever the limits let through.
        wanted_velocity: (6,) rad/s, the trajectory's.
    """

    position: np.ndarray
    velocity: np.ndarray
    clamped: bool
    moving: bool
    wanted: np.ndarray
    wanted_velocity: np.ndarray


class TrajectoryFollower:
    """Turns trajectories into positions, sampled at ever later times.

    Args:
        config: limits and rules; another one may be set at any time.
        position: (6,) rad, where the joints are told to be now. It may be beyond the limits: an arm found
            there is held there, and brought inside by the first trajectory.
        now: s.
    """

    def __init__(self, config: ArmConfig, position: np.ndarray, now: float) -> None:
        self.config = config
        self.hold(position, now)

    def hold(self, position: np.ndarray, now: float) -> None:
        """Drop every trajectory and stay at ``position``, (6,) rad, from this moment on."""
        self._rate = np.zeros(len(JOINTS))  # rad/s, mean of the last step
        position, still = np.array(position, float), np.zeros(len(JOINTS))
        self._last = Sample(position, still, False, False, wanted=position, wanted_velocity=still)
        self._time = now
        self._motion: _Motion | None = None
        self._waiting: _Path | None = None

    @property
    def last(self) -> Sample:
        """The latest sample, or what is held."""
        return self._last

    @property
    def waiting(self) -> bool:
        """Whether a trajectory was accepted that has not begun."""
        return self._waiting is not None

    def accept(self, trajectory: Trajectory, now: float) -> float:
        """Take a trajectory over from its start, or from now on if that has passed. Returns its start, s.

        Raises:
            TrajectoryRejected: one of the rules is broken; the motion goes on as if nothing had come.
        """
        self._waiting = _checked(trajectory, self.config, now)
        return self._waiting.start

    def sample(self, now: float) -> Sample:
        """Where the joints shall be at ``now``, within all limits. ``now`` must not go back."""
        if self._waiting is not None and now >= self._waiting.start:
            # The new motion begins where the last sample left the old one, so no moment is left out.
            self._motion = _Motion(self._waiting, self._last, self._time, self.config)
            self._waiting = None
        step = min(now - self._time, LONGEST_STEP)
        self._time = now
        if self._motion is None or step <= 0:
            return self._last
        wanted, speed = self._motion.at(now)
        position, self._rate = limited(wanted, speed, self._last.position, self._rate, step, self.config)
        changed = np.abs(position - wanted) > EXACT
        arrived = np.abs(position - np.clip(wanted, self.config.lower, self.config.upper)) <= EXACT
        moving = now < self._motion.end or not arrived.all()
        velocity = np.where(changed, self._rate, speed)
        self._last = Sample(position, velocity, bool(changed.any()), moving, wanted, speed)
        if not moving:
            self._motion = None
        return self._last


@dataclass(frozen=True)
class _Path:
    """A trajectory that has passed all checks. NaN where a point has no velocities or accelerations."""

    start: float  # s
    times: np.ndarray  # (T,) s
    positions: np.ndarray  # (T, 6) rad
    velocities: np.ndarray  # (T, 6) rad/s
    accelerations: np.ndarray  # (T, 6) rad/s^2
    omitted: np.ndarray  # (6,) bool: joints that the trajectory leaves out

    def at(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """(6,) positions and (6,) velocities. Before the first point it runs straight towards it at the
        velocity it has there, after the last it stands still."""
        if len(self.times) == 1 or time >= self.times[-1]:
            return self.positions[-1], np.zeros(self.positions.shape[1])
        if time < self.times[0]:
            position, velocity = self.at(self.times[0])
            return position - velocity * (self.times[0] - time), velocity
        i = int(np.searchsorted(self.times, time, side="right")) - 1
        duration = self.times[i + 1] - self.times[i]
        ends = (self.positions[i], self.positions[i + 1])
        velocities = (self.velocities[i], self.velocities[i + 1])
        accelerations = (self.accelerations[i], self.accelerations[i + 1])
        return _spline(time - self.times[i], duration, ends, velocities, accelerations)


def check(trajectory: Trajectory, config: ArmConfig, now: float) -> None:
    """Raises TrajectoryRejected when a follower with this ``config`` would not accept it."""
    _checked(trajectory, config, now)


def _checked(trajectory: Trajectory, config: ArmConfig, now: float) -> _Path:
    names = list(trajectory.joints)
    if not names:
        raise TrajectoryRejected("it names no joints")
    if unknown := [name for name in names if name not in JOINTS]:
        raise TrajectoryRejected(f"unknown joint {', '.join(unknown)}; this arm has {', '.join(JOINTS)}")
    if len(set(names)) < len(names):
        raise TrajectoryRejected("it names a joint twice")
    missing = [joint for joint in JOINTS if joint not in names]
    if missing and not config.allow_partial:
        raise TrajectoryRejected(
            f"joint {', '.join(missing)} missing (parameter allow_partial_joints_goal permits that)"
        )
    points = trajectory.points
    if not points:
        raise TrajectoryRejected("it has no points")
    if len(points) > MOST_POINTS:
        raise TrajectoryRejected(f"it has {len(points)} points, more than {MOST_POINTS}; send it in parts")
    times = np.array([point.time for point in points], float)
    if not (np.isfinite(times).all() and times[0] >= 0 and (np.diff(times) > 0).all()):
        raise TrajectoryRejected("time_from_start is not strictly increasing from zero or later")
    start = now if trajectory.start is None else trajectory.start
    if not np.isfinite(start):
        raise TrajectoryRejected("its stamp is not a number")
    if start + times[-1] < now:
        raise TrajectoryRejected(f"its last point is {now - start - times[-1]:.3f} s in the past")

    columns = [JOINTS.index(name) for name in names]
    known = [_rows(points, kind, len(names)) for kind in ("positions", "velocities", "accelerations")]
    full = np.zeros((3, len(points), len(JOINTS)))
    full[:, :, columns] = known
    omitted = np.array([joint not in names for joint in JOINTS])
    return _Path(start, start + times, *full, omitted)


def _rows(points: Sequence[TrajectoryPoint], kind: str, joints: int) -> np.ndarray:
    """(T, joints); rows that a point leaves empty are NaN."""
    given = [getattr(point, kind) for point in points]
    lengths = np.array([len(values) for values in given])
    empty = (lengths == 0) & (kind != "positions")
    if (wrong := np.flatnonzero((lengths != joints) & ~empty)).size:
        i = wrong[0]
        raise TrajectoryRejected(f"point {i} has {lengths[i]} {kind} for {joints} joints")
    rows = np.full((len(points), joints), np.nan)
    if not empty.all():
        # Many times faster than to make an array of a list of arrays.
        rows[~empty] = np.fromiter(chain.from_iterable(given), float).reshape(-1, joints)
        bounded = (np.abs(rows) < ABSURD).all(axis=1)  # false for NaN
        if (wrong := np.flatnonzero(~bounded & ~empty)).size:
            raise TrajectoryRejected(
                f"point {wrong[0]} has {kind} that are not finite (or beyond {ABSURD:g})"
            )
    return rows


class _Motion:
    """A path, begun from where the joints were and how fast they were moving.

    What the joints differ from the path at the beginning fades out along a cubic, so position and velocity
    are continuous; after the blend the path is followed exactly.
    """

    def __init__(self, path: _Path, last: Sample, now: float, config: ArmConfig) -> None:
        # Joints that are left out stay where they were last told to be.
        path = replace(path, positions=np.where(path.omitted, last.position, path.positions))
        if path.times[0] - now >= config.blend_time:
            # There is time to go to the first point: that way is part of the path.
            none = np.full((1, len(JOINTS)), np.nan)
            path = replace(
                path,
                times=np.concatenate([[now], path.times]),
                positions=np.concatenate([last.position[None], path.positions]),
                velocities=np.concatenate([last.velocity[None], path.velocities]),
                accelerations=np.concatenate([none, path.accelerations]),
            )
        self._path = path
        self._begin = now
        position, velocity = path.at(now)
        self._offset = last.position - position
        self._drift = last.velocity - velocity
        # A cubic's steepest is 1.5 times its mean: a large offset takes long enough to leave a quarter of the
        # velocity to the path. Its acceleration begins at 6 and 4 times what it makes up for.
        offset, drift = np.abs(self._offset), np.abs(self._drift)
        fastest = config.max_velocity * config.speed_scaling
        self._blend = np.max(
            [
                np.full(len(JOINTS), config.blend_time),
                2 * offset / fastest,
                np.sqrt(6 * offset / config.max_acceleration),
                4 * drift / config.max_acceleration,
            ],
            axis=0,
        )
        self._blended = now + self._blend.max()
        self.end = max(path.times[-1], self._blended)

    def at(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """(6,) positions and (6,) velocities."""
        position, velocity = self._path.at(time)
        if time < self._blended:
            since = np.minimum(time - self._begin, self._blend)
            rest = np.zeros(len(JOINTS))
            none = np.full(len(JOINTS), np.nan)
            ends = ((self._offset, rest), (self._drift, rest), (none, none))
            offset, drift = _spline(since, self._blend, *ends)
            position, velocity = position + offset, velocity + drift
        return position, velocity


Ends = tuple[np.ndarray, np.ndarray]


def _spline(
    t: float | np.ndarray,
    duration: float | np.ndarray,
    positions: Ends,
    velocities: Ends,
    accelerations: Ends,
) -> tuple[np.ndarray, np.ndarray]:
    """Position and velocity at ``t`` of the polynomial between two points.

    Linear if a velocity is NaN, cubic if an acceleration is, else quintic: as JTC's trajectory.cpp does.
    """
    p0, p1 = positions
    v0, v1 = velocities
    a0, a1 = accelerations
    T, s = duration, t / duration
    if np.isnan(v0).any() or np.isnan(v1).any():
        return p0 + s * (p1 - p0), (p1 - p0) / T
    # In powers of s, with derivatives scaled by T: Hermite's conditions at both ends.
    d, v0, v1 = p1 - p0, v0 * T, v1 * T
    if np.isnan(a0).any() or np.isnan(a1).any():
        c = (p0, v0, 3 * d - 2 * v0 - v1, v0 + v1 - 2 * d)
    else:
        a0, a1 = a0 * T * T, a1 * T * T
        c = (
            p0,
            v0,
            a0 / 2,
            10 * d - 6 * v0 - 4 * v1 - (3 * a0 - a1) / 2,
            -15 * d + 8 * v0 + 7 * v1 + (3 * a0 - 2 * a1) / 2,
            6 * d - 3 * (v0 + v1) - (a0 - a1) / 2,
        )
    position = sum(k * s**n for n, k in enumerate(c))
    velocity = sum(n * k * s ** (n - 1) for n, k in enumerate(c) if n) / T
    return position, velocity
