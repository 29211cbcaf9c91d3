# SPDX-License-Identifier: Apache-2.0
"""benchmark measures for real and writes what it shows."""

import json

import pytest

from smolvla_mem_ros.cli import benchmark
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
