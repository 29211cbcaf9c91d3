# SPDX-License-Identifier: Apache-2.0
"""Keeps one core busy with a policy's inference, without a pause: the shipped policy on random pictures.

    python -m smolvla_mem_ros.evaluation.inference_load 1

keeps processor 1 busy. It says ``ready`` when the policy is loaded, and then how many inferences there were.
"""

from __future__ import annotations

import itertools
import os
import sys
import time

import numpy as np
import torch

from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.runtime.contract import load_contract
from smolvla_mem_ros.runtime.engine import Engine
from smolvla_mem_ros.runtime.observation import Observation
from smolvla_mem_ros.share import CHECKPOINT, CONTRACT, share_path

SIZE = (48, 64)  # of the pictures that the policy knows


def main() -> None:
    """Runs until it is ended."""
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {int(sys.argv[1])})
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(share_path(CHECKPOINT), "cpu")
    contract = load_contract(share_path(CONTRACT), checkpoint.config)
    engine = Engine(checkpoint, contract)
    random, memory = np.random.default_rng(0), None
    print("ready", flush=True)
    told = time.monotonic()
    for step in itertools.count():
        images = {c.key: random.integers(0, 256, (*SIZE, 3), np.uint8) for c in contract.cameras}
        state = random.normal(0, 10, len(contract.joints)).astype(np.float32)
        memory = engine.infer(Observation(0, {}, images, state, "measure"), memory, 0, step).memory
        if time.monotonic() - told > 1:
            told = time.monotonic()
            print(f"inferences {step + 1}", flush=True)


if __name__ == "__main__":
    main()
