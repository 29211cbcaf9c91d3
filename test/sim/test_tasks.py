# SPDX-License-Identifier: Apache-2.0
"""The tasks need memory by construction: the secret is fairly drawn, and gone when it is time to choose."""

from collections import Counter

import numpy as np
import pytest

from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.tasks import (
    BUTTON,
    COLOURS,
    CUE_FRAMES,
    DARK,
    DELAYS,
    PLACES,
    PRESS_FRAMES,
    TASKS,
    TIME_LIMIT,
    WHITE,
    Referee,
    get_task,
)

AWAY = (0.25, 0.0, 0.11)  # m, over nothing
NEVER = 10**6  # frames
PRESSING = ["CueRecall2", "CueRecall3", "LateCue2", "Sequence2of3", "CueRecallShuffled3"]
everything = pytest.mark.parametrize("name", TASKS)


def trials(name, n, **options):
    return [draw(TASKS[name], seed=5, episode=k, **options)[0] for k in range(n)]


def low(place):
    """A tip that presses ``place``; a place is named, or (x, y) in metres."""
    return (*PLACES.get(place, place), 0.02)


def high(place):
    return (*PLACES[place], 0.11)


def stay(referee, tip, frames=NEVER, until=lambda: False):
    for _ in range(frames):
        if referee.outcome is not None or until():
            return
        referee.step(tip)


def wait_for_go(referee):
    trial = referee.trial
    tip = low(BUTTON) if trial.button else AWAY
    if trial.start:
        stay(referee, high(trial.start), 5)
    stay(referee, tip, until=lambda: referee.go is not None)
    return referee


def choose(trial, places):
    """Waits for go, then goes to ``places`` in turn. Returns the referee."""
    referee = wait_for_go(Referee(trial))
    for place in places:
        stay(referee, high(place) if trial.button else low(place), PRESS_FRAMES)
        stay(referee, AWAY, 2)
    stay(referee, AWAY)
    return referee


# What is drawn ------------------------------------------------------------------------------------


@everything
def test_each_answer_is_drawn_equally_often(name):
    count = Counter(trial.goals for trial in trials(name, 600))
    answers = round(1 / TASKS[name].ceiling)
    assert len(count) == answers
    expected = 600 / answers
    assert max(abs(n - expected) for n in count.values()) < 4 * np.sqrt(expected)


@everything
def test_delays_are_drawn_from_end_to_end_whatever_the_answer(name):
    waits = {}
    for trial in trials(name, 800):
        waits.setdefault(trial.goals, set()).add(trial.wait)
    for seen in waits.values():
        assert seen == set(range(DELAYS[0], DELAYS[1] + 1))


@everything
def test_a_given_delay_is_kept(name):
    for trial in trials(name, 20, delay=33):
        referee = wait_for_go(Referee(trial))
        since = 5 if trial.button else trial.flashes[-1].end
        assert referee.go == since + 33


@everything
def test_a_delay_in_which_the_cue_would_tell_the_action_is_refused(name):
    with pytest.raises(ValueError, match=f"delay {DELAYS[0] - 1} .* {DELAYS[0]} frames"):
        trials(name, 1, delay=DELAYS[0] - 1)


@everything
def test_seed_and_number_make_the_episode(name):
    assert trials(name, 5) == trials(name, 5)
    assert draw(TASKS[name], 1, 0)[0] != draw(TASKS[name], 2, 0)[0]


def test_tasks_draw_apart_from_each_other():
    delays = [[t.wait for t in trials(name, 12)] for name in TASKS]
    assert len({tuple(d) for d in delays}) == len(TASKS)


def test_an_unknown_task_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"no task 'Cue'.*CueRecall2.*CueRecallShuffled3"):
        get_task("Cue")


def test_instructions_tell_the_tasks_apart_and_nothing_else():
    assert len({task.instruction for task in TASKS.values()}) == len(TASKS)
    for name, task in TASKS.items():
        assert {trial.instruction for trial in trials(name, 50)} == {task.instruction}


# What is shown ------------------------------------------------------------------------------------


@everything
def test_nothing_that_is_seen_from_go_on_tells_the_answer(name):
    looks, answers = {}, {}
    for trial in trials(name, 150):
        referee = wait_for_go(Referee(trial))
        key = tuple(sorted(trial.pads.items()))  # where the colours are is not secret
        looks.setdefault(key, set()).add(tuple(sorted(referee.colours.items())))
        answers.setdefault(key, set()).add(trial.goals)
    assert all(len(seen) == 1 for seen in looks.values())
    assert all(len(a) > 1 for a in answers.values())


@pytest.mark.parametrize("name", PRESSING)
def test_cues_are_shown_for_their_time_and_are_over_a_delay_before_go(name):
    for trial in trials(name, 40):
        referee = Referee(trial)
        lit = []
        while referee.go is None:
            lit.append(referee.colours["lamp_cue"])
            assert referee.colours["lamp_go"] == DARK
            referee.step(AWAY)
        shown = [COLOURS[trial.pads[place]] for place in trial.goals for _ in range(CUE_FRAMES)]
        assert [colour for colour in lit if colour != DARK] == shown
        assert lit[-trial.wait :] == [DARK] * trial.wait
        assert trial.wait >= DELAYS[0]
        assert referee.colours["lamp_go"] == WHITE


def test_the_first_frame_of_a_late_cue_is_dark():
    starts = {trial.flashes[0].start for trial in trials("LateCue2", 300)}
    assert min(starts) > 0 and len(starts) > 10
    assert all(Referee(trial).colours["lamp_cue"] == DARK for trial in trials("LateCue2", 20))


@pytest.mark.parametrize("name", ["CueRecall2", "CueRecall3", "LateCue2", "CueRecallShuffled3"])
def test_a_visible_cue_stays_lit_to_the_end(name):
    for trial in trials(name, 20, cue_visible=True):
        referee = wait_for_go(Referee(trial))
        stay(referee, AWAY, 30)
        assert referee.colours["lamp_cue"] == COLOURS[trial.pads[trial.goals[0]]]


def test_of_several_visible_cues_the_next_goals_is_lit():
    for trial in trials("Sequence2of3", 20, cue_visible=True):
        referee = Referee(trial)
        shown = [referee.colours["lamp_cue"]]
        while referee.frame < trial.flashes[0].end:
            referee.step(AWAY)
            shown.append(referee.colours["lamp_cue"])
        first, second = (COLOURS[trial.pads[goal]] for goal in trial.goals)
        assert shown == [first] * trial.flashes[0].end + [second]
        wait_for_go(referee)
        assert referee.colours["lamp_cue"] == first
        stay(referee, (*PLACES[trial.goals[0]], 0.02), 3)
        assert (referee.done, referee.colours["lamp_cue"]) == (1, second)


def test_a_task_without_a_cue_has_none_to_keep_visible():
    with pytest.raises(ValueError, match="TakeItBack3 has no cue"):
        trials("TakeItBack3", 1, cue_visible=True)


# How it is judged ---------------------------------------------------------------------------------


@everything
def test_going_to_the_goals_succeeds(name):
    for trial in trials(name, 30):
        referee = choose(trial, trial.goals)
        assert referee.outcome is True, referee.reason
        assert referee.done == len(trial.goals)


@everything
@pytest.mark.parametrize("strategy", ["guess", "always the same"])
def test_who_does_not_remember_reaches_the_ceiling_and_no_more(name, strategy):
    rng = np.random.default_rng(0)
    n, successes = 300, 0
    for trial in trials(name, n, delay=DELAYS[0]):
        options = list(trial.pads or PLACES)
        if strategy == "guess":
            rng.shuffle(options)
        successes += choose(trial, options[: len(trial.goals)]).outcome
    ceiling = TASKS[name].ceiling
    assert abs(successes / n - ceiling) < 4 * np.sqrt(ceiling * (1 - ceiling) / n)


@pytest.mark.parametrize("name", PRESSING)
def test_pressing_before_go_fails_even_the_right_pad(name):
    for trial in trials(name, 20):
        referee = Referee(trial)
        stay(referee, AWAY, trial.go - PRESS_FRAMES - 1)
        stay(referee, low(trial.goals[0]), PRESS_FRAMES)
        assert referee.outcome is False
        assert "before go" in referee.reason


@pytest.mark.parametrize("name", PRESSING)
def test_a_brush_over_a_wrong_pad_is_no_press(name):
    for trial in trials(name, 20):
        referee = wait_for_go(Referee(trial))
        wrong = next(place for place in trial.pads if place not in trial.goals[:1])
        stay(referee, low(wrong), PRESS_FRAMES - 1)
        stay(referee, AWAY, 1)
        stay(referee, low(wrong), PRESS_FRAMES - 1)
        assert referee.outcome is None
        stay(referee, low(wrong), 1)
        assert referee.outcome is False


@everything
def test_doing_nothing_runs_out_of_time(name):
    for trial in trials(name, 20):
        referee = Referee(trial)
        stay(referee, AWAY)
        assert (referee.outcome, referee.reason) == (False, "out of time")
        assert referee.frame == trial.max_frames
        referee.step(low(trial.goals[0]))
        assert referee.frame == trial.max_frames, "what is over is over"


@pytest.mark.parametrize("late", [0, 30, 120])
def test_no_trial_outlasts_its_limit_however_late_go_came(late):
    for trial in trials("TakeItBack3", 20):
        referee = Referee(trial)
        stay(referee, AWAY, late)
        stay(wait_for_go(referee), AWAY)
        assert referee.reason == "out of time"
        assert referee.frame <= min(trial.max_frames, referee.go + TIME_LIMIT)


def test_a_sequence_in_the_wrong_order_fails_at_the_first_press():
    for trial in trials("Sequence2of3", 30):
        referee = choose(trial, reversed(trial.goals))
        assert referee.outcome is False
        assert referee.done == 0


def test_half_a_sequence_is_half_of_the_goals():
    trial = trials("Sequence2of3", 1)[0]
    third = next(place for place in trial.pads if place not in trial.goals)
    referee = choose(trial, [trial.goals[0], third])
    assert (referee.outcome, referee.done) == (False, 1)


def test_a_pad_that_was_pressed_rightly_turns_white_and_may_be_stood_on():
    trial = trials("Sequence2of3", 1)[0]
    referee = wait_for_go(Referee(trial))
    stay(referee, low(trial.goals[0]), 20)
    assert referee.outcome is None
    colours = referee.colours
    assert colours[f"pad_{trial.goals[0]}"] == WHITE
    assert colours[f"pad_{trial.goals[1]}"] == COLOURS[trial.pads[trial.goals[1]]]


def test_the_button_must_be_held_for_the_whole_delay():
    trial = trials("TakeItBack3", 1, delay=10)[0]
    referee = Referee(trial)
    stay(referee, low(BUTTON), 9)
    stay(referee, AWAY, 1)
    assert referee.go is None
    stay(referee, low(BUTTON), 9)
    assert referee.go is None
    stay(referee, low(BUTTON), 1)
    assert referee.go == referee.frame


def test_staying_at_the_start_does_not_count_as_coming_back():
    trial = trials("TakeItBack3", 1)[0]
    referee = Referee(trial)
    stay(referee, high(trial.start), 60)
    assert referee.outcome is None
    assert referee.done == 0


def test_coming_back_low_does_not_count():
    trial = trials("TakeItBack3", 1)[0]
    referee = wait_for_go(Referee(trial))
    stay(referee, low(trial.start), 10)
    assert referee.outcome is None


def test_the_places_to_come_back_to_are_not_marked():
    for trial in trials("TakeItBack3", 10):
        colours = Referee(trial).colours
        assert all(colours[f"pad_{place}"] is None for place in PLACES)
        assert colours["button"] is not None
