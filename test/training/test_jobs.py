# SPDX-License-Identifier: Apache-2.0
"""Pins what a job finds on disk: when it begins, goes on, refuses, and how its program's progress is read."""

import json
import sys
from dataclasses import replace

import pytest

from smolvla_mem_ros.sim.tasks import REACTION
from smolvla_mem_ros.training import jobs
from smolvla_mem_ros.training.jobs import Job, JobError, Listener
from smolvla_mem_ros.training.recipe import QUICK, Budget

TRAINING = replace(QUICK, one_task=Budget(100, 2)).training(("LateCue2",), 0, {})


def save(work, step, training=TRAINING):
    """A checkpoint as lerobot-train leaves it, but for the weights."""
    checkpoints = training.output(work) / "checkpoints"
    folder = checkpoints / f"{step:06d}"
    (folder / "training_state").mkdir(parents=True)
    (folder / "pretrained_model").mkdir()
    config = {"steps": training.budget.steps, "batch_size": training.budget.batch_size, "seed": training.seed}
    text = json.dumps({**config, "policy": {"type": training.policy}})
    (folder / "pretrained_model" / "train_config.json").write_text(text)
    (folder / "training_state" / "training_step.json").write_text(json.dumps({"step": step}))
    (checkpoints / "last").unlink(missing_ok=True)
    (checkpoints / "last").symlink_to(folder.name)


def test_a_training_begins_goes_on_and_is_finished(tmp_path):
    job = jobs.training(TRAINING, tmp_path)
    begin = [sys.executable, "-m", "lerobot.scripts.lerobot_train", *TRAINING.arguments(tmp_path)]
    assert job.command() == begin
    assert (job.done(), job.finished) == (0, False)
    save(tmp_path, 40)
    assert (job.done(), job.finished) == (40, False)
    assert job.command()[3:] == TRAINING.resuming(tmp_path)
    save(tmp_path, 100)
    assert job.finished


def test_processes_share_a_batch_and_may_go_on_with_what_one_began(tmp_path):
    job = jobs.training(TRAINING, tmp_path, processes=2)
    command = job.command()
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert "--batch_size=1" in command and "--batch_size=2" not in command
    jobs.training(TRAINING, tmp_path).command()
    save(tmp_path, 40)
    job.check()
    assert "--batch_size=1" in job.command(), "else each would take a whole batch"
    assert job.command()[-len(TRAINING.resuming(tmp_path)) :] == TRAINING.resuming(tmp_path, processes=2)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a batch of 2 cannot be shared by 3 processes"):
        jobs.training(TRAINING, tmp_path, processes=3)


def test_a_first_checkpoint_that_was_cut_short_is_begun_anew(tmp_path):
    cut = TRAINING.output(tmp_path) / "checkpoints" / "000020" / "pretrained_model"
    cut.mkdir(parents=True)
    assert jobs.training(TRAINING, tmp_path).command()[3:] == TRAINING.arguments(tmp_path)
    assert not TRAINING.output(tmp_path).exists()


def test_somebody_elses_folder_is_not_deleted(tmp_path):
    other = TRAINING.output(tmp_path)
    other.mkdir(parents=True)
    (other / "thesis.tex").touch()
    with pytest.raises(JobError, match=r"thesis\.tex"):
        jobs.training(TRAINING, tmp_path).command()
    assert (other / "thesis.tex").exists()


def test_a_training_begun_with_other_options_is_refused_and_the_option_named(tmp_path):
    jobs.training(TRAINING, tmp_path).command()
    other = replace(TRAINING, options={**TRAINING.options, "policy.optimizer_lr": 7})
    # As long as nothing is on disk, nothing is lost.
    jobs.training(other, tmp_path).check()
    jobs.training(TRAINING, tmp_path).command()
    save(tmp_path, 100)
    with pytest.raises(JobError, match=r"--policy\.optimizer_lr=7.*delete it"):
        jobs.training(other, tmp_path).check()
    jobs.training(replace(TRAINING, loop={"log_freq": 1}), tmp_path).check()


def test_the_seconds_of_all_sittings_are_added_up(tmp_path):
    job = jobs.training(TRAINING, tmp_path)
    job.command()
    job.spent(10.0)
    save(tmp_path, 40)
    job.command()
    job.spent(2.5)
    note = jobs.Note(TRAINING, tmp_path)
    assert note.seconds == 12.5 and note.processes == 1


def test_a_training_that_is_begun_anew_counts_anew(tmp_path):
    job = jobs.training(TRAINING, tmp_path)
    job.command()
    job.spent(10.0)
    job.command()
    assert jobs.Note(TRAINING, tmp_path).seconds == 0


def test_how_long_a_training_took_that_was_begun_by_hand_is_not_known(tmp_path):
    save(tmp_path, 40)
    job = jobs.training(TRAINING, tmp_path)
    job.check()
    job.command()
    job.spent(10.0)
    assert jobs.Note(TRAINING, tmp_path).seconds is None
    assert job.result() == "100 steps"


def test_a_training_that_was_begun_by_hand_with_another_budget_is_refused(tmp_path):
    save(tmp_path, 40)
    other = replace(TRAINING, budget=Budget(50, 2))
    with pytest.raises(JobError, match=r"--steps=100 --steps=50"):
        jobs.training(other, tmp_path).check()


@pytest.mark.parametrize(
    ("keep", "left"), [(False, {"000060", "last"}), (True, {"000040", "000060", "last"})]
)
def test_old_checkpoints_are_deleted_unless_kept(tmp_path, keep, left):
    save(tmp_path, 40)
    save(tmp_path, 60)
    jobs.training(TRAINING, tmp_path, keep).tidy()
    assert {path.name for path in (TRAINING.output(tmp_path) / "checkpoints").iterdir()} == left


def collected(work, demos, episodes, **changes):
    folder = work / demos.folder
    folder.mkdir()
    made_with = {
        "seed": demos.seed,
        "cue_visible": demos.cue_visible,
        "tasks": list(demos.tasks),
        "reaction": REACTION,
        "width": 64,
    }
    (folder / "recipe.json").write_text(json.dumps({"recipe": made_with | changes, "episodes": episodes}))
    return jobs.collecting(demos, work)


def test_demonstrations_are_counted(tmp_path):
    job = collected(tmp_path, QUICK.all, 4)
    job.check()
    assert (job.done(), job.total, job.finished) == (4, 6, False)
    assert job.command()[3:] == QUICK.all.arguments(tmp_path)


@pytest.mark.parametrize(
    ("episodes", "changes"), [(7, {}), (6, {"seed": 99}), (2, {"cue_visible": True}), (6, {"reaction": 8})]
)
def test_other_demonstrations_in_the_folder_are_refused(tmp_path, episodes, changes):
    job = collected(tmp_path, QUICK.all, episodes, **changes)
    with pytest.raises(JobError, match=r"other demonstrations .* delete it"):
        job.check()


@pytest.fixture
def listener(tmp_path):
    job = Job("x", lambda: [], 100, "step", lambda: 0, "Training", tmp_path / "logs" / "x.log")
    with Listener(job) as it:
        yield it


def test_progress_and_loss_are_read_off_what_lerobot_train_prints(listener):
    for line in (
        "decoding observation.images.front:  50%|#####     | 9/18 [00:00<00:00, 9.0img/s]",
        "Training:  10%|#         | 10/100 [00:03<00:27,  3.3step/s]",
        "Training:  12%|#         | 12/100 [00:04<00:27,  3.3step/s]INFO 2026-01-01 step:12 loss:0.108 lr:1",
    ):
        listener.write(f"[x] {line}\n")
    assert (listener.done, listener.loss) == (12, "0.108")


def test_the_bar_of_a_resumed_training_counts_what_was_left(listener):
    listener.write("[x] Training:  50%|#####     | 20/40 [00:03<00:27,  3.3step/s]\n")
    assert listener.done == 80


def test_the_log_holds_the_lines_but_not_the_bar(listener, tmp_path):
    for line in (
        "Creating dataset",
        "Training:   0%|          | 0/100 [00:00<?, ?step/s]",
        "Training:  10%|#         | 10/100 [00:03<00:27,  3.3step/s]INFO loss:0.1",
        "",
        "ValueError: a [bracket] remains",
    ):
        listener.write(f"[x] {line}\n")
    log = (tmp_path / "logs" / "x.log").read_text()
    assert log == "Creating dataset\nINFO loss:0.1\nValueError: a [bracket] remains\n"
