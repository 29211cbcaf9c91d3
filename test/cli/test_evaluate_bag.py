# SPDX-License-Identifier: Apache-2.0
"""evaluate_bag from the command line: what it writes, twice the same, and what it refuses."""

import json

import pytest
from bag_helpers import Maker, write_run

from smolvla_mem_ros.cli import evaluate_bag
from smolvla_mem_ros.policy.tiny import make_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_tiny_checkpoint(tmp_path_factory.mktemp("evaluate_bag") / "tiny", steps=0))


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    events = [(0.5, "start", 1, "sway"), (2.0, "reset_memory", 1, "sway"), (3.0, "start", 2, "sway more")]
    return str(write_run(tmp_path_factory.mktemp("bags") / "monday", Maker(), 4, events))


def run(*arguments):
    return evaluate_bag.main([str(argument) for argument in arguments])


def test_it_writes_results_a_page_and_pictures(bag, checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    modes = ["on", "off", "reset_every_step", "stale"]
    assert run(bag, "--checkpoint", checkpoint, "--memory", ",".join(modes), "--output", output) == 0
    shown = capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    (one,) = results["checkpoints"].values()
    assert list(one["modes"]) == modes and one["seed"] == 7  # the recorded policy's
    assert [e["task"] for e in one["episodes"]] == ["sway", "sway more"]
    assert one["episodes"][0]["resets"] == 1
    assert one["modes"]["on"]["memory"]["tokens"] == 4 and one["modes"]["off"]["memory"]["tokens"] == 0
    assert results["target"] == "joint states" and results["streams"]["front"]["messages"] == 60
    page = (output / "report.md").read_text()
    for picture in ("predictions.png", "error.png", "memory.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG") and f"({picture})" in page
    for mode in modes:
        mean = f"{one['modes'][mode]['error']['mean_deg']:.2f}°"
        assert mean in shown and mean in page
    # Without its memory it is another policy; the first inference of an episode is the same in all.
    assert one["modes"]["on"]["error"] != one["modes"]["off"]["error"]


def test_twice_the_same_gives_the_same_bytes_but_for_the_times(bag, checkpoint, tmp_path):
    texts = []
    for _ in range(2):
        assert run(bag, "--checkpoint", checkpoint, "--output", tmp_path / "out") == 0
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert results.pop("timing")["checkpoints"]
        texts.append(json.dumps(results))
    assert texts[0] == texts[1]


def test_two_checkpoints_are_compared(bag, checkpoint, tmp_path, capsys):
    other = make_tiny_checkpoint(tmp_path / "other", steps=0, seed=1)
    assert run(bag, "--compare", checkpoint, other, "--memory", "on", "--output", tmp_path / "out") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    errors = {name: one["modes"]["on"]["error"]["mean_deg"] for name, one in results["checkpoints"].items()}
    assert list(errors) == ["tiny", "other"] and errors["tiny"] != errors["other"]
    assert (tmp_path / "out" / "other_error.png").is_file()


def test_episodes_come_from_a_file(bag, checkpoint, tmp_path):
    file = tmp_path / "episodes.yaml"
    file.write_text("- {start: 2.0, end: 3.0, task: two}\n- {start: 0.2, end: 1, task: one}\n")
    options = ["--checkpoint", checkpoint, "--output", tmp_path / "out", "--memory", "on"]
    assert run(bag, "--episodes", file, *options) == 0
    (one,) = json.loads((tmp_path / "out" / "results.json").read_text())["checkpoints"].values()
    assert [(e["task"], e["seconds"]) for e in one["episodes"]] == [("one", 0.8), ("two", 1.0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no list of episodes"),
        ("[]", "names no episode"),
        ("- {start: 1}", "no list of episodes"),
        ("- {start: 2, end: 1}", "ends before it starts"),
        ("- {start: 1, end: 3}\n- {start: 2, end: 4}", "two overlap"),
    ],
)
def test_a_wrong_file_of_episodes_is_refused(bag, checkpoint, tmp_path, capsys, text, says):
    file = tmp_path / "episodes.yaml"
    file.write_text(text)
    assert run(bag, "--episodes", file, "--checkpoint", checkpoint, "--output", tmp_path / "out") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("evaluate_bag: ") and says in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere"], "/nowhere is not there"),
        (["BAG", "--checkpoint", "/nowhere"], "/nowhere does not exist"),
        (["BAG", "--contract", "/nowhere.yaml"], "/nowhere.yaml cannot be read"),
    ],
    ids=range(3),
)
def test_what_is_not_there_is_named_in_one_line(bag, tmp_path, capsys, arguments, says):
    arguments = [bag if argument == "BAG" else argument for argument in arguments]
    assert run(*arguments, "--output", tmp_path / "out") == 1
    assert says in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--memory", "half"], "no 'half'"),
        (["--gap", "0"], "--gap"),
        (["--compare", "a", "a"], "two different"),
    ],
)
def test_a_wrong_command_line_is_refused(bag, capsys, arguments, says):
    with pytest.raises(SystemExit) as ended:
        run(bag, *arguments)
    assert ended.value.code == 2 and says in capsys.readouterr().err
