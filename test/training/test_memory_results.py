# SPDX-License-Identifier: Apache-2.0
"""Pins the results' page: its figures are those of the files, and the same files give the same page."""

import json
import re
import shutil
from pathlib import Path

import pytest

from smolvla_mem_ros.cli import plot_memory_results
from smolvla_mem_ros.sim.tasks import TASKS
from smolvla_mem_ros.training.ablations import STUDIES, plan
from smolvla_mem_ros.training.recipe import RECIPE

PAGE = Path(__file__).parents[2] / "docs" / "memory_results.md"
OTHERS = (PAGE.parents[1] / "README.md", PAGE.with_name("rosbags.md"), PAGE.with_name("so100.md"))
LATE = ("LateCue2",)


@pytest.fixture
def page(tmp_path):
    """A copy of the page in the repository, a folder for results, and a call to the program."""
    shutil.copy(PAGE, tmp_path / "page.md")
    for other in OTHERS:
        shutil.copy(other, tmp_path)

    def write():
        options = {
            "results": "results", "page": "page.md", "images": "images", "readme": "README.md",
            "rosbags": "rosbags.md", "so100": "so100.md",
        }  # fmt: skip
        arguments = [f"--{name}={tmp_path / value}" for name, value in options.items()]
        code = plot_memory_results.main(arguments)
        return code, (tmp_path / "page.md").read_text()

    return write


def rows(text, study):
    part = text[text.index(f"<!-- {study}:begin") : text.index(f"<!-- {study}:end")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"
    ]


def test_the_tables_hold_what_the_files_say(page, write_result, tmp_path):
    runs = plan(RECIPE)["main"]
    for seed, right in ((0, 30), (1, 45)):
        write_result(
            runs["memory", LATE, seed], tmp_path / "results", lambda t, m, d, n=right: n if m == "on" else 25
        )
    write_result(runs["no memory", LATE, 0], tmp_path / "results", lambda t, m, d: 20)
    code, text = page()
    assert code == 0
    header, _, row = rows(text, "main")
    table = dict(zip(header, row, strict=True))
    assert table["best without memory"] == "50 %"
    # Wilson's interval for 75 of 100, computed elsewhere: 0.6569 to 0.8245.
    assert table["memory"] == "75 % (66 to 82), 75/100"
    assert table["no memory"].endswith("20/50")
    assert table["memory replaced by noise"].endswith("50/100")
    assert table["memory, each seed"] == "60, 90 %"
    # The run of the main study is the usual one of the others.
    depths = {row[1]: row[2] for row in rows(text, "depth")[2:]}
    assert list(depths) == ["0", "1", "all"]
    assert sorted(depths.values()) == ["-", "-", "60 % (46 to 72), 30/50"]


def test_one_policy_for_all_tasks_has_a_table_of_its_own(page, write_result, tmp_path):
    for run in plan(RECIPE)["main"].values():
        write_result(run, tmp_path / "results")
    text = page()[1]
    assert text.index("One policy for each task:") < text.index("One policy for all tasks:")
    assert sum(row[0] == "CueRecallShuffled3" for row in rows(text, "main")) == 2


def test_the_delays_are_told_in_frames_seconds_and_multiples(page, write_result, tmp_path):
    write_result(plan(RECIPE)["delay"]["memory", LATE, 0], tmp_path / "results", lambda t, m, d: 50 - d // 16)
    table = rows(page()[1], "delay")
    assert [row[:2] for row in table[2:]] == [
        ["20 (1.3 s)", "1 x"], ["40 (2.7 s)", "2 x"], ["80 (5.3 s)", "4 x"], ["160 (10.7 s)", "8 x"],
        ["320 (21.3 s)", "16 x"],
    ]  # fmt: skip
    assert table[-1][2].endswith("30/50")


def test_the_delays_of_one_policy_for_all_tasks_have_a_column_for_each_task(page, write_result, tmp_path):
    run = plan(RECIPE)["delay_all"]["memory", tuple(TASKS), 0]
    write_result(run, tmp_path / "results", lambda task, m, d: list(TASKS).index(task) + 40 * (d == 20))
    header, _, *table = rows(page()[1], "delay_all")
    assert header[2:] == [f"{task}, memory" for task in TASKS]
    assert [row[1] for row in table] == ["1 x", "4 x", "16 x"]
    assert [cell.split(", ")[1] for cell in table[0][2:]] == [f"{40 + i}/50" for i in range(6)]
    assert [cell.split(", ")[1] for cell in table[1][2:]] == [f"{i}/50" for i in range(6)]


def test_the_same_results_give_the_same_bytes(page, write_result, tmp_path):
    for study in plan(RECIPE).values():
        for run in list(study.values())[::2]:
            write_result(run, tmp_path / "results")
    page()
    first = {path: path.read_bytes() for path in (*(tmp_path / "images").iterdir(), tmp_path / "page.md")}
    assert len(first) == len(STUDIES)  # the page, and a picture of each study but the oracle's
    page()
    assert all(path.read_bytes() == data for path, data in first.items())


def test_what_is_missing_is_said(page, write_result, tmp_path, capsys):
    write_result(plan(RECIPE)["main"]["memory", LATE, 0], tmp_path / "results")
    text = page()[1]
    said = capsys.readouterr().out
    assert "main: 41 of 42 runs are missing: main/memory-CueRecall2-seed0, " in said
    assert "delay: 6 of 6 runs are missing" in said
    assert "None of the 6 runs has been made yet." in text
    assert "1 of 42 runs; the others have not been made yet." in text
    assert not (tmp_path / "images" / "memory_delay.png").exists()


def test_results_made_with_another_recipe_are_named(page, write_result, tmp_path, capsys):
    path = write_result(plan(RECIPE)["main"]["memory", LATE, 0], tmp_path / "results")
    path.write_text(path.read_text().replace("--policy.optimizer_lr=", "--policy.optimizer_lr=9"))
    page()
    assert "1 were made with another recipe: main/memory-LateCue2-seed0" in capsys.readouterr().out


def test_without_any_result_the_page_stays_as_it_is(page, capsys):
    assert page() == (1, PAGE.read_text())
    assert "run_ablations makes them" in capsys.readouterr().err


def test_a_page_without_a_place_is_refused_with_the_lines_it_needs(page, write_result, tmp_path, capsys):
    write_result(plan(RECIPE)["main"]["memory", LATE, 0], tmp_path / "results")
    (tmp_path / "page.md").write_text("# Empty\n")
    assert page() == (1, "# Empty\n")
    assert "<!-- main:begin -->" in capsys.readouterr().err


def test_the_page_has_a_place_for_every_study():
    assert set(re.findall(r"<!-- (\w+):begin -->", PAGE.read_text())) == {
        *STUDIES, "made", "cost",
    }  # fmt: skip


def test_the_readme_tells_of_the_policy_for_all_tasks(page, write_result, tmp_path):
    for label, right in (("memory", 45), ("no memory", 10)):
        write_result(
            plan(RECIPE)["main"][label, tuple(TASKS), 0],
            tmp_path / "results",
            lambda t, m, d, n=right: n if m == "on" else 20,
        )
    page()
    readme = (tmp_path / "README.md").read_text()
    assert rows(readme, "results")[2:] == [
        [task, "90 %", "40 %", "20 %", f"{100 * TASKS[task].ceiling:.0f} %"] for task in TASKS
    ]


def test_costs_are_told_as_they_were_measured(page, write_result, tmp_path):
    def side(ms, mb, count):
        return {"ms": {"median": ms}, "peak_mb": mb, "parameters": count}

    ratio = {"time": {"median": 1.25, "p25": 1.2, "p75": 1.3}, "peak": 1.1, "parameters": 1.01}
    cost = {
        "size": "tiny", "batch_size": 32, "command": "benchmark memory_cost", "memory":
        {"num_mem_tokens": 4, "mem_update": "rmt"}, "machine": {"cpu": "C", "device": "cpu", "threads": 1},
        "comparisons": [{"name": "inference", "turns": 9, "stock": side(100, 10, 1000),
                         "memory": side(125, 11, 1010), "ratio": ratio}],
    }  # fmt: skip
    write_result(plan(RECIPE)["main"]["memory", LATE, 0], tmp_path / "results")
    (tmp_path / "memory_cost_tiny.json").write_text(json.dumps(cost))
    assert rows(page()[1], "cost")[2:] == [
        ["inference", "9", "100 ms", "125 ms", "1.250 (1.200 to 1.300)"],
        ["its peak memory", "", "10 MiB", "11 MiB", "1.100"],
        ["weights", "", "1,000", "1,010", "1.0100"],
    ]
