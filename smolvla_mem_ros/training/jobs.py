# SPDX-License-Identifier: Apache-2.0
"""Programs that take minutes: what they leave on disk, how far they are, and the command that goes on."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smolvla_mem_ros.sim.tasks import REACTION
from smolvla_mem_ros.training.recipe import Demos, Training, rendered

# One thread each: for a model this small one is faster than two, and several run side by side.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LP_NUM_THREADS": "0",  # of Mesa's renderer
    "HF_HUB_OFFLINE": "1",
}
LEROBOT_TRAIN = "lerobot.scripts.lerobot_train"
TORCHRUN = "torch.distributed.run"


class JobError(RuntimeError):
    """A job cannot be done; the message names the cause and the cure."""


@dataclass(frozen=True)
class Job:
    """A program to run to its end, possibly in several sittings.

    Args:
        name: for people.
        command: what to start now, given how far it is.
        total: how much there is to do; ``unit`` of it.
        done: how much of that is on disk.
        bar: how the program's own progress bar begins.
        log: what the program prints is added to this file.
        seconds_each: of a unit, roughly; only for showing how far many jobs are.
        check: raises JobError when what is on disk belongs to something else.
        spent: called with the seconds of each sitting.
        tidy: called when it is finished.
        result: what to say then.
    """

    name: str
    command: Callable[[], Sequence[str]]
    total: int
    unit: str
    done: Callable[[], int]
    bar: str
    log: Path
    seconds_each: float = 1.0
    check: Callable[[], None] = lambda: None
    spent: Callable[[float], None] = lambda seconds: None
    tidy: Callable[[], None] = lambda: None
    result: Callable[[], str] = lambda: "done"

    @property
    def finished(self) -> bool:
        return self.done() >= self.total


class Listener(io.TextIOBase):
    """Where a ProcessGroup writes a program's lines: the job's log gets all but the bar, which is read.

    Attributes:
        done: as the bar says.
        loss: what lerobot-train last gave, as text.
    """

    def __init__(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self.done, self.loss = job.done(), ""
        self._total = job.total
        self._bar = re.compile(rf"{re.escape(job.bar)}:.*?(\d+)/(\d+) \[[^\]]*\]?")
        self._log = job.log.open("a")

    def write(self, text: str) -> int:
        line = text.partition("] ")[2]  # after the name of the process
        if found := self._bar.search(line):
            # A bar of what was left counts from 0.
            self.done = self._total - int(found[2]) + int(found[1])
        if loss := re.search(r" loss:(\S+)", line):
            self.loss = loss[1]
        if rest := self._bar.sub("", line).strip():
            self._log.write(rest + "\n")
            self._log.flush()
        return len(text)

    def close(self) -> None:
        self._log.close()
        super().close()


def collecting(demos: Demos, work: Path) -> Job:
    """Plays demonstrations."""
    folder = work / demos.folder

    def check() -> None:
        there = read_json(folder / "recipe.json")
        wanted = {"seed": demos.seed, "cue_visible": demos.cue_visible, "tasks": list(demos.tasks)}
        wanted["reaction"] = REACTION
        if there and (there["recipe"] | wanted != there["recipe"] or there["episodes"] > demos.total):
            raise JobError(
                f"{folder} holds other demonstrations than the recipe's ({there['episodes']} episodes, "
                f"{there['recipe']}); delete it or give another --work"
            )

    return Job(
        name=demos.folder,
        command=lambda: python("smolvla_mem_ros.cli.collect_demos", *demos.arguments(work)),
        total=demos.total,
        unit="episode",
        done=lambda: read_json(folder / "recipe.json").get("episodes", 0),
        bar="episodes",
        log=work / f"{demos.folder}.log",
        seconds_each=0.3,
        check=check,
        result=lambda: f"{demos.total} episodes in {folder}",
    )


def training(it: Training, work: Path, keep: bool = False, processes: int = 1) -> Job:
    """Runs lerobot-train, from its last checkpoint when there is one.

    Args:
        keep: leaves the older checkpoints.
        processes: that share each batch, on a core each.

    Raises:
        ValueError: they cannot share it equally.
    """
    note, output, arguments = Note(it, work, processes), it.output(work), it.arguments(work, processes)

    def run(arguments: Sequence[str]) -> list[str]:
        if processes == 1:
            return python(LEROBOT_TRAIN, *arguments)
        shared = ("--standalone", f"--nproc_per_node={processes}", "-m", LEROBOT_TRAIN)
        return python(TORCHRUN, *shared, *arguments)

    def command() -> list[str]:
        note.begin()
        if last_step(output):
            return run(it.resuming(work, processes))
        if output.exists():
            # Ended in its first checkpoint; LeRobot refuses a folder that is there.
            if strange := {path.name for path in output.iterdir()} - {"checkpoints", "wandb"}:
                raise JobError(f"{output} holds {min(strange)}, which is not of a training; move it away")
            shutil.rmtree(output)
        return run(arguments)

    return Job(
        name=Path(it.name).name,
        command=command,
        total=it.budget.steps,
        unit="step",
        done=lambda: last_step(output),
        bar="Training",
        log=note.path.with_suffix(".log"),
        check=note.check,
        spent=note.add,
        tidy=lambda: None if keep else delete_old_checkpoints(output),
        result=lambda: f"{it.budget.steps} steps" + (f" in {note.seconds:.0f} s" if note.seconds else ""),
    )


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def last_step(output: Path) -> int:
    """The step of lerobot-train's last checkpoint in ``output``, 0 when there is none."""
    return read_json(output / "checkpoints" / "last" / "training_state" / "training_step.json").get("step", 0)


def delete_old_checkpoints(output: Path) -> None:
    """All but the last one."""
    last = (output / "checkpoints" / "last").resolve()
    for folder in output.glob("checkpoints/[0-9]*"):
        if folder.resolve() != last:
            shutil.rmtree(folder)


class Note:
    """A file beside a training's folder: the options it was begun with, the seconds it has taken, and in how
    many processes."""

    def __init__(self, it: Training, work: Path, processes: int = 1) -> None:
        self.path = it.output(work).with_name(Path(it.name).name + ".json")
        self._it, self._work, self._processes = it, work, processes

    def check(self) -> None:
        """Raises JobError when what was trained so far was begun with other options."""
        wanted, output = self._it.identity, self._it.output(self._work)
        if not last_step(output):
            return
        begun = read_json(self.path).get("options")
        if begun is None:
            begun, wanted = self._by_hand()
        if other := sorted(set(begun) ^ set(wanted)):
            raise JobError(
                f"{output} was begun with other options ({' '.join(other)}); delete it to train anew, or set "
                "the recipe back"
            )

    def _by_hand(self) -> tuple[list[str], list[str]]:
        """The main options of a training without a note, and those that the recipe wants."""
        it, config = self._it, read_json(self._it.checkpoint(self._work) / "train_config.json")
        begun = {name: config.get(name) for name in ("steps", "batch_size", "seed")}
        begun["policy.type"] = config.get("policy", {}).get("type")
        wanted = {"steps": it.budget.steps, "batch_size": it.budget.batch_size, "seed": it.seed}
        return rendered(begun), rendered({**wanted, "policy.type": it.policy})

    def begin(self) -> None:
        """Raises JobError as ``check``."""
        self.check()
        if not last_step(self._it.output(self._work)):
            self._write(0.0)
        elif not self.path.is_file():
            self._write(None)  # begun by hand, so how long it took is not known

    @property
    def seconds(self) -> float | None:
        """Of training so far, all sittings; None when not known."""
        return read_json(self.path).get("seconds")

    @property
    def processes(self) -> int:
        """That shared the batches of the last sitting."""
        return read_json(self.path).get("processes", 1)

    def add(self, seconds: float) -> None:
        if self.seconds is not None:
            self._write(round(self.seconds + seconds, 1))

    def _write(self, seconds: float | None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        note = {"options": self._it.identity, "seconds": seconds, "processes": self._processes}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(note, indent=2) + "\n")
        partial.rename(self.path)


def read_json(path: Path) -> dict:
    """Empty when there is no such file, or a broken one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
