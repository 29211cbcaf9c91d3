# SPDX-License-Identifier: Apache-2.0
"""Writes what the simulation's cameras see, side by side, into a PNG file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from smolvla_mem_ros.sim.cameras import Cameras
from smolvla_mem_ros.sim.scene import HOME, Scene


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m smolvla_mem_ros.sim.picture",
        description=__doc__,
        epilog="example: python -m smolvla_mem_ros.sim.picture docs/images/simulation.png",
    )
    parser.add_argument("file", type=Path, help="PNG file to write")
    parser.add_argument("--joints", type=float, nargs=6, default=HOME, metavar="RAD", help="default: home")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args(arguments)
    scene = Scene()
    scene.reset(arm=options.joints)
    with Cameras(scene.model, ("front", "wrist"), *options.size) as cameras:
        views = [cameras.render(scene.data, name) for name in cameras.names]
    picture = cv2.cvtColor(np.hstack(views), cv2.COLOR_RGB2BGR)
    options.file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(options.file), picture):
        print(f"picture: cannot write {options.file}; its name must end in .png", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
