# SPDX-License-Identifier: Apache-2.0
"""Pins the running of many jobs, and the whole way from demonstrations to a result and a small checkpoint."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from smolvla_mem_ros.cli import collect_demos, run_ablations, train_memory_tasks
from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.training import jobs
from smolvla_mem_ros.training.ablations import plan
from smolvla_mem_ros.training.jobs import Job, JobError
from smolvla_mem_ros.training.recipe import QUICK

# Counts in a file up to a number; appends its start and end to a common diary.
COUNT = """
import sys, time
from pathlib import Path
file, diary, until, pause = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
def note(word):
    with diary.open("a") as f: f.write(f"{file.name} {word}\\n")
note("begins")
try:
    for n in range(int(file.read_text()) if file.exists() else 0, until):
        time.sleep(pause)
        file.write_text(str(n + 1))
except KeyboardInterrupt:
    note("is stopped")
    sys.exit(130)
note("ends")
if until < 3: sys.exit("it went wrong")
"""


@pytest.fixture
def counting(tmp_path):
    """Jobs that count to three; one with ``until`` less goes wrong there."""

    def make(name, until=3, pause=0.02, check=lambda: None):
        file = tmp_path / name
        arguments = [file, tmp_path / "diary", until, pause]
        return Job(
            name=name,
            command=lambda: [sys.executable, "-S", "-c", COUNT, *map(str, arguments)],
            total=3,
            unit="step",
            done=lambda: int(file.read_text() or 0) if file.exists() else 0,
            bar="counting",
            log=tmp_path / f"{name}.log",
            check=check,
        )

    return make


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(run_ablations, "ensure_backbone", lambda folder: folder)

    def run(chains, parallel=2):
        return run_ablations.make(chains, tmp_path, parallel)

    return run


def diary(tmp_path):
    return (tmp_path / "diary").read_text().splitlines()


def test_the_jobs_of_a_chain_follow_one_another(make, counting, tmp_path):
    assert make([[counting("a"), counting("b")]]) == []
    assert diary(tmp_path) == ["a begins", "a ends", "b begins", "b ends"]


@pytest.mark.parametrize("parallel", [1, 2])
def test_no_more_jobs_run_at_a_time_than_allowed(make, counting, tmp_path, parallel):
    assert make([[counting(name, pause=0.1)] for name in "abc"], parallel) == []
    at_work, most = 0, 0
    for line in diary(tmp_path):
        at_work += 1 if line.endswith("begins") else -1
        most = max(most, at_work)
    assert most == parallel
    assert len(diary(tmp_path)) == 6


def test_a_job_that_fails_ends_its_chain_and_not_the_others(make, counting, tmp_path, capsys):
    (failure,) = make([[counting("bad", until=1), counting("after")], [counting("good")]], 1)
    assert failure.startswith("bad ended with exit code 1 at 1 of 3 steps; see ")
    assert failure.endswith("which ends: it went wrong")
    assert diary(tmp_path)[-1] == "good ends"
    assert "after begins" not in diary(tmp_path)
    assert "good: done" in capsys.readouterr().out


def test_what_is_done_is_not_done_again(make, counting, tmp_path):
    make([[counting("a")]])
    (tmp_path / "diary").unlink()
    assert make([[counting("a"), counting("b")]]) == []
    assert diary(tmp_path) == ["b begins", "b ends"]


def test_nothing_is_started_when_something_in_the_folder_is_foreign(make, counting, tmp_path):
    def refuse():
        raise JobError("not ours")

    with pytest.raises(JobError, match="not ours"):
        make([[counting("a")], [counting("b", check=refuse)]])
    assert not (tmp_path / "diary").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_and_keeps_what_is_done(make, counting, tmp_path, number):
    before = signal.getsignal(number)

    def interrupt():
        deadline = time.monotonic() + 30
        while not ((tmp_path / "a").exists() and (tmp_path / "b").exists()) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    chains = [[counting(name, pause=0.5)] for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        make(chains)
    thread.join()
    assert sorted(diary(tmp_path)) == ["a begins", "a is stopped", "b begins", "b is stopped"]
    assert signal.getsignal(number) == before
    done = int((tmp_path / "a").read_text())
    assert 0 < done < 3

    assert make([[counting(name)] for name in "abc"]) == []
    assert [line for line in diary(tmp_path)[4:] if line.startswith("a")] == ["a begins", "a ends"]


@pytest.mark.parametrize("program", [run_ablations, train_memory_tasks])
def test_a_stop_is_told_with_exit_code_130(program, monkeypatch, capsys, tmp_path):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "make", stopped)
    assert program.main(["--quick", "--work", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("stopped; the same command goes on\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--study", "breadth"], "there is no study 'breadth'; there are main, oracle, delay"),
        (["--only", "nothing-like-it"], "no run fits"),
        (["--only", "("], "no regular expression"),
        (["--evaluate", "main/nobody"], "there is no run 'main/nobody'; --list"),
        (["--evaluate", "main/memory-LateCue2-seed0"], "is not trained yet; run_ablations --only"),
    ],
)
def test_a_wrong_option_is_told_in_one_line_with_the_cure(tmp_path, capsys, arguments, words):
    assert run_ablations.main([*arguments, "--work", str(tmp_path), "--results", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_dry_run_shows_the_commands_and_writes_nothing(tmp_path, capsys):
    options = ["--only", "depth/", "--work", str(tmp_path / "w"), "--results", str(tmp_path / "r")]
    assert run_ablations.main([*options, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("--policy.mem_backprop_depth=") == 2 * 2  # LateCue2 and what it starts from
    assert f"--output_dir={tmp_path / 'w'}/runs/memory-backprop_depth_1-LateCue2-seed0" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_chain_trains_once_for_all_evaluations_that_need_it(tmp_path):
    args = type("Args", (), dict(work=tmp_path, results=tmp_path, episodes=2, keep=False, quick=True))
    studies = plan(QUICK)
    key = ("memory", ("LateCue2",), 0)
    (chain,) = run_ablations.chains([studies["main"][key], studies["delay"][key]], args)
    assert [job.name for job in chain] == [
        "memory-LateCue2-seed0", "main/memory-LateCue2-seed0", "delay/memory-LateCue2-seed0"
    ]  # fmt: skip


def test_a_training_follows_the_one_that_it_starts_from_in_one_chain(tmp_path):
    args = type("Args", (), dict(work=tmp_path, results=tmp_path, episodes=2, keep=False, quick=True))
    main = plan(QUICK)["main"]
    first, together = main["memory", (QUICK.all_tasks.first,), 0], main["memory", tuple(QUICK.all.tasks), 0]
    trainings = [Path(run.training.name).name for run in (first, together)]
    for runs in ([first, together], [together, first], [together]):
        (chain,) = run_ablations.chains(runs, args)
        at = {job.name: i for i, job in enumerate(chain)}
        assert at.keys() == {*trainings, *(run.name for run in runs)}
        assert at[trainings[0]] < at[trainings[1]] < at[together.name]
        assert at[trainings[0]] < at.get(first.name, len(chain))
    two = [main["memory", ("LateCue2",), seed] for seed in (0, 1)]
    assert [len(chain) for chain in run_ablations.chains(two, args)] == [2, 2]


@pytest.mark.parametrize(("kept", "done"), [([], 0), ([2, 2], 4), ([9, 9, 9], 0), ([2, 2, 2], 5)])
def test_an_evaluation_is_not_done_before_its_result_is_written(tmp_path, kept, done):
    args = type("Args", (), dict(work=tmp_path, results=tmp_path, episodes=2, keep=False, quick=True))
    run = plan(QUICK)["main"]["memory", ("LateCue2",), 0]
    _, evaluation = run_ablations.chains([run], args)[0]
    evaluation.log.parent.mkdir()
    evaluation.log.with_suffix(".json").write_text(json.dumps({"scores": [{"n": n} for n in kept]}))
    assert (evaluation.done(), evaluation.total, evaluation.finished) == (done, 6, False)
    run.result(tmp_path).parent.mkdir()
    run.result(tmp_path).write_text("{}")
    assert evaluation.finished


# The real thing, as small as it gets -----------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What train_memory_tasks --quick leaves."""
    folder = tmp_path_factory.mktemp("quick")
    before = Path.cwd()
    os.chdir(folder)
    # Half of the demonstrations are there already, which saves a start.
    assert collect_demos.main(QUICK.all.arguments(Path("outputs/quick"))) == 0
    try:
        assert train_memory_tasks.main(["--quick", "--jobs", "2"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.mark.timeout(600)
def test_one_command_makes_a_small_checkpoint_of_all_tasks(work, tmp_path, monkeypatch):
    packed = work / "outputs" / "quick" / "memory_tasks"
    moved = tmp_path / "elsewhere"
    moved.symlink_to(packed)
    monkeypatch.chdir(tmp_path)
    checkpoint = load_checkpoint(moved, "cpu")
    assert checkpoint.config.num_mem_tokens == QUICK.memory["num_mem_tokens"]
    assert sum(path.stat().st_size for path in packed.rglob("*") if path.is_file()) < 8 * 2**20
    assert (packed / "README.md").is_file()
    training = QUICK.training(QUICK.all.tasks, 0, {})
    for stage in training.stages:
        assert jobs.last_step(stage.output(work / "outputs" / "quick")) == stage.budget.steps


@pytest.mark.timeout(600)
def test_the_same_command_again_starts_nothing(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    monkeypatch.setattr(run_ablations.Crew, "work", lambda *_: pytest.fail("started a job"))
    assert train_memory_tasks.main(["--quick"]) == 0
    assert "outputs/quick/memory_tasks" in capsys.readouterr().out


@pytest.mark.timeout(600)
def test_a_trained_run_is_evaluated_recorded_and_then_skipped(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    options = ["--quick", "--only", "^main/memory-all-seed0$", "--episodes", "1"]
    assert run_ablations.main(options) == 0
    shown = capsys.readouterr().out
    assert "main/memory-all-seed0: on " in shown
    # Trained before, by train_memory_tasks.
    assert "steps in" not in shown

    path = work / "outputs" / "quick" / "results" / "main" / "memory-all-seed0.json"
    result = json.loads(path.read_text())
    cells = {(score["task"], score["mode"], score["n"]) for score in result["scores"]}
    assert cells == {(task, mode, 1) for task in QUICK.all.tasks for mode in ("on", "off", "noise")}
    assert result["training"]["seconds"] > 0
    assert str(work) not in path.read_text()
    assert not list((work / "outputs" / "quick" / "runs").glob("*scores.json"))

    monkeypatch.setattr(run_ablations.Crew, "work", lambda *_: pytest.fail("started a job"))
    assert run_ablations.main(options) == 0
    assert capsys.readouterr().out == "1 runs, 1 of them have their results\n"
    run_ablations.main([*options, "--list"])
    assert capsys.readouterr().out.startswith("main/memory-all-seed0  on ")

    assert train_memory_tasks.main(["--quick"]) == 0
    assert "| LateCue2 | noise | " in (work / "outputs" / "quick" / "memory_tasks" / "README.md").read_text()
