# SPDX-License-Identifier: Apache-2.0
"""Starts the policy and its arm, simulated or real.

``process_list`` says what runs and with which parameters, as plain data. ``launch/policy.launch.py``
renders that list with launch_ros; ``main`` here runs it where launch is not installed.
"""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smolvla_mem_ros.cli import launching
from smolvla_mem_ros.cli.launching import MAKE_TINY, LaunchArguments, LaunchError, NodeSpec, argument
from smolvla_mem_ros.share import PACKAGE, share_path
from smolvla_mem_ros.sim.tasks import TASKS

EXAMPLES = f"""examples:
  everything simulated:
    bringup sim:=true checkpoint:=outputs/tiny task:="put the cube in the box"
  a memory task in simulation (docs/simulation.md says how to start a trial):
    bringup sim:=true sim_task:=CueRecall2 contract:=config/memory_tasks.yaml checkpoint:=my_checkpoint
  the same, recorded into a rosbag2:
    bringup sim:=true checkpoint:=outputs/tiny record:=outputs/monday
  a real arm:
    bringup sim:=false port:=/dev/ttyACM0 calibration:=follower.json checkpoint:=my_checkpoint
  the same through launch, where it is installed:
    ros2 launch {PACKAGE} policy.launch.py sim:=true checkpoint:=outputs/tiny
"""


@dataclass(frozen=True)
class BringupArguments(LaunchArguments):
    """What bring-up and policy.launch.py take.

    ``sim_task`` too is handed on only when it is given, so that ``params_file`` can set it.
    """

    sim: bool = argument(True, "simulate the arm and its cameras; false drives a real arm")
    sim_task: str = argument("", f"memory task that the simulation plays: {', '.join(TASKS)}; empty for none")
    port: str = argument(
        "", "serial device of the arm, such as /dev/ttyACM0; in simulation the path to offer the device under"
    )
    calibration: str = argument(
        "", "LeRobot's calibration file of the arm (JSON); in simulation the package's own by default"
    )
    autostart: bool = argument(True, "the policy configures and activates itself")


def process_list(arguments: BringupArguments) -> tuple[NodeSpec, ...]:
    """What runs for ``arguments``, in the order of starting.

    Raises:
        LaunchError: something that is needed is missing or not there; names cause and cure.
    """
    arguments = arguments.checked("calibration")
    if arguments.sim_task and not arguments.sim:
        raise LaunchError("sim_task is played by the simulated arm: add sim:=true, or leave sim_task out.")
    if arguments.sim_task and arguments.sim_task not in TASKS:
        near = difflib.get_close_matches(arguments.sim_task, TASKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TASKS)}."
        raise LaunchError(f"there is no sim_task {arguments.sim_task!r}; {hint}")

    port, calibration = arguments.port, arguments.calibration
    if arguments.sim:
        port = port or simulated_port(arguments.namespace)
        calibration = calibration or str(share_path("config/calibration/so100_sim.json"))
    # What is not given here may stand in params_file; the nodes themselves check that.
    if not arguments.params_file:
        if not port:
            raise LaunchError("a real arm needs its serial device: add port:=/dev/ttyACM0 (or sim:=true).")
        if not calibration:
            raise LaunchError(
                "a real arm needs its calibration: add calibration:=FILE, the JSON file "
                "that so100_calibrate wrote."
            )
        if not arguments.checkpoint:
            raise LaunchError(
                "no policy is named: add checkpoint:=FOLDER (or a hub name); "
                f"this makes a tiny one: {MAKE_TINY} outputs/tiny"
            )

    bus = {"port": port, "calibration": calibration}
    simulation = arguments.node("so100_sim", "so100_sim", **bus, task=arguments.sim_task)
    return (
        *arguments.recorder(),
        *((simulation,) if arguments.sim else ()),
        arguments.node("so100_node", "so100", **bus),
        arguments.policy(autostart=arguments.autostart),
    )


def simulated_port(namespace: str) -> str:
    """A path for the emulated serial device that no other run on this machine uses."""
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    parts = ("so100", domain, *filter(None, namespace.split("/")), str(os.getpid()))
    return str(Path(tempfile.gettempdir()) / "_".join(parts))


def main(argv: Sequence[str] | None = None) -> int:
    text = f"{__doc__}\n{EXAMPLES}"
    return launching.run("bringup", text, BringupArguments, process_list, argv)


if __name__ == "__main__":
    sys.exit(main())
