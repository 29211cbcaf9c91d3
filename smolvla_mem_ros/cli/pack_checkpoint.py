# SPDX-License-Identifier: Apache-2.0
"""Makes a self-contained folder of at most 8 MiB of a tiny policy that lerobot-train wrote."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smolvla_mem_ros.policy.checkpoint import CheckpointError
from smolvla_mem_ros.training.ablations import read_result
from smolvla_mem_ros.training.packing import MAX_BYTES, PackError, pack

EXAMPLE = """\
example:
  pack_checkpoint outputs/runs/memory-all-seed0/checkpoints/last/pretrained_model outputs/memory_tasks \\
      --results benchmarks/results/memory/main/memory-all-seed0.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a folder pretrained_model of lerobot-train")
    parser.add_argument("folder", type=Path, help="where to write it; an older packed one is replaced")
    parser.add_argument("--results", type=Path, help="what run_ablations recorded of it, for the model card")
    args = parser.parse_args(argv)
    try:
        result = read_result(args.results) if args.results else None
        folder = pack(args.source, args.folder, result, MAX_BYTES)
    except (PackError, CheckpointError, ValueError, OSError) as error:
        print(f"pack_checkpoint: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
