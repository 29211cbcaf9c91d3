# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 into the ROS graph, as the bytes that were recorded, with the stamps that they have.

Nodes that look at stamps, such as the policy node, need --clock and use_sim_time:=true; ``replay`` starts a
policy so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

EPILOG = """\
examples:
  play_bag outputs/monday
  play_bag outputs/monday --clock --topics /camera/front/image_raw /camera/wrist/image_raw /joint_states
  play_bag theirs.mcap --rate 0.5 --start 20 --loop --remap /cam:=/camera/front/image_raw
  play_bag outputs/monday --paused
  ros2 service call /bag_player/pause std_srvs/srv/SetBool '{data: false}'
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bag", help="a rosbag2 folder, or one .mcap or .db3 file")
    add("--rate", type=float, default=1.0, help="seconds of the bag in a second (default %(default)s)")
    add("--start", type=float, default=0.0, help="seconds into the bag to begin at (default %(default)s)")
    add("--loop", action="store_true", help="begin again at the end")
    add("--clock", action="store_true", help="publish /clock")
    add("--contract", help="play only what the policy of this contract (YAML) observes")
    add("--episodes", action="store_true", help="start and stop the policy's episodes as the bag tells")
    add("--subscribers", type=int, default=0, help="begin when every topic has so many (default: no waiting)")
    add("--topics", nargs="+", default=[], help="play only these")
    add("--remap", nargs="+", default=[], metavar="FROM:=TO", help="new names for topics of the bag")
    add("--paused", action="store_true", help="begin paused; the service bag_player/pause goes on")
    add("--salvage", action="store_true", help="play what can be read of a damaged bag")
    args = parser.parse_args(argv)
    if not 0.01 <= args.rate <= 100:
        parser.error("--rate must be between 0.01 and 100")
    if not 0 <= args.subscribers <= 100:
        parser.error("--subscribers must be between 0 and 100")
    if not args.start >= 0:
        parser.error("--start must be 0 or more")
    from rclpy.parameter import Parameter

    from smolvla_mem_ros.cli.launching import transport_environment
    from smolvla_mem_ros.nodes.bag_player import BagPlayer
    from smolvla_mem_ros.nodes.running import run_node

    os.environ.update(transport_environment(os.environ))
    values = {
        "bag": args.bag,
        "rate": args.rate,
        "start_offset": args.start,
        "loop": args.loop,
        "clock": args.clock,
        "contract": args.contract or "",
        "episodes": args.episodes,
        "subscribers": args.subscribers,
        "topics": args.topics or [""],
        "remap": args.remap or [""],
        "paused": args.paused,
        "salvage": args.salvage,
    }
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    return run_node(lambda: BagPlayer(parameter_overrides=overrides), [])


if __name__ == "__main__":
    sys.exit(main())
