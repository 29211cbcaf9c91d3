# SPDX-License-Identifier: Apache-2.0
"""Trials in real time are those of the offline evaluation: begun with the arm at rest, judged by frames."""

import numpy as np
import pytest

from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.expert import press_pose
from smolvla_mem_ros.sim.scene import HOME, Scene
from smolvla_mem_ros.sim.tasks import COLOURS, DARK, FPS, PLACES, TIME_LIMIT, WHITE, get_task
from smolvla_mem_ros.sim.trials import REST_TIME, TrialRefused, Trials
from smolvla_mem_ros.sim.world import MEMORY_SCENE

FRAME = 1 / FPS


class Bench:
    """Trials of a task with a clock and an arm that the test moves."""

    def __init__(self, task="CueRecall2", seed=3, delay=8):
        self.scene = Scene(MEMORY_SCENE)
        self.trials = Trials(task, seed, delay, self.scene)
        self.now = 1000.0

    def show(self, pose, seconds):
        """``seconds`` later the arm is at ``pose``."""
        self.now += seconds
        self.scene.show(np.asarray(pose))
        self.trials.follow(self.now)

    def begin(self):
        """The next trial, running."""
        self.trials.next(self.now)
        self.show(self.trials.rest, 0)
        self.show(self.trials.rest, REST_TIME + 0.01)
        self.trials.start(self.now)

    def goal(self):
        return press_pose(self.scene, PLACES[self.trials.trial.goals[0]])


@pytest.fixture
def bench():
    return Bench()


@pytest.mark.parametrize("delay", [None, 12])
def test_trials_are_those_of_the_offline_evaluation(delay):
    trials = Bench("CueRecall3", 7, delay).trials
    for episode in range(4):
        trials.next(0.0)
        assert trials.trial == draw(get_task("CueRecall3"), 7, episode, delay=delay)[0]
        assert trials.report()["episode"] == episode


def test_what_is_reported_of_a_trial_under_way_does_not_tell_its_secret(bench):
    shown = []
    for _ in range(8):
        bench.begin()
        shown.append((bench.trials.trial.goals, {**bench.trials.report(), "episode": None}))
    assert len({goals for goals, _ in shown}) == 2
    assert all(report == shown[0][1] for _, report in shown)


def test_a_trial_is_ready_once_the_arm_has_come_to_rest_at_its_start(bench):
    assert bench.trials.report()["state"] == "idle" and "reset_scene" in bench.trials.reason
    bench.trials.next(bench.now)
    away = np.array(HOME) + [0.3, 0, 0, 0, 0, 0]
    bench.show(HOME, 10)
    assert bench.trials.state == "ready"
    bench.show(away, 0.03)
    assert bench.trials.state == "idle" and "not at rest" in bench.trials.reason
    bench.show(HOME, 0.1)
    assert bench.trials.state == "idle", "it only passes by"
    bench.show(HOME, REST_TIME)
    assert bench.trials.state == "ready"


def test_a_task_that_starts_elsewhere_waits_for_the_arm_there():
    bench = Bench("TakeItBack3")
    bench.trials.next(bench.now)
    bench.show(HOME, 10)
    assert bench.trials.state == "idle"
    tip = bench.scene.data.site("tip").xpos
    bench.show(bench.trials.rest, 0.1)
    bench.show(bench.trials.rest, REST_TIME)
    np.testing.assert_allclose(tip[:2], PLACES[bench.trials.trial.start], atol=0.01)
    assert bench.trials.state == "ready"


def test_lamps_are_dark_until_the_clock_runs_then_show_cue_and_go(bench):
    bench.trials.follow(bench.now)
    assert bench.trials.colours["pad_left"] is None
    bench.trials.next(bench.now)
    for _ in range(2):
        assert {bench.trials.colours["lamp_cue"], bench.trials.colours["lamp_go"]} == {DARK}
        assert bench.trials.colours["pad_left"] == COLOURS["red"]
        bench.show(HOME, 10)
    assert bench.trials.state == "ready"
    bench.trials.start(bench.now)
    cue = COLOURS[bench.trials.trial.flashes[0].colour]
    assert bench.trials.colours["lamp_cue"] == cue, "at once"
    bench.show(HOME, 9.9 * FRAME)
    assert bench.trials.colours["lamp_cue"] == cue
    bench.show(HOME, 0.2 * FRAME)
    assert bench.trials.colours["lamp_cue"] == DARK
    bench.show(HOME, 7.8 * FRAME)
    assert bench.trials.colours["lamp_go"] == DARK and bench.trials.report()["go"] is None
    bench.show(HOME, 0.2 * FRAME)
    assert bench.trials.colours["lamp_go"] == WHITE and bench.trials.report()["go"] == 18


@pytest.mark.parametrize("period", [1 / 120, 1 / 30, 0.5])
def test_frames_pass_with_the_clock_whatever_the_rate_of_pictures(bench, period):
    bench.begin()
    for _ in range(round(3 / period)):
        bench.show(HOME, period)
    assert bench.trials.report()["frame"] == pytest.approx(45, abs=1)
    for _ in range(round(5 / period)):
        bench.show(HOME, period)
    report = bench.trials.report()
    assert (report["state"], report["reason"], report["frame"]) == ("failure", "out of time", 18 + TIME_LIMIT)


def test_a_late_look_at_the_arm_does_not_make_a_short_press_long(bench):
    bench.begin()
    bench.show(HOME, 20 * FRAME)
    bench.show(bench.goal(), 3 * FRAME)
    assert bench.trials.state == "running", "only the last of these three frames was on the pad"
    bench.show(bench.goal(), 2 * FRAME)
    assert bench.trials.state == "success" and bench.trials.report()["frame"] == 25


def test_a_press_before_go_fails_and_a_trial_that_is_over_stays_so(bench):
    bench.begin()
    bench.show(bench.goal(), FRAME)
    bench.show(bench.goal(), 5 * FRAME)
    assert bench.trials.state == "failure" and "before go" in bench.trials.reason
    before = bench.trials.report()
    bench.show(HOME, 10)
    assert bench.trials.report() == before


def test_a_trial_is_started_once_and_only_when_ready(bench):
    with pytest.raises(TrialRefused, match="no trial; call reset_scene"):
        bench.trials.start(bench.now)
    bench.trials.next(bench.now)
    with pytest.raises(TrialRefused, match="trial 0 starts"):
        bench.trials.start(bench.now)
    bench.begin()
    with pytest.raises(TrialRefused, match="trial 1 is running already"):
        bench.trials.start(bench.now)
    bench.show(HOME, 20)
    with pytest.raises(TrialRefused, match=r"trial 1 is over \(out of time\)"):
        bench.trials.start(bench.now)
