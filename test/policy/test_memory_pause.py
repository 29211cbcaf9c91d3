# SPDX-License-Identifier: Apache-2.0
"""In training one frame of a batch is written again, as if the robot stood still there."""

import pytest
import torch


@pytest.fixture
def paused(make_policy, make_sample, noise_for, monkeypatch):
    """A policy in training with 3 segments and no anchor, and how often it wrote each in one step."""

    def make(slot=0, pause=0, **changes):
        policy = make_policy(mem_segments=3, mem_anchor=False, mem_noise=0.0, **changes).train()
        monkeypatch.setattr(policy, "_pause", lambda slots: (slot, pause))
        sample, noise, time = make_sample(policy.config), *noise_for(policy.config, batch=2, segments=3)
        return policy, sample, noise, time

    return make


def writes(policy, monkeypatch):
    """The memories that were read, in turn."""
    read, add_memory = [], policy.model.add_memory
    monkeypatch.setattr(policy.model, "add_memory", lambda body, m: read.append(m) or add_memory(body, m))
    return read


def test_a_pause_is_the_same_frame_written_again(paused, monkeypatch):
    policy, sample, noise, time = paused(slot=1, pause=2)
    read = writes(policy, monkeypatch)
    policy(sample, noise=noise, time=time)
    assert len(read) == 5
    # By hand: the frame of segment 1 on and on.
    body = policy._unroll(sample).bodies[1]
    memory = read[1]
    for expected in read[2:]:
        memory = policy.model.write(body, memory)
        torch.testing.assert_close(memory.tokens, expected.tokens)


def test_a_pause_changes_what_later_segments_read(paused):
    losses = []
    for pause in (0, 3):
        policy, sample, noise, time = paused(slot=0, pause=pause, mem_update="rmt")
        losses.append(policy(sample, noise=noise, time=time, reduction="none")[0])
    assert (losses[0] != losses[1]).all()


def test_a_pause_writes_nothing_where_the_frame_does_not_exist(paused):
    losses = []
    for pause in (0, 3):
        policy, sample, noise, time = paused(slot=0, pause=pause, mem_update="rmt")
        sample["observation.state_is_pad"] = torch.zeros(2, 3, dtype=torch.bool)
        sample["observation.state_is_pad"][1, 0] = True
        losses.append(policy(sample, noise=noise, time=time, reduction="none")[0])
    assert (losses[0] == losses[1]).tolist() == [False, True]


def test_the_gradient_passes_through_a_pause(paused):
    policy, sample, noise, time = paused(slot=0, pause=3, mem_update="rmt")
    first = policy.model.mem_tokens
    grads = []
    for depth in (None, 0):
        policy.config.mem_backprop_depth = depth
        policy.zero_grad()
        policy(sample, noise=noise, time=time)[0].backward()
        grads.append(None if first.grad is None else first.grad.abs().sum().item())
    assert grads[0]
    assert not grads[1]


def test_place_and_length_are_drawn_in_training_alone(make_policy):
    policy = make_policy(mem_pause=2).train()
    drawn = {policy._pause(4) for _ in range(500)}
    # Not after the last slot: nothing would read it.
    assert drawn == {(slot, pause) for slot in range(3) for pause in range(3)}
    assert {policy._pause(1) for _ in range(20)} == {(0, 0)}
    policy.eval()
    assert {policy._pause(4) for _ in range(20)} == {(0, 0)}
    policy = make_policy(mem_pause=0).train()
    assert {policy._pause(4) for _ in range(20)} == {(0, 0)}


def test_a_negative_pause_is_refused(make_config):
    with pytest.raises(ValueError, match="mem_pause"):
        make_config(mem_pause=-1)
