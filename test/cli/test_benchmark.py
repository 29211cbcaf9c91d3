# SPDX-License-Identifier: Apache-2.0
"""benchmark measures for real and writes what it shows."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from smolvla_mem_ros.bags import synthetic, throughput
from smolvla_mem_ros.cli import arm_node_bench, benchmark, benchmark_arm
from smolvla_mem_ros.cli.malformed_trajectories import HOSTILE, KINDS, malformed, well_formed
from smolvla_mem_ros.cli.plot_memory_results import fill, table_arm, table_bags
from smolvla_mem_ros.evaluation.arm_path import IdealPath
from smolvla_mem_ros.policy.checkpoint import load_config
from smolvla_mem_ros.runtime.contract import load_contract
from smolvla_mem_ros.share import CHECKPOINT, CONTRACT, share_path
from smolvla_mem_ros.so100.arm import ArmConfig, Calibration
from smolvla_mem_ros.so100.follower import (
    Trajectory,
    TrajectoryFollower,
    TrajectoryPoint,
    TrajectoryRejected,
)
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


# The arm's loop ---------------------------------------------------------------------------------

NO_VIOLATIONS = {"not_finite": 0, "position": 0, "velocity": 0, "acceleration": 0, "jump": 0}
DEGREES = {"rms": {"gripper": 0.1}, "max": {"gripper": 0.2}}
SEAM = {"ratio": 0.9, "ratio_of_path": 1.0, "limit_violations": 0, "tracking_error_deg": DEGREES}
FAULTS = {"limit_violations": NO_VIOLATIONS, "not_named": 0, "resumed_late": 0, "exceptions": 0, "kinds": {
    "unplugged": {"count": 1, "named": 1, "connection_lost": 1, "slowest_resume_s": None, "resumed_late": 0},
}}  # fmt: skip
MS = {"p50": 1.0, "p99": 2.0, "max": 3.0}
STOPS = {"late": 0, "exceptions": 0, "last_motion_ms": MS, "held_ms": MS}
GOOD = {
    "loop": {"period_jitter_pct": {"p99": 1.0}, "missed_cycles": 0},
    "seams": {"agreeing": SEAM, "disagreeing": SEAM},
    "faults": FAULTS,
    "stops": STOPS,
    "fuzz": {"messages": 9, "rejected": 9, "accepted": 0, "goals_off_the_path": 0, "tracebacks": 0},
}  # fmt: skip
KEYS = (
    "period_jitter_p99_pct", "missed_cycles", "limit_violations", "seam_velocity_step_ratio",
    "tracking_error_deg",
)  # fmt: skip


def test_the_arms_result_is_one_line_of_json_and_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark_arm, "run", lambda args: copy.deepcopy(GOOD))
    file = tmp_path / "folder" / "arm.json"
    assert benchmark.main(["arm_loop", "--json", "--output", str(file)]) == 0
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    result = json.loads(line)
    assert result == json.loads(file.read_text()) and result["missed_targets"] == []
    assert set(KEYS) <= result.keys() and {"machine", "versions", "seed", "command"} <= result.keys()
    assert "never" in said.err, "what did not move again is not shown as a time"
    assert benchmark.main(["arm_loop"]) == 0
    assert "period jitter" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("loop", {"missed_cycles": 1}),
        ("loop", {"period_jitter_pct": {"p99": 10.0}}),
        ("loop", {"period_jitter_pct": {"p99": float("nan")}}),
        ("faults", {"limit_violations": {**NO_VIOLATIONS, "jump": 1}}),
        ("faults", {"not_named": 1}),
        ("faults", {"resumed_late": 1}),
        ("faults", {"exceptions": 1}),
        ("seams", {"agreeing": {**SEAM, "ratio": 1.03}}),
        ("seams", {"agreeing": {**SEAM, "ratio": 1.01, "ratio_of_path": 0.9}}),
        ("stops", {"late": 1}),
        ("fuzz", {"rejected": 8}),
        ("fuzz", {"accepted": 1}),
        ("fuzz", {"goals_off_the_path": 1}),
    ],
)
def test_a_missed_target_is_named_and_ends_with_1(monkeypatch, capsys, part, change):
    parts = copy.deepcopy(GOOD)
    parts[part] |= change
    monkeypatch.setattr(benchmark_arm, "run", lambda args: parts)
    assert benchmark.main(["arm_loop", "--json"]) == 1
    said = capsys.readouterr()
    assert len(json.loads(said.out)["missed_targets"]) == said.err.count("MISSED") == 1


def test_every_malformed_message_is_malformed():
    follower = TrajectoryFollower(ArmConfig(), np.zeros(6), 0.0)
    random = np.random.default_rng(0)

    def received(message):
        """As the node reads it; its clock shows 2 000 000 000 s and the loop's 0."""
        points = [
            TrajectoryPoint(
                p.time_from_start.sec + p.time_from_start.nanosec * 1e-9,
                p.positions, p.velocities, p.accelerations,
            )
            for p in message.points
        ]  # fmt: skip
        stamp = message.header.stamp
        start = stamp.sec + stamp.nanosec * 1e-9 - 2e9 if stamp.sec or stamp.nanosec else None
        return Trajectory(message.joint_names, points, start)

    follower.accept(received(well_formed(random)), 0.0)
    for kind in KINDS:
        for _ in range(1 if kind in HOSTILE else 60):
            with pytest.raises(TrajectoryRejected):
                follower.accept(received(malformed(kind, random)), 0.0)


def test_goals_off_the_path_are_found():
    path = IdealPath.draw(np.random.default_rng(0), ArmConfig(), 0.15, 0.0)
    times = np.arange(0.0, 2.0, 0.01)
    ticks = Calibration.load(share_path(arm_node_bench.CALIBRATION)).ticks.from_radians(path.at(times)[0])
    # Each arrives 20 ms after the moment that it is meant for.
    goals = np.column_stack([times + 0.02, np.round(ticks)])
    assert arm_node_bench.ticks_off(goals, path).max() <= arm_node_bench.OFF
    goals[50, 3] += 3
    assert np.flatnonzero(arm_node_bench.ticks_off(goals, path) > arm_node_bench.OFF).tolist() == [50]


def test_jitter_is_of_the_period():
    stamps = np.arange(1000) * 10_000_000
    stamps[500:] += 2_000_000
    found = arm_node_bench.jitter(stamps)["period_jitter_pct"]
    assert found["p50"] == found["p99"] == 0 and found["max"] == 20


@pytest.mark.slow
@pytest.mark.timeout(300)  # the node starts twice, and the policy beside it
def test_the_node_is_measured_beside_the_policy_and_not_misled(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    contract = load_contract(share_path(CONTRACT), load_config(share_path(CHECKPOINT)))
    before = os.sched_getaffinity(0)
    found = arm_node_bench.loop(3, contract, 0)
    assert found["cycles"] > 200 and found["inferences"] > 0 and found["chunks"] > 3
    assert found["period_jitter_pct"]["p99"] > 0 and found["missed_cycles"] >= 0
    assert os.sched_getaffinity(0) == before
    found = arm_node_bench.fuzz(60, 0)
    assert found["rejected"] == 60 == sum(found["kinds"].values()), found
    assert found["accepted"] == found["goals_off_the_path"] == found["tracebacks"] == 0
    assert found["goals"] > 50


@pytest.mark.parametrize(
    ("page", "part", "table"), [("rosbags", "speed", table_bags), ("so100", "arm", table_arm)]
)
def test_a_page_shows_the_results_that_lie_beside_it(page, part, table):
    root = Path(__file__).parents[2]
    text = (root / "docs" / f"{page}.md").read_text()
    assert fill(text, {part: table(root / "benchmarks" / "results")}) == text
