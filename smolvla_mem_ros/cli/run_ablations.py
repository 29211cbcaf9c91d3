# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates what the studies of the memory need. Run it again to go on where it was stopped."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from smolvla_mem_ros.cli.arguments import positive
from smolvla_mem_ros.cli.processes import Process, ProcessGroup
from smolvla_mem_ros.training import ablations, jobs
from smolvla_mem_ros.training.ablations import RESULTS, STUDIES, Run
from smolvla_mem_ros.training.jobs import Job, JobError, Listener
from smolvla_mem_ros.training.recipe import QUICK, RECIPE, WORK, Recipe, ensure_backbone

EXAMPLES = """\
examples:
  run_ablations --list
  run_ablations --study depth,tokens --jobs 2
  run_ablations --only 'memory-LateCue2-seed[01]'
  run_ablations --evaluate main/memory-LateCue2-seed0 --episodes 500
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="all", help=f"some of {','.join(STUDIES)}; or all (default)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only runs whose name, study/run, fits")
    parser.add_argument("--episodes", type=positive, default=100, help="of each evaluation (default 100)")
    parser.add_argument(
        "--jobs", type=positive, default=2, help="runs side by side, a thread each (default 2)"
    )
    parser.add_argument("--work", type=Path, help=f"demonstrations and trainings (default {WORK})")
    parser.add_argument("--results", type=Path, help=f"one JSON file a run (default {RESULTS})")
    parser.add_argument("--list", action="store_true", help="show the runs and how far they are")
    parser.add_argument("--dry_run", action="store_true", help="show the commands, start none")
    parser.add_argument("--keep", action="store_true", help="keep all checkpoints, not only the last")
    parser.add_argument("--quick", action="store_true", help="a smoke run: few demonstrations and steps; in "
                        f"{WORK}/quick unless told otherwise")  # fmt: skip
    parser.add_argument("--evaluate", metavar="RUN", help="only evaluate this run, which is trained, anew")
    args = parser.parse_args(argv)
    args.work = args.work or (WORK / "quick" if args.quick else WORK)
    args.results = args.results or (args.work / "results" if args.quick else RESULTS)
    recipe = QUICK if args.quick else RECIPE
    try:
        if args.evaluate:
            return evaluate(args, recipe)
        selected = _selected(args.study, args.only, recipe)
        if args.list:
            return show(selected, recipe, args)
        if args.dry_run:
            return dry_run(selected, recipe, args)
        return run(selected, recipe, args)
    except KeyboardInterrupt:
        print("run_ablations: stopped; the same command goes on", file=sys.stderr)
        return 130
    except (JobError, ValueError, OSError) as error:
        print(f"run_ablations: {error}", file=sys.stderr)
        return 1


def _selected(study: str, only: str, recipe: Recipe) -> list[Run]:
    """Each run once, in the order of the studies. Raises ValueError when there are none."""
    try:
        fits = re.compile(only).search
    except re.error as error:
        raise ValueError(f"--only {only} is no regular expression: {error}") from error
    names = list(STUDIES) if study == "all" else study.split(",")
    if unknown := set(names) - set(STUDIES):
        raise ValueError(f"there is no study {min(unknown)!r}; there are {', '.join(STUDIES)}")
    runs = {run.name: run for name in names for run in ablations.plan(recipe)[name].values()}
    selected = [run for name, run in runs.items() if fits(name)]
    if not selected:
        raise ValueError("no run fits --study and --only; --list shows their names")
    return selected


def show(selected: Sequence[Run], recipe: Recipe, args: argparse.Namespace) -> int:
    width = max(len(run.name) for run in selected)
    for run in selected:
        print(f"{run.name:{width}}  {_state(run, recipe, args)}")
    return 0


def _state(run: Run, recipe: Recipe, args: argparse.Namespace) -> str:
    if run.result(args.results).is_file():
        result = ablations.read_result(run.result(args.results))
        stale = " (made with another recipe)" if ablations.is_stale(run, recipe, result) else ""
        return _summary(result) + stale
    step = jobs.last_step(run.training.output(args.work))
    if not step:
        return "-"
    return f"{'training' if step < run.training.budget.steps else 'trained'}, step {step}"


def _summary(result: dict) -> str:
    """Successes of each mode, over all tasks and delays."""
    modes: dict[str, list[dict]] = {}
    for score in result["scores"]:
        modes.setdefault(score["mode"], []).append(score)
    return ", ".join(
        f"{mode} {sum(s['successes'] for s in scores)}/{sum(s['n'] for s in scores)}"
        for mode, scores in modes.items()
    )


def dry_run(selected: Sequence[Run], recipe: Recipe, args: argparse.Namespace) -> int:
    for chain in [*preparation(recipe, args.work, args.keep), *chains(selected, args)]:
        for job in chain:
            print(f"# {job.name}" + (": there already" if job.finished else ""))
    for run in selected:
        if not run.result(args.results).is_file():
            print(f"\n# {run.name}")
            print("\n".join(ablations.commands(run, recipe, args.episodes, args.work).values()))
    return 0


def run(selected: Sequence[Run], recipe: Recipe, args: argparse.Namespace) -> int:
    left = [run for run in selected if not run.result(args.results).is_file()]
    print(f"{len(selected)} runs, {len(selected) - len(left)} of them have their results")
    failures = make(preparation(recipe, args.work, args.keep), args.work, args.jobs) if left else []
    failures = failures or make(chains(left, args), args.work, args.jobs)
    stale = [
        run.name
        for run in selected
        if run.result(args.results).is_file()
        and ablations.is_stale(run, recipe, ablations.read_result(run.result(args.results)))
    ]
    if stale:
        print(f"made with another recipe, delete them to make them anew: {', '.join(stale)}", file=sys.stderr)
    for failure in failures:
        print(f"run_ablations: {failure}", file=sys.stderr)
    return 1 if failures else 0


def preparation(recipe: Recipe, work: Path, keep: bool) -> list[list[Job]]:
    """What every run needs: demonstrations, and the base that they start from."""
    return [
        [jobs.collecting(recipe.visible, work), jobs.training(recipe.pretraining(), work, keep)],
        [jobs.collecting(recipe.all, work)],
    ]


def chains(runs: Sequence[Run], args: argparse.Namespace) -> list[list[Job]]:
    """Trainings that build on one another, and the evaluations that need them."""
    found: dict[str, dict[str, Job]] = {}
    for run in runs:
        trainings = run.training.stages[1:] or [run.training]
        chain = found.setdefault(trainings[0].name, {})
        for training in trainings:
            chain.setdefault(training.name, jobs.training(training, args.work, args.keep))
        chain[run.name] = _evaluating(run, args)
    return [list(chain.values()) for chain in found.values()]


def _evaluating(run: Run, args: argparse.Namespace) -> Job:
    result, total = run.result(args.results), len(run.cells) * args.episodes

    def done() -> int:
        if result.is_file():
            return total
        kept = jobs.read_json(_scores(run, args.work)).get("scores", [])
        # It is not done before the result is written.
        return min(total - 1, args.episodes * sum(score["n"] == args.episodes for score in kept))

    options = ["--evaluate", run.name, "--episodes", str(args.episodes), "--work", str(args.work)]
    options += ["--results", str(args.results), *["--quick"] * args.quick]
    return Job(
        name=run.name,
        command=lambda: jobs.python("smolvla_mem_ros.cli.run_ablations", *options),
        total=total,
        unit="episode",
        done=done,
        bar="evaluating",
        log=_scores(run, args.work).with_suffix(".log"),
        seconds_each=0.3,
        result=lambda: _summary(ablations.read_result(result)),
    )


def _scores(run: Run, work: Path) -> Path:
    """Where an evaluation that was stopped keeps what it has."""
    return run.training.output(work).with_name(f"{run.name.replace('/', '.')}.scores.json")


def evaluate(args: argparse.Namespace, recipe: Recipe) -> int:
    """Evaluates one run in this process and writes its result."""
    # For a model this small one thread beats two.
    import torch

    torch.set_num_threads(1)
    run = next((run for run in _selected("all", "", recipe) if run.name == args.evaluate), None)
    if run is None:
        raise ValueError(f"there is no run {args.evaluate!r}; --list shows their names")
    if jobs.last_step(run.training.output(args.work)) < run.training.budget.steps:
        raise ValueError(f"{run.name} is not trained yet; run_ablations --only {run.name} does so")
    kept = _scores(run, args.work)

    def keep(scores: list[dict]) -> None:
        kept.write_text(json.dumps({"scores": scores}) + "\n")

    with tqdm(total=len(run.cells) * args.episodes, desc="evaluating", unit="ep") as bar:
        scores = ablations.evaluate(
            run,
            recipe,
            args.episodes,
            run.training.checkpoint(args.work),
            jobs.read_json(kept).get("scores", []),
            keep,
            bar.update,
        )
    stages = run.training.stages
    notes = [jobs.Note(training, args.work) for training in stages]
    base, *after = (note.seconds for note in notes)
    after = after or [base]  # the base itself is evaluated
    seconds = None if None in after else sum(after)
    result = ablations.record(run, recipe, args.episodes, scores, seconds, base, notes[-1].processes)
    path = run.result(args.results)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.rename(path)
    kept.unlink(missing_ok=True)
    print(f"{path}: {_summary(result)}")
    return 0


# Running jobs ---------------------------------------------------------------------------------------


def make(what: Sequence[Sequence[Job]], work: Path, parallel: int) -> list[str]:
    """Finishes all jobs, ``parallel`` chains at a time; the jobs of a chain follow one another.

    A job that fails ends its chain, not the others.

    Returns:
        What failed, a line each.

    Raises:
        JobError: something in ``work`` belongs to something else; nothing was started.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came; what ran was ended.
    """
    for chain in what:
        for job in chain:
            job.check()
    waiting = [left for chain in what if (left := [job for job in chain if not job.finished])]
    if not waiting:
        return []
    ensure_backbone(work / "backbone")
    return Crew(parallel).work(waiting)


@dataclass
class Sitting:
    """A job that is being worked on, and those that follow it."""

    job: Job
    then: list[Job]
    group: ProcessGroup
    listener: Listener
    began: float

    def end(self) -> None:
        """Ends its process if it still runs; it may have finished all the same."""
        self.group.stop()
        self.listener.close()
        self.job.spent(time.monotonic() - self.began)
        if self.job.finished:
            self.job.tidy()


class Crew:
    """Works on several chains of jobs at a time, and shows how far they are."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at_work: list[Sitting] = []
        self._stopped = False

    def work(self, waiting: list[list[Job]]) -> list[str]:
        """As :func:`make`, for jobs that are not finished."""
        everything = [job for chain in waiting for job in chain]
        failures: list[str] = []
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._stop) for number in numbers}
        total = sum(job.total * job.seconds_each for job in everything)
        bar_format = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        try:
            with tqdm(total=total, bar_format=bar_format, dynamic_ncols=True, mininterval=0.5) as bar:
                done = {job.name: job.done() for job in everything}
                bar.initial = sum(done[job.name] * job.seconds_each for job in everything)
                while (waiting or self._at_work) and not self._stopped:
                    while waiting and len(self._at_work) < self._size:
                        self._start(waiting.pop(0), failures)
                    time.sleep(0.1)
                    for sitting in [s for s in self._at_work if s.group.ended is not None]:
                        self._close(sitting, waiting, failures)
                        done[sitting.job.name] = sitting.job.done()
                    done.update({s.job.name: s.listener.done for s in self._at_work})
                    bar.n = sum(done[job.name] * job.seconds_each for job in everything)
                    bar.set_postfix_str(self._told(), refresh=False)
                    bar.update(0)
        finally:
            for sitting in self._at_work:
                sitting.end()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stopped:
            raise KeyboardInterrupt
        return failures

    def _stop(self, *_: object) -> None:
        self._stopped = True
        for sitting in self._at_work:
            sitting.group.request_stop()

    def _start(self, chain: list[Job], failures: list[str]) -> None:
        job, *then = chain
        try:
            command = job.command()
        except JobError as error:
            failures.append(f"{job.name}: {error}")
            return
        listener = Listener(job)
        process = Process(job.name, tuple(command), environment=jobs.ENVIRONMENT)
        group = ProcessGroup([process], name="run_ablations", output=listener)
        group.start()
        self._at_work.append(Sitting(job, then, group, listener, time.monotonic()))

    def _close(self, sitting: Sitting, waiting: list[list[Job]], failures: list[str]) -> None:
        self._at_work.remove(sitting)
        sitting.end()
        job = sitting.job
        if not job.finished:
            lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
            how = f"{sitting.group.ended} at {job.done()} of {job.total} {job.unit}s"
            failures.append(f"{how}; see {job.log}" + (f", which ends: {lines[-1]}" if lines else ""))
            tqdm.write(failures[-1])
            return
        tqdm.write(f"{job.name}: {job.result()}")
        if sitting.then:
            # Before those that have not begun, so that results come early.
            waiting.insert(0, sitting.then)

    def _told(self) -> str:
        return ", ".join(
            f"{s.job.name} {s.listener.done}" + (f" loss {s.listener.loss}" if s.listener.loss else "")
            for s in self._at_work
        )


if __name__ == "__main__":
    sys.exit(main())
