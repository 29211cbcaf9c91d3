# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a calibration, in words: ranges, middles, swapped joints, what the arm does by hand.

Ranges of real arms (eight published calibration files) are 190 to 240 degrees for the body and 106 to 140
for the gripper, a little more than the designs' limits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smolvla_mem_ros.so100.arm import JOINTS, RADIANS_PER_TICK, TICKS, Calibration

# degrees from end stop to end stop, in the order of JOINTS: the limits of the models' URDFs.
NOMINAL_SPAN = {
    "so100": (229.2, 200.5, 180.0, 212.0, 360.0, 126.1),
    "so101": (220.0, 200.0, 193.7, 190.0, 320.0, 110.0),
}
GRIPPER, WRIST_ROLL = JOINTS.index("gripper"), JOINTS.index("wrist_roll")

TOO_SMALL, TOO_LARGE = 0.8, 1.3  # of the nominal span
SMALLEST_ROLL = 0.4  # of the nominal span: LeRobot writes a full turn, and people narrow it on purpose
FULL_TURN = 330.0  # degrees, from which on a range is taken for one of a whole turn
OFF_MIDDLE = 30.0  # degrees between a body joint's middle and the middle of the encoder
OUTSIDE = 5.0  # degrees that a joint may stand beyond its range: end stops give way
CLOSED, OPENED = 15.0, 85.0  # of LeRobot's 0-100: up to, and from where on a gripper counts as such
MOVED = 10.0  # degrees by hand that count as a movement
UNMOVED = 3.0  # degrees that a joint may follow when another one is moved
OTHER_MOVED = 30.0  # degrees of another joint, while the named one stands, that are no accident


def degrees(ticks: np.ndarray) -> np.ndarray:
    """A difference in ticks as degrees."""
    return np.degrees(np.asarray(ticks, float) * RADIANS_PER_TICK)


def check_calibration(
    calibration: Calibration, model: str = "so100", present: Sequence[float] | None = None
) -> list[str]:
    """Problems of a calibration, each with its cause and cure; empty when it looks good.

    Args:
        calibration: with the ids that belong to the joints (``Calibration.from_lerobot`` sees to that).
        model: key of NOMINAL_SPAN.
        present: (6,) ticks after the offset, where the joints stand now; None when that is not known.
    """
    span, nominal = degrees(calibration.upper - calibration.lower), np.array(NOMINAL_SPAN[model])
    if (calibration.upper - calibration.lower >= TICKS - 1).all():
        return ["every joint has a whole turn: these are a new servo's values; calibrate the arm"]
    swapped = _swapped(span, nominal)
    problems = [
        f"{JOINTS[i]} and {JOINTS[j]} look swapped (ranges of {span[i]:.0f} and {span[j]:.0f} degrees, each "
        f"like the other's): their servos have each other's id; set the ids with lerobot-setup-motors"
        for i, j in swapped
    ]
    explained = {i for pair in swapped for i in pair}
    for i in set(range(len(JOINTS))) - explained:
        problems += _range_problems(i, span[i], nominal[i])
    problems += _middle_problems(calibration, span)
    problems += _identical(calibration)
    for joint in np.array(JOINTS)[calibration.inverted]:
        problems.append(
            f"{joint} is inverted (drive_mode 1), which LeRobot's calibration never writes: it looks like an "
            "edited file; set drive_mode to 0 or calibrate again"
        )
    if present is not None:
        problems += _outside(calibration, np.asarray(present, float))
    return problems


def check_closed_gripper(calibration: Calibration, present: float) -> list[str]:
    """The same for a gripper that is known to be closed, with ``present`` ticks after the offset."""
    low, high = calibration.lower[GRIPPER], calibration.upper[GRIPPER]
    percent = 100 * (present - low) / (high - low)
    if calibration.inverted[GRIPPER]:
        percent = 100 - percent
    if percent <= CLOSED:
        return []
    if percent >= OPENED:
        return [
            "the gripper is inverted: closed, it is where LeRobot takes it for open; its servo or horn is "
            "mounted the wrong way round, mount it as in the assembly guide and calibrate again"
        ]
    return [
        f"the closed gripper is at {percent:.0f} of 0-100 and should be near 0: it was not closed wholly, "
        "now or while its range was recorded; calibrate again, and close it to its stop"
    ]


def moved_degrees(start: Sequence[float], now: Sequence[float]) -> np.ndarray:
    """(6,) how far each joint is from where it was, the short way round; from (6,) and (6,) ticks."""
    turn = (np.asarray(now, float) - np.asarray(start, float) + TICKS / 2) % TICKS - TICKS / 2
    return np.abs(degrees(turn))


def check_motion(joint: str, moved: np.ndarray, time_is_up: bool) -> str | None:
    """Whether the joint that a person was asked to move is the one that moved.

    Args:
        joint: what was asked for.
        moved: (6,) degrees since then.
        time_is_up: whether more may come.

    Returns:
        None: wait for more. Empty: it moved. Otherwise the problem.
    """
    i = JOINTS.index(joint)
    most = int(np.argmax(moved))
    if most == i and moved[i] >= MOVED:
        return ""
    if moved[most] >= (MOVED if time_is_up else OTHER_MOVED) and moved[i] <= UNMOVED:
        return (
            f"{JOINTS[most]} moved when {joint} was moved by hand: the ids of servos {most + 1} and {i + 1} "
            "are swapped; set them with lerobot-setup-motors and calibrate again"
        )
    if time_is_up:
        return (
            f"{joint} did not move by itself (it moved {moved[i]:.0f} degrees, {JOINTS[most]} moved "
            f"{moved[most]:.0f}): move only this joint; if you did, its servo's horn is loose"
        )
    return None


def _range_problems(i: int, span: float, nominal: float) -> list[str]:
    joint, is_roll = JOINTS[i], i == WRIST_ROLL
    if span < (SMALLEST_ROLL if is_roll else TOO_SMALL) * nominal:
        return [
            f"{joint} has a range of {span:.0f} degrees and should have about {nominal:.0f}: it was not "
            "moved to both of its ends; calibrate again, and move it from stop to stop"
        ]
    if is_roll:
        return []
    if span >= FULL_TURN:
        return [
            f"{joint} has a range of {span:.0f} degrees, nearly a turn, and can move about {nominal:.0f}: it "
            "passed the encoder's end, because the arm was not in the middle when ENTER was pressed; or it "
            "looks like wrist_roll's servo with the wrong id. Calibrate again from the middle"
        ]
    if span > TOO_LARGE * nominal:
        return [
            f"{joint} has a range of {span:.0f} degrees and can move about {nominal:.0f}: it looks like "
            "another joint's servo, or the horn slipped; check ids and screws, then calibrate again"
        ]
    return []


def _middle_problems(calibration: Calibration, span: np.ndarray) -> list[str]:
    off = degrees((calibration.lower + calibration.upper) / 2 - TICKS / 2)
    # A gripper is homed anywhere, and what has no proper range has no middle either.
    joints = [i for i in range(GRIPPER) if abs(off[i]) > OFF_MIDDLE and span[i] < FULL_TURN]
    return [
        f"{JOINTS[i]} has its middle {off[i]:+.0f} degrees from the encoder's: it looks like it was not in "
        "the middle when ENTER was pressed, or went to one end only; calibrate again from the middle"
        for i in joints
    ]


def _swapped(span: np.ndarray, nominal: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of joints whose ranges do not fit, but would if they changed places."""

    def fits(i: int, place: int) -> bool:
        low = SMALLEST_ROLL if place == WRIST_ROLL else TOO_SMALL
        return low * nominal[place] <= span[i] <= TOO_LARGE * nominal[place]

    return [
        (i, j)
        for i in range(len(span))
        for j in range(i)
        if not fits(i, i) and not fits(j, j) and fits(i, j) and fits(j, i)
    ]


def _identical(calibration: Calibration) -> list[str]:
    rows = list(zip(calibration.offset, calibration.lower, calibration.upper, strict=True))
    return [
        f"{JOINTS[j]} and {JOINTS[i]} have the same offset and range: it looks like a copied entry; "
        "calibrate again"
        for i in range(len(rows))
        for j in range(i)
        if rows[i] == rows[j]
    ]


def _outside(calibration: Calibration, present: np.ndarray) -> list[str]:
    beyond = degrees(np.maximum(calibration.lower - present, present - calibration.upper))
    return [
        f"{JOINTS[i]} stands {beyond[i]:.0f} degrees outside its range: it was not moved to both of its ends "
        "(or this is another arm's file); calibrate again"
        for i in np.flatnonzero(beyond > OUTSIDE)
    ]
