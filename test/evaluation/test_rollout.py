# SPDX-License-Identifier: Apache-2.0
"""Episodes are played alike in any batch, memories never mix, and each memory mode does what it says.

A scripted policy looks for the lamp in the picture and keeps what it saw in a memory token, as the trained
one should: it shows that the way through rollout carries a memory and what the modes do to success.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from smolvla_mem_ros.evaluation import rollout as module
from smolvla_mem_ros.evaluation.rollout import MODES, Stage, check_fits, rollout
from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.policy.memory import Memory
from smolvla_mem_ros.sim.demos import draw
from smolvla_mem_ros.sim.expert import press_pose
from smolvla_mem_ros.sim.tasks import COLOURS, DARK, PLACES, TASKS, WHITE
from smolvla_mem_ros.sim.world import paint
from smolvla_mem_ros.so100.arm import LEROBOT_UNITS

CHUNK, STEPS = 16, 8


class Rememberer:
    """Plays CueRecall2 by its picture: remembers the lamp's colour, and reaches for its pad after go."""

    def __init__(self, world):
        dark = self._look(world, DARK, DARK)
        self.cue = np.abs(self._look(world, COLOURS["red"], DARK) - dark).max(axis=0) > 60 / 255
        self.go = np.abs(self._look(world, DARK, WHITE) - dark).max(axis=0) > 60 / 255
        poses = [press_pose(world.scene, PLACES[place]) for place in ("left", "right")]
        self.goals = torch.tensor(LEROBOT_UNITS.from_radians(np.array(poses)), dtype=torch.float32)
        self.config = SimpleNamespace(
            chunk_size=CHUNK, n_action_steps=STEPS, max_action_dim=6, device="cpu", num_mem_tokens=1
        )
        self.policy = self
        self.handed = []

    @staticmethod
    def _look(world, cue, go):
        world.reset(*draw(TASKS["CueRecall2"], 0, 0))
        colours = {**world.referee.colours, "lamp_cue": cue, "lamp_go": go}
        paint(world.scene.model, colours)
        image = world._cameras.render(world.scene.data, "front")
        return image.transpose(2, 0, 1).astype(float) / 255

    @staticmethod
    def preprocessor(raw):
        return raw

    postprocessor = staticmethod(lambda actions: actions)

    def infer(self, batch, memory, noise):
        self.handed.append(memory)
        state, image = batch["observation.state"], batch["observation.images.front"]
        lamp = image[:, :, torch.from_numpy(self.cue)].mean(-1)
        go = image[:, :, torch.from_numpy(self.go)].mean(-1).min(dim=1).values > 0.4
        seen = torch.stack([lamp[:, 0] - lamp[:, 2], lamp[:, 2] - lamp[:, 0]], 1).clamp_min(0) > 0.3
        old = torch.zeros(len(state), 2) if memory is None else memory.tokens[:, 0]
        tokens = torch.where(seen.any(1, keepdim=True), seen.float(), old)
        goal = self.goals[tokens.argmax(1)]
        share = (torch.arange(1, CHUNK + 1) / STEPS).clamp_max(1)[None, :, None]
        actions = state[:, None] + share * (goal - state)[:, None] * go[:, None, None]
        return actions, Memory(tokens[:, None], torch.ones(len(state), dtype=torch.bool))


@pytest.fixture(scope="module")
def rememberer(stage):
    return Rememberer(stage.worlds[0])


@pytest.fixture(scope="module")
def tiny(memory_path):
    return load_checkpoint(memory_path, "cpu")


def successes(policy, stage, mode, n=12, **options):
    return [o.success for o in rollout(policy, stage, "CueRecall2", range(n), memory_mode=mode, **options)]


# With a policy that remembers ---------------------------------------------------------------------


def test_who_remembers_succeeds_in_every_row_of_every_batch(rememberer, stage):
    outcomes = rollout(rememberer, stage, "CueRecall2", range(12))
    assert all(o.success for o in outcomes), outcomes
    assert [o.episode for o in outcomes] == list(range(12))
    assert {o.reward for o in outcomes} == {1.0}
    assert {o.reason for o in outcomes} == {"reached left", "reached right"}


def test_the_first_memory_is_enough_where_the_first_frame_shows_the_cue(rememberer, stage):
    assert all(successes(rememberer, stage, "frozen"))
    late = rollout(rememberer, stage, "LateCue2", range(12), memory_mode="frozen")
    assert 0 < sum(o.success for o in late) < 12


@pytest.mark.parametrize("mode", ["reset_every_step", "noise"])
def test_who_is_robbed_of_the_memory_guesses(rememberer, stage, mode):
    assert 2 <= sum(successes(rememberer, stage, mode)) <= 10


def test_a_visible_cue_needs_no_memory(rememberer, stage):
    assert all(successes(rememberer, stage, "reset_every_step", cue_visible=True))


def test_a_longer_delay_is_played(rememberer, stage):
    outcomes = rollout(rememberer, stage, "CueRecall2", range(4), delay=60)
    assert all(o.success for o in outcomes)
    assert min(o.frames for o in outcomes) > 70


def test_the_seed_decides_and_nothing_else(rememberer, stage):
    def play(seed, episodes=range(4)):
        return rollout(rememberer, stage, "CueRecall2", episodes, seed=seed)

    assert play(1) == play(1) != play(2)
    assert play(1, [2]) == play(1)[2:3]


def test_progress_counts_every_episode_once(rememberer, stage):
    ended = []
    rollout(rememberer, stage, "CueRecall2", range(6), progress=ended.append)
    assert sum(ended) == 6


# What the modes hand to the model -----------------------------------------------------------------


@dataclass
class Spy:
    """Notes what goes into a policy and what comes out."""

    checkpoint: object

    def __post_init__(self):
        self.config, self.policy = self.checkpoint.config, self
        self.preprocessor, self.postprocessor = self.checkpoint.preprocessor, self.checkpoint.postprocessor
        self.handed, self.made, self.actions = [], [], []

    def infer(self, batch, memory, noise):
        actions, new = self.checkpoint.policy.infer(batch, memory, noise)
        self.handed.append(memory)
        self.made.append(new)
        self.actions.append(actions)
        return actions, new


def spied(checkpoint, stage, mode, episodes=(0,), **options):
    spy = Spy(checkpoint)
    rollout(spy, stage, "CueRecall2", episodes, memory_mode=mode, **options)
    assert len(spy.handed) > 5
    assert spy.handed[0] is None, "an episode starts with nothing"
    return spy


def test_on_hands_in_what_was_handed_back(tiny, stage):
    spy = spied(tiny, stage, "on")
    for made, handed in zip(spy.made, spy.handed[1:], strict=False):
        assert torch.equal(made.tokens, handed.tokens)
        assert handed.filled.all()


def test_frozen_hands_in_the_first_for_ever(tiny, stage):
    spy = spied(tiny, stage, "frozen")
    assert all(torch.equal(handed.tokens, spy.made[0].tokens) for handed in spy.handed[1:])


def test_reset_every_step_hands_in_nothing(tiny, stage):
    assert all(memory is None for memory in spied(tiny, stage, "reset_every_step").handed)


def test_noise_is_as_large_as_the_memory_and_new_each_time(tiny, stage):
    spy = spied(tiny, stage, "noise", episodes=range(2))
    for made, handed in zip(spy.made, spy.handed[1:], strict=False):
        sizes = [m.tokens.pow(2).mean().sqrt().item() for m in (made, handed)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.15)
        cosine = torch.nn.functional.cosine_similarity(made.tokens.flatten(), handed.tokens.flatten(), dim=0)
        assert abs(cosine) < 0.25
    assert not torch.equal(spy.handed[1].tokens[0], spy.handed[1].tokens[1])
    assert not torch.equal(spy.handed[1].tokens, spy.handed[2].tokens)


def test_noise_goes_into_a_cached_memory_too(make_checkpoint, stage):
    checkpoint = load_checkpoint(make_checkpoint(read_mem_from_cache=True), "cpu")
    spy = spied(checkpoint, stage, "noise")
    made, handed = spy.made[0].cache, spy.handed[1].cache
    assert made.shape == handed.shape
    assert not torch.equal(made, handed)
    layer_sizes = [cache.pow(2).mean(dim=(3, 4, 5)).sqrt() for cache in (made, handed)]
    torch.testing.assert_close(*layer_sizes, rtol=0.25, atol=0)


def test_off_runs_the_model_without_its_memory_blocks(memory_path, stage):
    spy = spied(load_checkpoint(memory_path, "cpu", num_mem_tokens=0), stage, "off")
    assert all(memory is None for memory in spy.made + spy.handed)


def test_without_a_memory_modes_on_and_off_are_the_same(stock_path, stage):
    checkpoint = load_checkpoint(stock_path, "cpu")
    on, off = (spied(checkpoint, stage, mode) for mode in ("on", "off"))
    assert all(torch.equal(a, b) for a, b in zip(on.actions, off.actions, strict=True))


def test_the_memory_moves_the_actions(tiny, stage):
    on, noise = (spied(tiny, stage, mode) for mode in ("on", "noise"))
    assert torch.equal(on.actions[0], noise.actions[0])


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["on", "noise"])
def test_an_episode_is_the_same_alone_and_in_a_batch(tiny, stage, mode):
    together = spied(tiny, stage, mode, episodes=range(4), delay=8)
    with Stage(1) as small:
        for episode in range(4):
            alone = spied(tiny, small, mode, episodes=[episode], delay=8)
            assert len(alone.actions) == len(together.actions)
            for a, b in zip(alone.actions, together.actions, strict=True):
                torch.testing.assert_close(a[0], b[episode], rtol=0, atol=1e-3)
            for a, b in zip(alone.made, together.made, strict=True):
                torch.testing.assert_close(a.tokens[0], b.tokens[episode], rtol=0, atol=1e-3)


def test_rows_keep_their_memory_when_others_end_and_they_move_up(tiny, stage):
    episodes = [9, 0, 5, 7]  # the first and the third end a round before the others
    rounds = [-(-draw(TASKS["CueRecall2"], 0, k)[0].max_frames // STEPS) for k in episodes]
    assert rounds == [14, 15, 14, 15]
    together = spied(tiny, stage, "on", episodes=episodes)
    assert [len(actions) for actions in together.actions] == [4] * 14 + [2]
    for row, episode in enumerate((0, 7)):
        alone = spied(tiny, stage, "on", episodes=[episode])
        torch.testing.assert_close(alone.made[-1].tokens[0], together.made[-1].tokens[row], rtol=0, atol=1e-3)


# What cannot be played ----------------------------------------------------------------------------


def test_an_unknown_mode_is_named_with_those_there_are(tiny, stage):
    with pytest.raises(ValueError, match=f"no memory mode 'of'; there are {', '.join(MODES)}"):
        rollout(tiny, stage, "CueRecall2", [0], memory_mode="of")


def test_off_is_refused_for_a_model_that_still_has_its_memory(tiny, stage):
    with pytest.raises(ValueError, match="load the checkpoint with num_mem_tokens=0"):
        rollout(tiny, stage, "CueRecall2", [0], memory_mode="off")


def test_a_policy_of_other_cameras_is_refused(make_checkpoint):
    features = load_checkpoint(make_checkpoint(), "cpu").config.input_features
    other = {key.replace("wrist", "side"): value for key, value in features.items()}
    checkpoint = load_checkpoint(make_checkpoint(input_features=other), "cpu")
    with pytest.raises(
        ValueError, match=r"observation\.images\.side, not .*wrist; train it on what collect_demos"
    ):
        check_fits(checkpoint)


def test_a_policy_of_another_arm_is_refused():
    config = SimpleNamespace(
        image_features={f"observation.images.{camera}": None for camera in module.CAMERAS},
        robot_state_feature=SimpleNamespace(shape=(14,)),
        action_feature=SimpleNamespace(shape=(14,)),
    )
    with pytest.raises(ValueError, match="14 joints and 14 actions, not 6"):
        check_fits(SimpleNamespace(config=config))


def test_a_policy_of_this_arm_and_these_cameras_fits(tiny):
    check_fits(tiny)
