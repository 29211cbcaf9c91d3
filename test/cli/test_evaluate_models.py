# SPDX-License-Identifier: Apache-2.0
"""evaluate_models plays real episodes with real checkpoints, and writes what it says it writes."""

import json

import cv2
import pytest
from lerobot.configs import FeatureType, PolicyFeature

from smolvla_mem_ros.cli import evaluate_models
from smolvla_mem_ros.cli.evaluate_models import main
from smolvla_mem_ros.evaluation.statistics import wilson
from smolvla_mem_ros.policy.tiny import CAMERAS, make_tiny_checkpoint

COSTS = {"inference_time_ms", "peak_memory_mb", "num_parameters"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of a policy with memory and of a stock one, both with random weights."""
    features = {key: PolicyFeature(FeatureType.VISUAL, (3, 48, 64)) for key in CAMERAS}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (6,))
    folder = tmp_path_factory.mktemp("policies")
    values = {"steps": 0, "chunk_size": 16, "n_action_steps": 8, "num_steps": 2, "input_features": features}
    return {
        name: make_tiny_checkpoint(folder / name, num_mem_tokens=n, **values)
        for name, n in (("memory", 4), ("baseline", 0))
    }


@pytest.fixture(scope="module")
def compare(checkpoints):
    """Runs the command on both policies; returns its exit code."""

    def run(output, *options):
        return main(
            [
                *("--memory_path", str(checkpoints["memory"])),
                *("--baseline_path", str(checkpoints["baseline"])),
                *("--n_episodes", "2", "--device", "cpu", "--output_file", str(output), *options),
            ]
        )

    return run


@pytest.fixture(scope="module")
def results(compare, tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "deeper" / "results.json"
    assert compare(output, "--task", "CueRecall2,CueRecall3", "--memory_mode", "on,noise,off") == 0
    return output


def test_the_json_holds_scores_and_costs_of_both_and_their_comparison(results):
    found = json.loads(results.read_text())
    for model, modes in (("baseline", ["on"]), ("memory", ["on", "noise", "off"])):
        assert found[model].keys() >= COSTS | {"success_rate", "success_ci95", "mean_reward"}
        assert found[model]["num_parameters"] > 1_000_000
        assert 0 < found[model]["inference_time_ms"]["p25"] <= found[model]["inference_time_ms"]["p75"]
        for scores in found[model]["tasks"].values():
            assert list(scores) == modes
            for score in scores.values():
                assert score["n_episodes"] == 2
                assert score["success_ci95"] == list(wilson(score["successes"], 2))
                assert sum(score["endings"].values()) == 2
    assert list(found["memory"]["tasks"]) == ["CueRecall2", "CueRecall3"]
    assert found["ceilings"] == {"CueRecall2": 1 / 2, "CueRecall3": 1 / 3}
    assert found["machine"]["cpu"] and found["versions"]["lerobot"]


def test_overheads_are_those_of_the_figures_above_them(results):
    found = json.loads(results.read_text())
    memory, baseline, comparison = (found[key] for key in ("memory", "baseline", "comparison"))
    for overhead, read in (
        ("inference_overhead_percent", lambda model: model["inference_time_ms"]["median"]),
        ("memory_overhead_percent", lambda model: model["peak_memory_mb"]),
        ("parameter_overhead_percent", lambda model: model["num_parameters"]),
    ):
        assert comparison[overhead] == pytest.approx(100 * (read(memory) / read(baseline) - 1))
    assert comparison["parameter_overhead_percent"] > 0


def test_the_picture_lies_beside_it_and_shows_something(results):
    picture = cv2.imread(str(results.with_suffix(".png")))
    assert min(picture.shape[:2]) > 300
    assert len(set(map(tuple, picture.reshape(-1, 3)[::50].tolist()))) > 5


def test_the_table_names_tasks_models_modes_and_costs(compare, tmp_path, capsys):
    assert compare(tmp_path / "results.json", "--memory_mode", "noise") == 0
    shown = capsys.readouterr().out
    for words in ("CueRecall2", "baseline", "noise", "95 % interval", "MiB", "memory against baseline"):
        assert words in shown


def test_the_same_seed_gives_the_same_episodes(compare, tmp_path):
    scores = []
    for name in ("a", "b"):
        assert compare(tmp_path / f"{name}.json", "--seed", "7") == 0
        scores.append(json.loads((tmp_path / f"{name}.json").read_text())["memory"]["tasks"])
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--task", "CueRecal2"), "there is no task 'CueRecal2'; there are CueRecall2"),
        (("--memory_mode", "of"), "there is no memory mode 'of'"),
        (("--delay", "1"), "delay 1 is too short"),
        (("--cue_visible", "--task", "TakeItBack3"), "no cue"),
        (("--baseline_path", "./nowhere"), "checkpoint folder ./nowhere does not exist"),
        (("--output_file", "results.txt"), "must end in .json"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_the_cause(compare, tmp_path, capsys, options, says):
    assert compare(tmp_path / "results.json", *options) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_mode_needs_a_memory(checkpoints, tmp_path, capsys):
    arguments = ["--memory_path", str(checkpoints["baseline"]), "--memory_mode", "noise", "--n_episodes", "1"]
    assert main([*arguments, "--output_file", str(tmp_path / "r.json")]) == 1
    assert "has no memory (num_mem_tokens=0)" in capsys.readouterr().err


def test_ctrl_c_ends_it_and_writes_nothing(compare, tmp_path, capsys, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_models, "rollout", stop)
    assert compare(tmp_path / "results.json") == 130
    assert "stopped, nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
