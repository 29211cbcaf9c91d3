# SPDX-License-Identifier: Apache-2.0
"""Makes a self-contained, small folder of what lerobot-train wrote, with a model card."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from smolvla_mem_ros.sim.tasks import TASKS

# What the package may ship.
MAX_BYTES = 8 * 2**20
CARD = "README.md"


class PackError(ValueError):
    """A checkpoint cannot be packed; the message names the cause and the cure."""


def pack(source: Path, folder: Path, result: dict | None = None, max_bytes: int = MAX_BYTES) -> Path:
    """Write ``folder``: weights, processors, backbone and card, none of which names another place.

    Args:
        source: a ``pretrained_model`` of lerobot-train whose backbone is a folder.
        folder: replaced when it already is such a checkpoint, refused when it is anything else.
        result: what run_ablations recorded of this training, for the card.

    Raises:
        PackError: too large, no local backbone, ``folder`` holds something else, or ``result`` is of another
            training.
        CheckpointError: ``source`` cannot be loaded.
    """
    # They take seconds to import, and lerobot-train imports this module with the plugin.
    from smolvla_mem_ros.policy.checkpoint import load_checkpoint
    from smolvla_mem_ros.policy.modeling_smolvla_mem import resolve_vlm
    from smolvla_mem_ros.policy.tiny import BACKBONE

    if folder.exists() and any(folder.iterdir()) and not (folder / BACKBONE).is_dir():
        raise PackError(f"{folder} is not empty and not a packed checkpoint; name another folder")
    train_config = source / "train_config.json"
    trained = json.loads(train_config.read_text()) if train_config.is_file() else {}
    if result and trained:
        _check_same(trained, result)
    checkpoint = load_checkpoint(source, "cpu")
    config = checkpoint.config
    backbone = Path(resolve_vlm(config.vlm_model_name, source))
    if not backbone.is_dir():
        raise PackError(
            f"the backbone {config.vlm_model_name} of {source} is no folder here; run this where "
            "lerobot-train was started (a policy on a backbone from the hub is too large to pack)"
        )

    building = folder.with_name(folder.name + ".partial")
    shutil.rmtree(building, ignore_errors=True)
    # Its weights, if it has any, are in the policy's.
    shutil.copytree(backbone, building / BACKBONE, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    # Relative names, so that the folder can be moved.
    config.vlm_model_name, config.pretrained_path = BACKBONE, None
    for step in checkpoint.preprocessor.steps:
        if hasattr(step, "tokenizer_name"):
            step.tokenizer_name = BACKBONE
    checkpoint.policy.save_pretrained(building)
    checkpoint.preprocessor.save_pretrained(building)
    checkpoint.postprocessor.save_pretrained(building)
    parameters = sum(p.numel() for p in checkpoint.policy.parameters())
    (building / CARD).write_text(card(parameters, trained, result))

    size = sum(path.stat().st_size for path in building.rglob("*") if path.is_file())
    if size > max_bytes:
        shutil.rmtree(building)
        raise PackError(
            f"{source} packs to {size / 2**20:.1f} MiB and {max_bytes / 2**20:.0f} MiB are allowed; train a "
            "smaller model"
        )
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    return folder


def _check_same(trained: dict, result: dict) -> None:
    ours = {"policy": trained["policy"]["type"], "seed": trained["seed"], "steps": trained["steps"]}
    theirs = {"policy": result["policy"], "seed": result["seed"], "steps": result["training"]["steps"]}
    if ours != theirs:
        raise PackError(f"the results are of another training: {theirs}, the checkpoint is {ours}")


def card(parameters: int, trained: dict, result: dict | None) -> str:
    """The model card.

    Args:
        trained: lerobot-train's configuration.
        result: as for :func:`pack`.
    """
    policy, dataset = trained.get("policy", {}), trained.get("dataset", {})
    facts = {
        "policy": f"{policy.get('type', 'unknown')}, {parameters:,} weights",
        "data": dataset.get("repo_id", "unknown"),
        "seed": trained.get("seed", "unknown"),
        "steps": f"{trained.get('steps', 'unknown')}, batch size {trained.get('batch_size', 'unknown')}",
    }
    scores, commands = "Not measured.", "Not recorded."
    if result:
        training = result["training"]
        seconds, base = training["seconds"], training["base_seconds"]
        if seconds is not None:
            before = "" if base is None else f", after {base / 60:.0f} of the base"
            facts["training time"] = f"{seconds / 60:.0f} minutes{before}"
        machine = result["machine"]
        facts["machine"] = f"{machine['cpu']}, {machine['threads_per_run']} of {machine['cores']} cores"
        facts["versions"] = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        scores = _scores(result)
        # Processes that share a batch are told their shares.
        facts["steps"] = f"{training['steps']}, batch size {training['batch_size']}"
        commands = _commands(result)
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
library_name: lerobot
pipeline_tag: robotics
license: apache-2.0
tags: [robotics, lerobot, smolvla, memory]
---

# A tiny SmolVLA for the memory tasks

SmolVLA's architecture at a tiny size, with recurrent memory tokens, trained from random weights on
demonstrations of the simulated SO-100. It knows these tasks and nothing else.

| | |
|---|---|
{rows}

## Scores

{scores}

## How it was made

{commands}

## Use

This folder holds all it needs, the backbone's configuration and tokenizer included, and works wherever it
is moved:

```python
from smolvla_mem_ros.policy.checkpoint import load_checkpoint

checkpoint = load_checkpoint("this/folder")
```
"""


def _scores(result: dict) -> str:
    evaluation = result["evaluation"]
    rows = [
        f"| {s['task']} | {s['mode']} | {s['successes']}/{s['n']} | "
        f"{100 * s['interval'][0]:.0f} to {100 * s['interval'][1]:.0f} % |"
        for s in result["scores"]
    ]
    return "\n".join(
        [
            f"Successful episodes of {evaluation['episodes']} that are in no demonstration (seed "
            f"{evaluation['seed']}), with 95 % intervals. Memory `on` is as trained; `off` runs the same "
            "weights without it, `noise` replaces what is remembered.",
            "",
            "| task | memory | successes | interval |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _commands(result: dict) -> str:
    steps = ["```", *map(_short, result["commands"].values()), "```"]
    if result["policy"] == "smolvla_mem" and set(result["tasks"]) == set(TASKS):
        jobs = result["machine"]["threads_per_run"]
        whole = (
            f"`train_memory_tasks --seed {result['seed']} --jobs {jobs}` does all of this but the last line:"
        )
        steps = [whole, "", *steps]
    return "\n".join(steps)


def _short(command: str) -> str:
    """Without the list of episodes, which may be a thousand numbers."""
    return re.sub(r"(--dataset\.episodes=\[\d+,\d+,)[\d,]*(,\d+\])", r"\1...\2", command)
