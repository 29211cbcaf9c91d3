# SPDX-License-Identifier: Apache-2.0
"""Where the package's config/ and launch/ lie: installed by colcon or pip, or in a source checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = "smolvla_mem_ros"

# The policy that the package ships, and the contract that it was trained for.
CHECKPOINT, CONTRACT = "config/checkpoints/demo", "config/memory_tasks.yaml"


def share_path(relative: str) -> Path:
    """The file ``relative`` (such as ``config/fastdds.xml``) of this package.

    Raises:
        FileNotFoundError: none of the places where it may be has it; names them.
    """
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    folders = [Path(prefix) / "share" / PACKAGE for prefix in prefixes]
    folders.append(Path(__file__).parents[1])
    for folder in folders:
        if (folder / relative).exists():
            return folder / relative
    raise FileNotFoundError(
        f"{relative} of {PACKAGE} is in none of {', '.join(map(str, folders))}; "
        "run through scripts/env, or source the workspace's setup file"
    )
