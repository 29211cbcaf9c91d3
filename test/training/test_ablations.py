# SPDX-License-Identifier: Apache-2.0
"""Pins the studies: nothing is trained or evaluated twice, and a result says all that made it."""

import json
import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from smolvla_mem_ros.evaluation import rollout
from smolvla_mem_ros.policy import checkpoint
from smolvla_mem_ros.sim.tasks import TASKS
from smolvla_mem_ros.training import ablations
from smolvla_mem_ros.training.ablations import STUDIES, plan, read_result, read_results
from smolvla_mem_ros.training.recipe import RECIPE

LATE = ("LateCue2",)


def test_studies_share_the_runs_that_they_have_in_common():
    studies = plan(RECIPE)
    trained = studies["main"]["memory", LATE, 0].training
    memory = {**RECIPE.memory, **trained.budget.memory}
    shared = 0
    for study in set(studies) - {"main", "oracle", "delay", "delay_all"}:
        usual = studies["delay" if study in ("gate", "pause") else "main"]["memory", LATE, 0]
        for variant in STUDIES[study].variants:
            is_usual = all(memory[field] == value for field, value in variant.memory.items())
            assert (studies[study][variant.label, LATE, 0] is usual) == is_usual
            shared += is_usual
    assert shared >= 6


def test_a_run_is_named_after_what_is_special_about_it():
    special = RECIPE.memory["num_mem_tokens"] + 1
    training = RECIPE.training(
        LATE, 7, {"num_mem_tokens": special, "mem_anchor": RECIPE.memory["mem_anchor"]}
    )
    assert training.name == f"runs/memory-num_mem_tokens_{special}-LateCue2-seed7"
    assert RECIPE.training(tuple(TASKS), 0, None).name == "runs/baseline-all-seed0"


def test_the_delays_are_measured_on_the_trainings_of_the_main_study():
    studies = plan(RECIPE)
    delayed, usual = studies["delay"]["memory", LATE, 1], studies["main"]["memory", LATE, 1]
    assert delayed.training == usual.training
    assert delayed.result() != usual.result()
    assert {delay for _, _, delay in delayed.cells} == {20, 40, 80, 160, 320}


def test_no_two_trainings_write_to_one_folder():
    trainings = {}
    for runs in plan(RECIPE).values():
        for run in runs.values():
            trainings.setdefault(run.training.output(), set()).add(tuple(run.training.identity))
    assert {len(each) for each in trainings.values()} == {1}
    assert len({each for (each,) in trainings.values()}) == len(trainings)


def test_no_two_runs_write_one_result():
    runs = {id(run): run for study in plan(RECIPE).values() for run in study.values()}.values()
    assert len({run.result() for run in runs}) == len(runs)


def test_the_main_study_has_every_task_alone_and_all_together_with_three_seeds():
    keys = plan(RECIPE)["main"]
    assert {tasks for _, tasks, _ in keys} == {*((task,) for task in TASKS), tuple(TASKS)}
    assert len(keys) == 2 * 7 * 3
    assert {mode for run in keys.values() for _, mode, _ in run.cells} == {"on", "off", "noise"}
    assert keys["no memory", LATE, 0].cells == [("LateCue2", "on", None)]


def test_a_result_names_no_place_of_this_machine(write_result, tmp_path):
    run = plan(RECIPE)["main"]["memory", tuple(TASKS), 0]
    text = write_result(run, tmp_path).read_text()
    for place in (tmp_path, Path.home(), Path.cwd(), Path(__file__).parents[2]):
        assert f"{place}/" not in text
    result = json.loads(text)
    assert shlex.split(result["commands"]["training"])[1:] == run.training.arguments()
    first = RECIPE.training((RECIPE.all_tasks.first,), 0, {})
    command = result["commands"][f"training on {RECIPE.all_tasks.first} first"]
    assert shlex.split(command) == ["lerobot-train", *first.arguments()]
    assert result["versions"]["lerobot"] == "0.6.1"
    assert result["training"] == {
        "steps": RECIPE.all_tasks.steps, "batch_size": RECIPE.all_tasks.batch_size, "seconds": 600.0,
        "base_steps": RECIPE.base.steps, "base_seconds": 900.0,
    }  # fmt: skip
    assert result["memory"]["num_mem_tokens"] == RECIPE.memory["num_mem_tokens"]


def test_a_result_is_stale_when_the_recipe_has_changed_but_not_for_the_log(write_result, tmp_path):
    def stale(**changes):
        changed = replace(RECIPE, **changes)
        return ablations.is_stale(plan(changed)["main"]["memory", LATE, 0], changed, result)

    result = read_result(write_result(plan(RECIPE)["main"]["memory", LATE, 0], tmp_path))
    assert not stale()
    assert not stale(loop={**RECIPE.loop, "log_freq": 7})
    assert stale(schedule={**RECIPE.schedule, "policy.optimizer_lr": 7})
    assert stale(base=replace(RECIPE.base, steps=7))
    assert stale(all=replace(RECIPE.all, seed=7))
    assert not stale(all_tasks=replace(RECIPE.all_tasks, steps=7))
    result["expert"] = {"reaction": 8}
    assert stale()


@pytest.mark.parametrize("text", ["", "[]", '{"scores": []}'])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not a result"):
        read_result(tmp_path / "x.json")


def test_results_are_found_under_every_study_that_uses_them(write_result, tmp_path):
    shared = plan(RECIPE)["main"]["memory", LATE, 0]
    write_result(shared, tmp_path)
    found = read_results(RECIPE, tmp_path)
    for study, runs in plan(RECIPE).items():
        assert list(found[study]) == [key for key, run in runs.items() if run == shared]


@pytest.fixture
def played(monkeypatch):
    """Evaluations without a simulation: each episode succeeds when its number is even."""
    calls = []

    def play(policy, stage, task, episodes, *, seed, delay, cue_visible, memory_mode, progress):
        calls.append((policy, task, memory_mode, delay, seed, cue_visible))
        progress(len(episodes))
        return [SimpleNamespace(success=e % 2 == 0, reward=1.0) for e in episodes]

    monkeypatch.setattr(rollout, "rollout", play)
    monkeypatch.setattr(rollout, "Stage", lambda size: nullcontext(size))
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device, tokens=None: tokens)
    return calls


def evaluate(run, scores, kept=None, progress=None, episodes=5):
    kept, progress = ([] if kept is None else kept), ([] if progress is None else progress)
    return ablations.evaluate(
        run, RECIPE, episodes, Path("x"), scores, lambda s: kept.append(list(s)), progress.append
    )


def test_every_cell_is_played_and_kept_as_soon_as_it_is_measured(played):
    run, kept, progress = plan(RECIPE)["main"]["memory", LATE, 0], [], []
    scores = evaluate(run, [], kept, progress)
    assert [(s["mode"], s["n"], s["successes"]) for s in scores] == [
        (m, 5, 3) for m in ("on", "off", "noise")
    ]
    assert [len(each) for each in kept] == [1, 2, 3]
    assert sum(progress) == 15
    low, high = scores[0]["interval"]
    assert 0 < low < 3 / 5 < high < 1
    # "off" runs the checkpoint without its memory, the others as trained, all on the same episodes.
    assert [(tokens, mode) for tokens, _, mode, *_ in played] == [(None, "on"), (0, "off"), (None, "noise")]
    assert {(seed, visible) for *_, seed, visible in played} == {(RECIPE.scoring_seed, False)}


def test_the_oracle_is_the_base_with_the_cue_lit(played):
    run, other = plan(RECIPE)["oracle"].values()
    assert run is other  # one run plays both tasks
    assert run.training == RECIPE.pretraining()
    assert [score["task"] for score in evaluate(run, [])] == list(RECIPE.visible.tasks)
    assert all(visible for *_, visible in played)


def test_what_was_measured_before_is_not_played_again(played):
    run, progress = plan(RECIPE)["delay"]["memory", LATE, 0], []
    first = evaluate(run, [])
    played.clear()
    assert evaluate(run, first[:3], progress=progress)[:3] == first[:3]
    assert len(played) == len(run.cells) - 3
    assert sum(progress) == 5 * len(run.cells)


def test_scores_of_another_number_of_episodes_do_not_count(played):
    run = plan(RECIPE)["main"]["memory", LATE, 0]
    scores = evaluate(run, evaluate(run, [], episodes=4))
    assert [score["n"] for score in scores] == [5, 5, 5]


def test_every_study_asks_a_question():
    assert all(study.question.endswith((".", "?")) for study in STUDIES.values())
