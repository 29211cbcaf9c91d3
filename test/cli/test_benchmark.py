# SPDX-License-Identifier: Apache-2.0
"""benchmark measures for real and writes what it shows."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from smolvla_mem_ros.bags import synthetic, throughput
from smolvla_mem_ros.cli import benchmark
from smolvla_mem_ros.cli.plot_memory_results import fill, table_bags
from smolvla_mem_ros.training.recipe import RECIPE


def test_the_cost_of_memory_is_measured_written_and_shown(tmp_path, capsys):
    file = tmp_path / "folder" / "cost.json"
    arguments = ["memory_cost", "--repeats", "1", "--segments", "1", "--update", "rmt", "--output", str(file)]
    assert benchmark.main(arguments) == 0
    result = json.loads(file.read_text())
    assert result["command"] == "benchmark " + " ".join(arguments)
    assert [each["memory"]["frames"] for each in result["comparisons"]] == [
        1, RECIPE.one_task.batch_size, 2 * RECIPE.one_task.batch_size,
    ]  # fmt: skip
    # The size that the recipe trains: four tokens of 96 more.
    added = [each["memory"]["parameters"] - each["stock"]["parameters"] for each in result["comparisons"]]
    assert added == [4 * 96] * 3
    assert {"cpu", "cores", "device", "threads"} == result["machine"].keys()
    shown = capsys.readouterr().out
    for each in result["comparisons"]:
        assert f"{each['ratio']['time']['median']:.3f}" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--update", "lstm"], "mem_update='lstm' must be one of"), (["--device", "tpu"], "tpu")],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, said, capsys):
    assert benchmark.main(["memory_cost", "--repeats", "1", *arguments]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("benchmark: ")]
    assert said in line


def test_nothing_to_measure_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["memory_cost", "--repeats", "0"])
    assert "argument --repeats: '0' is not a whole number of 1 or more" in capsys.readouterr().err


@pytest.fixture
def measure_bags(tmp_path):
    """``measure_bags(...)`` of tiny bags: (exit code, JSON or None, what is left in the folder of bags)."""
    work, file = tmp_path / "work", tmp_path / "out" / "bags.json"
    work.mkdir()
    sizes = ["--seconds", "1", "--long", "10", "--repeats", "2", "--size", "32x24"]

    def run(*options):
        code = benchmark.main(["bags", *sizes, "--work", str(work), "--output", str(file), *options])
        return code, json.loads(file.read_text()) if file.exists() else None, list(work.iterdir())

    return run


@pytest.mark.slow
@pytest.mark.timeout(300)  # two processes import torch
def test_bags_are_made_measured_and_deleted(measure_bags, monkeypatch, capsys):
    # The other ways are in test_throughput.py; for its memory each takes a process that imports torch.
    monkeypatch.setattr(throughput, "WAYS", {"evaluate": throughput.evaluate})
    code, result, left = measure_bags()
    assert code == 0 and left == []
    assert [bag["form"] for bag in result["speed"]] == [form.name for form in synthetic.FORMS]
    assert [bag["seconds"] for bag in result["memory"]] == [1, 10]
    assert result["memory"][1]["bytes"] > 8 * result["memory"][0]["bytes"]
    assert result["seed"] == 0 and result["command"].startswith("benchmark bags --seconds 1")
    assert {"cpu", "cores"} == result["machine"].keys() and "rosbags" in result["versions"]
    shown = capsys.readouterr().out
    for bag in result["speed"]:
        assert f"{bag['ways']['evaluate']['median']:.1f} (" in shown
    for bag in result["memory"]:
        assert 0 < bag["ways"]["evaluate"]["peak_mib"] < 100
        assert f"{bag['ways']['evaluate']['peak_mib']:.0f} MiB" in shown


def test_bags_that_do_not_fit_on_the_disk_are_not_begun(measure_bags, monkeypatch, capsys):
    monkeypatch.setattr(benchmark.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert measure_bags() == (1, None, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark: ") and "name another folder with --work" in line


def test_ctrl_c_leaves_no_bag(measure_bags, monkeypatch, capsys):
    def interrupted(bag, way):
        assert list(bag.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(throughput, "speed", interrupted)
    assert measure_bags() == (130, None, [])
    assert capsys.readouterr().err.splitlines()[-1] == "benchmark: stopped, nothing was written"


@pytest.mark.parametrize("text", ["640", "0x5", "axb"])
def test_a_size_that_is_none_is_refused(measure_bags, text, capsys):
    with pytest.raises(SystemExit):
        measure_bags("--size", text)
    assert f"argument --size: {text!r} is no size like 640x480" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)  # the policy is loaded in a process of its own
def test_a_recording_beside_the_policy_loses_nothing(tmp_path):
    file = tmp_path / "out" / "recording.json"
    command = [sys.executable, "-m", "smolvla_mem_ros.cli.benchmark", "recording", "--seconds", "4"]
    done = subprocess.run(
        [*command, "--work", str(tmp_path), "--output", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert json.loads(done.stdout)["lost"] == result["lost"] == 0 and result["problems"] == []
    assert [round(n / 4, -1) for n in result["sent"].values()] == [30, 30, 100]
    assert result["policy_commits"] > 0 and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_page_on_bags_shows_the_results_that_lie_beside_it():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "rosbags.md").read_text()
    assert fill(page, "speed", table_bags(root / "benchmarks" / "results")) == page
