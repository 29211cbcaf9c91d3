# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 to the policy, which runs live on the bag's time.

The cameras and joint states of the contract are played, and the episodes start, are reset and stop as they
did when the bag was recorded. Everything is in a namespace of its own (/replay), so that no arm moves.
``launch/replay.launch.py`` does the same where launch is installed. To measure a policy over a bag, faster
than it was recorded, use evaluate_bag.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from smolvla_mem_ros.cli import launching
from smolvla_mem_ros.cli.launching import LaunchArguments, LaunchError, NodeSpec, argument
from smolvla_mem_ros.share import CHECKPOINT, CONTRACT, PACKAGE, share_path

EXAMPLES = f"""examples:
  the demo's policy on a bag of the demo (make demo RECORD=outputs/demo_bag):
    replay bag:=outputs/demo_bag
  another policy at half speed, again and again:
    replay bag:=monday checkpoint:=my_checkpoint contract:=my_robot.yaml rate:=0.5 loop:=true
  a bag without episode events, its camera under another name:
    replay bag:=theirs.mcap task:="fold the towel" remap:=/cam_high:=/camera/front/image_raw
  in another terminal:
    ros2 topic echo /replay/policy/memory_state
    ros2 service call /replay/bag_player/pause std_srvs/srv/SetBool '{{data: true}}'
    ros2 service call /replay/policy/reset_memory std_srvs/srv/Trigger
  the same through launch, where it is installed:
    ros2 launch {PACKAGE} replay.launch.py bag:=outputs/demo_bag
"""


@dataclass(frozen=True)
class ReplayArguments(LaunchArguments):
    """What replay and replay.launch.py take."""

    bag: str = argument("", "rosbag2 folder, or one .mcap or .db3 file")
    checkpoint: str = argument("", "folder or hub name of the policy; the demo's by default")
    task: str = argument("", "what to do, in words; one episode then runs, whatever the bag tells")
    namespace: str = argument("replay", "put before the names of all nodes, topics and services")
    rate: float = argument(1.0, "seconds of the bag in a second")
    start_offset: float = argument(0.0, "seconds into the bag to begin at")
    loop: bool = argument(False, "begin again at the end")
    paused: bool = argument(False, "begin paused; the service bag_player/pause goes on")
    remap: str = argument("", "from:=to, new names for topics of the bag, apart by commas")
    salvage: bool = argument(False, "play what can be read of a damaged bag")


def process_list(arguments: ReplayArguments) -> tuple[NodeSpec, ...]:
    """What runs for ``arguments``, in the order of starting.

    Raises:
        LaunchError: something that is needed is missing or not there; names cause and cure.
    """
    if not arguments.bag:
        raise LaunchError("no bag is named: add bag:=FOLDER, or the path of an .mcap or .db3 file.")
    bag = os.path.expanduser(arguments.bag)
    if not os.path.exists(bag):
        raise LaunchError(f"bag {bag!r} is not there; give the path of a bag, from here or from /.")
    if not arguments.checkpoint:
        contract = arguments.contract or str(share_path(CONTRACT))
        arguments = replace(arguments, checkpoint=str(share_path(CHECKPOINT)), contract=contract)
    arguments = arguments.checked()
    player = arguments.node(
        "bag_player",
        "bag_player",
        bag=bag,
        contract=arguments.contract or str(share_path("config/contract.yaml")),
        clock=True,
        # The policy, and the recorder if there is one.
        subscribers=1 + bool(arguments.record),
        episodes=not arguments.task,
        rate=arguments.rate,
        start_offset=arguments.start_offset,
        loop=arguments.loop,
        paused=arguments.paused,
        remap=[rule.strip() for rule in arguments.remap.split(",")] if arguments.remap else "",
        salvage=arguments.salvage,
    )
    time = {"use_sim_time": True}
    return *arguments.recorder(**time), arguments.policy(autostart=True, **time), player


def main(argv: Sequence[str] | None = None) -> int:
    return launching.run("replay", f"{__doc__}\n{EXAMPLES}", ReplayArguments, process_list, argv)


if __name__ == "__main__":
    sys.exit(main())
