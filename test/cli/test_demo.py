# SPDX-License-Identifier: Apache-2.0
"""The demo plays trials through the whole loop; its figures tell a silent part from a poor score."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from smolvla_mem_ros.msg import MemoryState, PolicyStatus
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from smolvla_mem_ros.cli import demo
from smolvla_mem_ros.cli.demo_report import Played, Recording, Run, draw, results, summarise, trial_marks
from smolvla_mem_ros.nodes.messages import to_time
from smolvla_mem_ros.policy.tiny import make_tiny_checkpoint
from smolvla_mem_ros.sim.tasks import CUE_FRAMES, DELAYS, FPS, TIME_LIMIT, Flash, get_task

FIGURES = {
    "ok", "task", "episodes", "successes", "inferences", "memory_commits", "trajectories", "servo_writes",
    "joint_motion_rad", "images_sent", "images_received", "stamp_to_command_ms", "reset_to_zero",
}  # fmt: skip


@pytest.mark.timeout(300)  # four processes import torch, LeRobot or MuJoCo first, next to other tests
def test_an_episode_is_played_through_the_whole_loop_and_scored(tmp_path):
    checkpoint = make_tiny_checkpoint(tmp_path / "policy", chunk_size=16, n_action_steps=8, steps=10)
    command = [sys.executable, "-m", "smolvla_mem_ros.cli.demo", "--episodes", "1", "--seed", "4"]
    command += ["--checkpoint", checkpoint, "--output", tmp_path / "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert set(line) == FIGURES and line["ok"] is True and line["reset_to_zero"] is True
    assert (line["task"], line["episodes"]) == ("CueRecall2", 1)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["seed"] == 4 and line.items() <= summary.items()
    (result,) = summary["results"]
    assert result["success"] == bool(line["successes"]) and result["reason"]
    assert 0 < result["frames"] <= CUE_FRAMES + DELAYS[1] + TIME_LIMIT
    assert result["first_observation_s"] >= 0  # how soon depends on how busy this machine is
    assert (tmp_path / "demo" / "summary.png").stat().st_size > 10_000


# Figures, of made-up messages -------------------------------------------------------------------

CUE, RESET = 100.0, 104.5  # s
LATENCY = dict.fromkeys((f"stamp_to_command_latency_p{p}" for p in (50, 95, 99)), 0.125)


def seconds(t):
    return to_time(round(t * 1e9))


def memory(at, step, reset, norm=1.0):
    message = MemoryState(step=step, norm=[norm if step else 0.0] * 2, cosine_distance=[0.1, 0.2])
    message.last_reset, message.header.stamp = seconds(reset), seconds(at - 0.1)
    return at, message


def trajectory(at, stamped=True):
    point = JointTrajectoryPoint(positions=[0.0, 0.1])
    point.time_from_start.sec = 1
    message = JointTrajectory(joint_names=["a", "b"], points=[point])
    if stamped:
        message.header.stamp = seconds(at)
    return at, message


@pytest.fixture
def recording():
    """Two episodes, 100-105 and 107-112, with a reset in the first one."""
    record = Recording(joint_names=["a", "b"])
    for t in np.arange(99, 114, 0.5):
        status = PolicyStatus(inferences=8, images_received=int(t - 99) * 60, **LATENCY)
        status.header.stamp = seconds(t)
        record.statuses.append(status)
        counters = {"images_sent_front": 30 * t, "images_sent_wrist": 30 * t, "servo_writes": 100 * t}
        record.simulation.append((t, {key: str(value) for key, value in counters.items()}))
        record.joints.append((t, [0.01 * t, 0.0]))
        record.pictures.append((t, np.zeros((4, 6, 3), np.uint8)))
    for start, step in ((100, 0), (100.3, 1), (100.8, 2)):
        record.memories.append(memory(start, step, 100))
    for start, step in ((RESET, 0), (104.9, 1)):
        record.memories.append(memory(start, step, RESET))
    for start, step in ((107, 0), (107.2, 1)):
        record.memories.append(memory(start, step, 107))
    record.trajectories = [trajectory(t) for t in (100.5, 101, 105, 107.5)]
    return record


@pytest.fixture
def run():
    marks = (("cue", CUE), ("choice", CUE + 2))
    first = Played(100, 105, marks, False, "went to left, not to right", 40, ("right",))
    return Run(
        (first, Played(107, 112, marks, True, "reached left", 50, ("left",))), RESET, get_task("CueRecall2")
    )


def test_figures_cover_all_episodes(recording, run):
    assert summarise(recording, run) == {
        "ok": True,
        "task": "CueRecall2",
        "episodes": 2,
        "successes": 1,
        "inferences": 8,
        "memory_commits": 4,
        "trajectories": 4,
        "servo_writes": 1200,
        "joint_motion_rad": 0.1,
        "images_sent": 720,
        "images_received": 720,
        "stamp_to_command_ms": {"p50": 125.0, "p95": 125.0, "p99": 125.0},
        "reset_to_zero": True,
    }


def test_the_way_back_between_episodes_is_not_the_policys_work(recording, run):
    before = summarise(recording, run)
    recording.trajectories.insert(3, trajectory(105.5, stamped=False))
    recording.joints = [(t, [q[0] + 5 * (105 < t < 107), q[1]]) for t, q in recording.joints]
    assert summarise(recording, run) == before


def test_a_poor_score_is_no_failure_of_the_demo(recording, run):
    lost = tuple(Played(p.start, p.stop, p.marks, False, "out of time", 90, p.goals) for p in run.episodes)
    summary = summarise(recording, Run(lost, run.reset, run.task))
    assert summary["ok"] is True and summary["successes"] == 0


@pytest.mark.parametrize(
    "silence",
    [
        lambda r: r.memories.clear(),
        lambda r: r.trajectories.clear(),
        lambda r: r.joints.clear(),
        lambda r: r.simulation.clear(),
        lambda r: [setattr(s, "images_received", 7) for s in r.statuses],
        lambda r: setattr(r.statuses[-1], "inferences", 0),
        lambda r: setattr(r.statuses[-1], "stamp_to_command_latency_p99", float("nan")),
        lambda r: r.memories.remove(r.memories[3]),
        lambda r: r.memories.__setitem__(3, memory(RESET, 3, RESET)),
    ],
    ids=["memory", "policy", "arm", "simulation", "cameras", "inference", "latency", "reset", "not to zero"],
)
def test_a_part_that_was_silent_is_a_failure(recording, run, silence):
    silence(recording)
    assert summarise(recording, run)["ok"] is False


def test_results_tell_each_episodes_outcome_and_when_it_was_first_looked_at(recording, run):
    first, second = results(recording, run)
    assert (first["success"], first["reason"]) == (False, "went to left, not to right")
    assert (second["success"], second["frames"], second["goals"]) == (True, 50, ["left"])
    assert first["first_observation_s"] == pytest.approx(0.2)
    assert second["first_observation_s"] == pytest.approx(0.1)


def test_pictures_are_taken_at_cue_wait_and_choice():
    trial = SimpleNamespace(flashes=(Flash(0, 10, "red"), Flash(10, 20, "blue")))
    frames = [(label, round((t - CUE) * FPS)) for label, t in trial_marks(trial, CUE, 32, 60)]
    assert frames == [("cue", 5), ("cue", 15), ("wait", 28), ("choice", 60)]
    early = [label for label, _ in trial_marks(trial, CUE, None, 8)]
    assert early == ["cue", "choice"], "what it did not live to see is left out"
    assert trial_marks(SimpleNamespace(flashes=()), CUE, None, 8)[0] == ("start", CUE)


def test_the_picture_never_shows_the_next_trial():
    from smolvla_mem_ros.cli.demo_report import _picture_at

    pictures = [(t, np.full(1, t)) for t in (1.0, 2.0, 3.0)]
    assert [_picture_at(pictures, t)[0] for t in (0.5, 1.0, 2.9, 9.0)] == [1, 1, 2, 3]


def test_a_picture_is_drawn_with_and_without_a_task(recording, run, tmp_path):
    draw(recording, Run(run.episodes[:1] * 5, RESET, run.task), tmp_path / "task.png")
    free = Played(100, 105, run.episodes[0].marks)
    draw(recording, Run((free,), RESET), tmp_path / "free.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("task.png", "free.png"))


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, says",
    [
        (["--task", "juggle"], "there is no task 'juggle'; there are CueRecall2"),
        (["--episodes", "0"], "argument --episodes: '0' is not a whole number of 1 or more"),
        (["--seconds", "1"], "--seconds must be more than 2"),
        (["--seconds", "9", "--episodes", "2"], "not allowed with"),
        (["--seed", "-1"], "--seed must be 0 or more"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_refused_before_anything_starts(words, says, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        demo.main([*words, "--output", str(tmp_path / "out")])
    assert ended.value.code == 2 and says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_task_is_played_with_the_checkpoints_picture_size_and_the_tasks_contract(monkeypatch):
    size = SimpleNamespace(shape=(3, 30, 40))
    monkeypatch.setattr(demo, "load_config", lambda _: SimpleNamespace(image_features={"front": size}))
    specs = {spec.name: spec.parameters for spec in demo.process_list(get_task("LateCue2"), 17, "somewhere")}
    simulation = {"task": "LateCue2", "seed": 17, "camera.width": 40, "camera.height": 30}
    assert simulation.items() <= specs["so100_sim"].items()
    assert specs["policy"]["contract"].endswith("config/memory_tasks.yaml") and specs["policy"]["seed"] == 17
    specs = {spec.name: spec.parameters for spec in demo.process_list(None, 17, "somewhere")}
    assert "task" not in specs["so100_sim"] and "contract" not in specs["policy"]


def test_a_task_is_played_with_the_shipped_policy_and_a_free_run_with_a_tiny_one(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(demo.make_tiny_checkpoint, "main", lambda words: made.append(words) or 0)
    assert demo._own_checkpoint(get_task("CueRecall2"), tmp_path).endswith("config/checkpoints/demo")
    assert made == []
    assert demo._own_checkpoint(None, tmp_path) == str(tmp_path / "tiny_checkpoint")
    assert made == [[str(tmp_path / "tiny_checkpoint")]]


def test_an_installation_without_the_policy_is_told_in_one_line(monkeypatch, capsys, tmp_path):
    def missing(relative):
        raise FileNotFoundError(f"{relative} is nowhere")

    monkeypatch.setattr(demo, "share_path", missing)
    assert demo.main(["--output", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "demo: config/checkpoints/demo is nowhere"
    problem = "config/checkpoints/demo is nowhere"
    assert json.loads(said.out.splitlines()[-1]) == {"ok": False, "problem": problem}
