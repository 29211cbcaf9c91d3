# SPDX-License-Identifier: Apache-2.0
"""Calibrates an SO-100 or SO-101 on a terminal, step by step, and checks the result before it counts."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lerobot.utils.constants import HF_LEROBOT_CALIBRATION

from smolvla_mem_ros.cli.arguments import positive
from smolvla_mem_ros.so100.arm import JOINTS, TICKS, Calibration, CalibrationError
from smolvla_mem_ros.so100.calibration_check import (
    GRIPPER,
    NOMINAL_SPAN,
    check_calibration,
    check_closed_gripper,
    check_motion,
    degrees,
    moved_degrees,
)
from smolvla_mem_ros.so100.calibration_session import CalibrationSession
from smolvla_mem_ros.so100.driver import ArmError, So100Driver

EPILOG = """\
examples:
  so100_calibrate --port /dev/ttyACM0
  so100_calibrate --port /dev/ttyACM1 --calibration ~/arms/left.json --model so101
  so100_calibrate --check --calibration ~/arms/left.json --port /dev/ttyACM1
  so100_calibrate --write --calibration ~/arms/left.json --port /dev/ttyACM1

lerobot-find-port finds the port. A file that is replaced is kept, with the date in its name.
"""

STEPS = """\
Calibrating the arm on {port} into {path}
It takes about three minutes. The motors never move the arm: their torque goes off and stays off, and you move
it by hand. Ctrl-C stops at any time, and leaves the file and the servos' calibration as they were.{existing}

 1. Take hold of the arm, and lay it down if it stands up: at the first ENTER torque goes off and it sinks.
 2. "Move ... to the middle": put EVERY joint halfway between its two ends, by hand: the base straight ahead,
    shoulder, elbow and wrist halfway, the wrist not rolled, the gripper half open. Hold it there (about ten
    seconds) and press ENTER once.
 3. A table of numbers runs. Move these five joints, one after the other and slowly, from one end stop to the
    other and back, about five seconds each: base, shoulder, elbow, wrist up and down, gripper wholly closed
    and wholly open. Do not roll the wrist. MIN and MAX of each must have changed. Then press ENTER once.
 4. The result is checked.{motion}
"""
MOTION_STEP = " You are asked to close the gripper, and then to move each joint once more by its name."

# How a hand moves each joint, in the order of JOINTS.
HANDS = (
    "turn the whole arm left or right on its base",
    "tip the upper arm forward or back",
    "bend or stretch the elbow",
    "tip the gripper up or down",
    "roll the gripper about its own axis",
    "open the gripper",
)
POLL = 0.05  # s between two looks at the servos


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when the calibration is good or kept, 1 when it is not, 130 after Ctrl-C."""
    args = _parse(argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        if args.check:
            return _check(args)
        if not sys.stdin.isatty():
            raise ArmError("this needs a person at a terminal; start it in one")
        return _write(args) if args.write else _calibrate(args)
    except (ArmError, CalibrationError, OSError) as error:
        print(f"so100_calibrate: {error}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", help="serial device of the arm (with --check it may be left out)")
    parser.add_argument("--id", default="so100", help="name of the arm for LeRobot (default %(default)s)")
    parser.add_argument("--calibration", type=Path, help="JSON file (default: LeRobot's own place for --id)")
    parser.add_argument("--model", choices=NOMINAL_SPAN, default="so100", help="whose ranges to expect")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only check the file, and compare the servos")
    what.add_argument("--write", action="store_true", help="only write the file into the servos")
    parser.add_argument(
        "--motion_check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for each joint by its name at the end, which finds swapped servos for sure",
    )
    parser.add_argument(
        "--timeout", type=positive, default=30, help="s to wait for each of these (default %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.calibration is None:
        args.calibration = HF_LEROBOT_CALIBRATION / "robots" / "so_follower" / f"{args.id}.json"
    args.calibration = args.calibration.expanduser().resolve()
    if args.calibration.suffix != ".json":
        parser.error("--calibration must end with .json, or LeRobot does not find it")
    if not args.port and not args.check:
        parser.error("--port is needed; lerobot-find-port finds it")
    return args


def _stop(*_: object) -> None:
    """Ctrl-C, once: a second one must not cut short what the first one sets right."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


# The three things it does ---------------------------------------------------------------------------


def _calibrate(args: argparse.Namespace) -> int:
    session = CalibrationSession(args.port, args.calibration)
    try:
        with session:
            existing = args.calibration.exists()
            print(
                STEPS.format(
                    port=args.port,
                    path=args.calibration,
                    existing="\nThe file that is there will be kept under another name." if existing else "",
                    motion=MOTION_STEP if args.motion_check else "",
                )
            )
            input("Take hold of the arm and press ENTER: torque goes off.")
            while not _is_accepted(_record(session, args)):
                print("\nOnce more, from the middle.")
            backup = session.keep()
    except (KeyboardInterrupt, EOFError):
        return _stopped(session, args)
    except ArmError as error:
        raise ArmError(f"{error}. {_what_is_left(session, args)}") from error
    if backup:
        print(f"The file that was there is now {backup}")
    print(f"Done, torque is off: {args.calibration}")
    print(
        "Use it with: ros2 run smolvla_mem_ros so100_node --ros-args "
        f"-p port:={args.port} -p calibration:={args.calibration}"
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    calibration, present = Calibration.load(args.calibration), None
    problems, note = [], "the servos were not looked at (give --port)"
    if args.port and not os.path.exists(args.port):
        note = f"the servos were not looked at: there is no serial port {args.port}"
    elif args.port:
        driver = So100Driver(args.port, args.calibration)
        try:
            driver.connect()
            present = calibration.ticks.from_radians(driver.read().position)
            note = f"the servos on {args.port} hold this calibration"
        except ArmError as error:
            note, problems = "", [str(error)]
        finally:
            driver.close(False)
    problems += check_calibration(calibration, args.model, present)
    _show(calibration, args.model)
    print(*(f"problem: {problem}" for problem in problems), *filter(None, [note]), sep="\n")
    print(f"{args.calibration}: {len(problems) or 'no'} problem{'s' * (len(problems) != 1)} found")
    return bool(problems)


def _write(args: argparse.Namespace) -> int:
    calibration = Calibration.load(args.calibration)
    for problem in check_calibration(calibration, args.model):
        print(f"problem: {problem}")
    session = CalibrationSession(args.port, args.calibration)
    try:
        with session:
            input(
                f"Take hold of the arm and press ENTER: torque goes off and {args.calibration} is written "
                f"into the servos on {args.port}."
            )
            session.write()
    except (KeyboardInterrupt, EOFError):
        return _stopped(session, args)
    except ArmError as error:
        raise ArmError(f"{error}. {_what_is_left(session, args)}") from error
    print("Done, torque is off: the servos hold this calibration.")
    return 0


# Steps ----------------------------------------------------------------------------------------------


def _record(session: CalibrationSession, args: argparse.Namespace) -> list[str]:
    """LeRobot's calibration, and what is wrong with it."""
    print()
    try:
        calibration = session.calibrate()
    except (ValueError, CalibrationError) as error:
        return [f"{' '.join(str(error).split())}: ENTER came too early, or these joints were not moved"]
    print()
    _show(calibration, args.model)
    problems = check_calibration(calibration, args.model, session.positions())
    if not problems and args.motion_check:
        problems = _check_by_hand(session, calibration, args.timeout)
    return problems


def _check_by_hand(session: CalibrationSession, calibration: Calibration, timeout: float) -> list[str]:
    input("Close the gripper wholly and press ENTER.")
    problems = check_closed_gripper(calibration, session.positions()[GRIPPER])
    for number, (joint, how) in enumerate(zip(JOINTS, HANDS, strict=True), start=1):
        start = session.positions()  # before anybody is told to move
        print(f"{number} of {len(JOINTS)}: now {how} ({joint}) ... ", end="", flush=True)
        problem = _wait_for_motion(session, joint, start, timeout)
        print("something is wrong" if problem else "seen")
        problems += [problem] if problem else []
    return problems


def _wait_for_motion(session: CalibrationSession, joint: str, start: np.ndarray, timeout: float) -> str:
    """Empty when it was this joint that moved, otherwise the problem."""
    deadline = time.monotonic() + timeout
    while True:
        time.sleep(POLL)
        moved = moved_degrees(start, session.positions())
        result = check_motion(joint, moved, time.monotonic() > deadline)
        if result is not None:
            return result


def _is_accepted(problems: list[str]) -> bool:
    if not problems:
        print("The calibration looks good.")
        return True
    for problem in problems:
        print(f"problem: {problem}")
    answer = input("Press ENTER to calibrate again, or type keep and ENTER to keep it as it is: ")
    return answer.strip().lower() == "keep"


def _show(calibration: Calibration, model: str) -> None:
    span = degrees(calibration.upper - calibration.lower)
    middle = degrees((calibration.lower + calibration.upper) / 2 - TICKS / 2)
    print(f"{'joint':15}{'range':>10}{'expected':>15}{'middle':>10}   (degrees)")
    for joint, has, nominal, off in zip(JOINTS, span, NOMINAL_SPAN[model], middle, strict=True):
        print(f"{joint:15}{has:10.0f}{'about':>11} {nominal:3.0f}{off:+10.0f}")
    print()


def _stopped(session: CalibrationSession, args: argparse.Namespace) -> int:
    print(f"\nso100_calibrate: stopped. {_what_is_left(session, args)}", file=sys.stderr)
    return 130


def _what_is_left(session: CalibrationSession, args: argparse.Namespace) -> str:
    file = f"{args.calibration} is as it was" if args.calibration.exists() else "no file was written"
    if not session.changed:
        return f"Nothing was changed: torque is as it was, {file}, the port is closed"
    if session.whole:
        return f"Torque is off, the servos hold what they held before, {file}, the port is closed"
    return (
        f"The servos could not be set back, and may hold a torque and a part of a calibration: check power "
        f"and cables and run this again; {file}, the port is closed"
    )


if __name__ == "__main__":
    sys.exit(main())
