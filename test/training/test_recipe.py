# SPDX-License-Identifier: Apache-2.0
"""Pins the command lines: LeRobot understands them, and runs that are compared differ in nothing else."""

from dataclasses import replace
from pathlib import Path

import draccus
import pytest
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from smolvla_mem_ros.policy import SmolVLAMemConfig
from smolvla_mem_ros.sim.tasks import REACTION, TASKS
from smolvla_mem_ros.training import recipe
from smolvla_mem_ros.training.ablations import STUDIES, plan
from smolvla_mem_ros.training.recipe import QUICK, RECIPE, Budget, without


def understood(arguments):
    """The configuration that lerobot-train makes of ``arguments``; plugins are loaded and taken out first."""
    left = [a for a in arguments if "discover_packages_path" not in a]
    return draccus.parse(TrainPipelineConfig, args=left)


def test_the_episodes_of_a_task_are_those_that_show_it(demos, demos_folder):
    dataset = LeRobotDataset("local/demos", root=demos_folder)
    for task in demos.tasks:
        chosen = demos.numbers([task])
        assert len(chosen) == demos.episodes
        starts = [dataset.meta.episodes["dataset_from_index"][episode] for episode in chosen]
        assert {dataset[start]["task"] for start in starts} == {TASKS[task].instruction}


def policy_understood(arguments):
    """As :func:`understood`, only the policy's part, which is much quicker to parse."""
    mine = [a.replace("--policy.", "--") for a in arguments if a.startswith("--policy.")]
    return draccus.parse(SmolVLAMemConfig, args=without(mine, {"type": 0, "discover_packages_path": 0}))


@pytest.mark.parametrize("label", ["memory", "no memory"])
def test_lerobot_reads_what_the_recipe_says(label):
    training = plan(RECIPE)["main"][label, ("TakeItBack3",), 2].training
    config = understood(training.arguments(Path("work")))
    budget, memory = RECIPE.one_task, {**RECIPE.memory, **RECIPE.one_task.memory}
    assert (config.steps, config.batch_size, config.seed) == (budget.steps, budget.batch_size, 2)
    assert config.policy.scheduler_decay_steps == budget.steps
    assert config.policy.optimizer_lr == {**RECIPE.schedule, **budget.options}["policy.optimizer_lr"]
    assert str(config.policy.pretrained_path) == "work/base/checkpoints/last/pretrained_model"
    assert config.policy.vlm_model_name == "work/backbone"
    assert config.dataset.root == "work/demos_all"
    assert config.dataset.episodes == list(range(3, RECIPE.all.total, 6))
    assert config.output_dir == training.output(Path("work"))
    assert config.policy.type == ("smolvla_mem" if label == "memory" else "smolvla")
    if label == "memory":
        assert {name: getattr(config.policy, name) for name in memory} == memory


def test_the_base_starts_from_nothing_and_sees_all_of_its_demonstrations():
    config = understood(RECIPE.pretraining().arguments())
    assert config.policy.type == "smolvla"
    assert config.policy.pretrained_path is None
    assert config.dataset.episodes is None
    assert config.dataset.root == "outputs/demos_visible"


@pytest.mark.parametrize("study", sorted(STUDIES.keys() - {"main", "oracle", "delay", "delay_all"}))
def test_each_variant_of_a_study_changes_one_field_of_the_memory(study):
    usual = RECIPE.training(("LateCue2",), 0, {})
    for variant in STUDIES[study].variants:
        ((field, value),) = variant.memory.items()
        training = plan(RECIPE)[study][variant.label, ("LateCue2",), 0].training
        if value == {**RECIPE.memory, **usual.budget.memory}[field]:
            assert training == usual
        else:
            # All along the way from the base, which has no memory.
            for mine, theirs in zip(training.stages[1:], usual.stages[1:], strict=True):
                names = {a.split("=")[0] for a in set(mine.identity) ^ set(theirs.identity)}
                assert names - {"--policy.pretrained_path"} == {f"--policy.{field}", "--output_dir"}
            assert getattr(policy_understood(training.arguments()), field) == value


@pytest.mark.parametrize("tasks", [("TakeItBack3",), ("LateCue2",), tuple(TASKS)], ids=str)
def test_memory_and_baseline_differ_in_nothing_but_the_memory(tasks):
    one, other = (plan(RECIPE)["main"][label, tasks, 1].training for label in ("memory", "no memory"))
    differing = {a.split("=")[0].removeprefix("--") for a in set(one.identity) ^ set(other.identity)}
    differing -= {"policy.pretrained_path"}  # each its own
    fields = {f"policy.{name}" for name in RECIPE.memory}
    assert differing == fields | {"policy.type", "policy.discover_packages_path", "output_dir"}
    budgets = [[stage.budget for stage in training.stages] for training in (one, other)]
    assert budgets[0] == budgets[1]


def test_a_budget_may_set_options_and_memory_of_its_own():
    budget = Budget(7, 3, {"policy.optimizer_lr": 0.5}, {"mem_segments": 9})
    mine = replace(RECIPE, one_task=budget, longer={})
    arguments = mine.training(("LateCue2",), 0, {"num_mem_tokens": 2}).arguments()
    assert {"--steps=7", "--batch_size=3"} <= set(arguments)
    policy = policy_understood(arguments)
    assert (policy.optimizer_lr, policy.mem_segments, policy.num_mem_tokens) == (0.5, 9, 2)
    assert "--policy.mem_segments=9" not in mine.training(("LateCue2",), 0, None).arguments()
    # It is the usual there, so it gives no name.
    assert mine.training(("LateCue2",), 0, {"mem_segments": 9}).name == "runs/memory-LateCue2-seed0"


def test_a_task_with_a_longer_budget_has_it_with_memory_and_without():
    longer = replace(RECIPE, longer={"LateCue2": Budget(9, 4, memory={"mem_segments": 7})})
    with_memory, without_it = (longer.training(("LateCue2",), 0, memory) for memory in ({}, None))
    assert (with_memory.budget.steps, without_it.budget.steps) == (9, 9)
    assert policy_understood(with_memory.arguments()).mem_segments == 7
    assert longer.training(("CueRecall2",), 0, {}).budget == RECIPE.one_task
    assert longer.training(("CueRecall2", "LateCue2"), 0, {}).budget == RECIPE.all_tasks


@pytest.mark.parametrize("memory", [{}, {"num_mem_tokens": 2}, None])
@pytest.mark.parametrize(
    ("tasks", "before"),
    [
        (("LateCue2",), ["CueRecall3"]),
        (("CueRecallShuffled3",), ["CueRecall3"]),
        (("Sequence2of3",), ["CueRecall3", "LateCue2"]),
        (tuple(TASKS), ["CueRecall3", "LateCue2", "Sequence2of3"]),
    ],
)
def test_some_start_from_another_task_learned_with_the_same_memory_and_seed(tasks, before, memory):
    training = RECIPE.training(tasks, 2, memory)
    starts = [RECIPE.training((task,), 2, memory) for task in before]
    assert training.stages == [RECIPE.pretraining(), *starts, training]
    assert f"--policy.pretrained_path={starts[-1].checkpoint()}" in training.arguments()


def test_no_chunk_shows_a_reaction_to_what_has_not_been_seen():
    assert RECIPE.tiny["policy.chunk_size"] <= REACTION


def test_a_field_whose_default_is_not_in_the_recipe_is_refused():
    with pytest.raises(ValueError, match="mem_ema_rate"):
        RECIPE.training(("LateCue2",), 0, {"mem_ema_rate": 0.5})


def test_going_on_names_the_plugins_again():
    training = RECIPE.training(("LateCue2",), 0, {})
    assert training.resuming(Path("work")) == [
        "--dataset.discover_packages_path=smolvla_mem_ros.training",
        "--policy.discover_packages_path=smolvla_mem_ros.policy",
        "--config_path=work/runs/memory-LateCue2-seed0/checkpoints/last/pretrained_model/train_config.json",
        "--resume=true",
        "--batch_size=32",
    ]


def test_the_episodes_to_evaluate_on_are_in_no_demonstration():
    for each in (RECIPE, QUICK):
        assert each.scoring_seed not in (each.all.seed, each.visible.seed)


def test_the_tiny_options_are_printed_one_a_line_and_the_backbone_is_made(tmp_path, capsys):
    backbone = tmp_path / "a folder" / "backbone"
    assert recipe.main(["smolvla_mem", "--backbone", str(backbone)]) == 0
    lines = capsys.readouterr().out.splitlines()
    policy = policy_understood(lines)
    assert policy.vlm_model_name == str(backbone)
    assert (backbone / "tokenizer.json").is_file()
    assert policy.num_mem_tokens == RECIPE.memory["num_mem_tokens"]
    assert policy.push_to_hub is False

    recipe.main(["smolvla", "--backbone", str(backbone)])
    assert "mem" not in capsys.readouterr().out.replace(str(backbone), "")
