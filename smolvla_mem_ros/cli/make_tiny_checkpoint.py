# SPDX-License-Identifier: Apache-2.0
"""Writes a tiny SmolVLA with memory, to try things with and without a download."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from smolvla_mem_ros.policy.configuration_smolvla_mem import MEMORY_UPDATES
from smolvla_mem_ros.policy.tiny import make_tiny_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: make_tiny_checkpoint outputs/tiny --num_mem_tokens 4 --mem_update gated",
    )
    parser.add_argument("folder", type=Path, help="where to write it; an older tiny checkpoint is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the training (default 0)")
    parser.add_argument("--steps", type=int, default=200, help="training steps, 0 for random (default 200)")
    parser.add_argument("--num_mem_tokens", type=int, default=4, help="0 for stock SmolVLA (default 4)")
    parser.add_argument("--mem_update", choices=MEMORY_UPDATES, default="gated", help="default gated")
    args = parser.parse_args(argv)
    # For a model this small one thread beats two.
    torch.set_num_threads(1)
    with tqdm(total=args.steps, desc="training", unit="step", disable=not args.steps) as bar:

        def progress(step: int, steps: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        try:
            folder = make_tiny_checkpoint(
                args.folder,
                seed=args.seed,
                steps=args.steps,
                progress=progress,
                num_mem_tokens=args.num_mem_tokens,
                mem_update=args.mem_update,
            )
        except (ValueError, OSError) as error:
            print(f"make_tiny_checkpoint: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
