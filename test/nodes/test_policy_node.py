# SPDX-License-Identifier: Apache-2.0
"""Pins the policy node's conversation over DDS: commands only from fresh input, resets that hold."""

import math
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rosgraph_msgs.msg import Clock

from smolvla_mem_ros.nodes.messages import to_time
from smolvla_mem_ros.runtime.stamps import from_time

from .robot import JOINTS, Scene, stamp


@pytest.fixture
def running(make_scene, checkpoint) -> Scene:
    """An episode has started and its first memory is committed."""
    scene = make_scene(checkpoint=str(checkpoint), seed=1)
    scene.wait_for_state("idle")
    assert scene.call("start_episode", task="sway gently").success
    scene.wait_for_commits(1)
    return scene


def test_an_episode_gives_trajectories_that_start_at_their_observation(running):
    scene = running
    scene.wait_for_commits(3)
    trajectory = scene.robot.trajectories[-1]
    assert trajectory.joint_names == JOINTS and len(trajectory.points) == 20
    times = [p.time_from_start.sec + p.time_from_start.nanosec / 1e9 for p in trajectory.points]
    np.testing.assert_allclose(times, np.arange(20) / 30, atol=1e-8)
    assert list(trajectory.points[-1].velocities) == [0.0] * 6
    assert all(math.isfinite(v) for p in trajectory.points for v in (*p.positions, *p.velocities))
    now = scene.robot.get_clock().now().nanoseconds
    assert now - 5e9 < stamp(trajectory) < now
    memory = scene.robot.memories[-1]
    assert (memory.num_mem_tokens, memory.hidden_size) == (4, 96)
    assert all(norm > 0 for norm in memory.norm)
    assert not memory.tokens


def test_memory_is_written_on_the_memory_clock(running):
    stamps = [stamp(m) for m in running.wait_for_commits(5)]
    assert np.median(np.diff(stamps)) / 1e9 == pytest.approx(1 / 3, abs=0.07)


def test_steps_count_commits_and_a_reset_starts_again_at_zero(running):
    scene = running
    before = scene.wait_for_commits(2)[-1]
    seen = len(scene.robot.memories)
    assert scene.call("reset_memory").success
    scene.wait_for_commits(2)
    after = scene.robot.memories[seen:]
    empty = next(i for i, m in enumerate(after) if from_time(m.last_reset) > from_time(before.last_reset))
    assert [m.step for m in after[empty:]][:3] == [0, 1, 2]
    assert list(after[empty].norm) == [0.0] * 4
    assert {m.episode_id for m in after} == {before.episode_id}


def test_a_new_episode_has_a_new_id_and_an_empty_memory(running):
    scene = running
    answer = scene.call("start_episode", task="something else")
    assert answer.episode_id == 2 and from_time(answer.stamp) > 0
    first = scene.wait_for_commits(1)[0]
    assert (first.episode_id, first.step) == (2, 1)
    assert stamp(first) >= from_time(answer.stamp)
    assert scene.wait_for_state("running").task == "something else"


def test_a_commit_names_the_messages_that_it_was_made_of(running):
    memory = running.wait_for_commits(2)[-1]
    assert memory.stream_names == ["joint_states", "front", "wrist"]
    stamps = [from_time(t) for t in memory.stream_stamps]
    assert stamps[0] == stamp(memory)
    assert max(stamps) - min(stamps) < 0.2e9 and min(stamps) > 0
    assert 0 <= from_time(memory.requested) - stamps[0] < 0.1e9
    running.call("reset_memory")
    running.spin(5, lambda: running.robot.memories[-1].step == 0)
    assert not running.robot.memories[-1].stream_stamps


def test_starts_resets_and_stops_are_told(running):
    scene = running
    answer = scene.call("start_episode", task="something else")
    scene.call("reset_memory")
    scene.call("stop_episode")
    scene.call("stop_episode")
    assert scene.spin(5, lambda: len(scene.robot.events) >= 5)
    events = scene.robot.events[-4:]
    assert [e.event for e in events] == ["start", "reset_memory", "stop", "stop"]
    assert {(e.episode_id, e.task) for e in events} == {(answer.episode_id, "something else")}
    assert stamp(events[0]) == from_time(answer.stamp) < stamp(events[1]) < stamp(events[2])
    assert len({e.seed for e in events}) == 1


def test_an_episode_without_a_task_is_refused(running):
    answer = running.call("start_episode", task="")
    assert not answer.success and "task is empty" in answer.message and answer.episode_id == 0


def test_stop_ends_commanding_with_one_point_at_rest(running):
    scene = running
    assert scene.call("stop_episode").success
    scene.spin(0.3)
    last = scene.robot.trajectories[-1]
    assert len(last.points) == 1 and list(last.points[0].velocities) == [0.0] * 6
    count = len(scene.robot.trajectories)
    scene.spin(1.0)
    assert len(scene.robot.trajectories) == count
    assert scene.robot.statuses[-1].state == "idle"


@pytest.mark.parametrize("stream", ["front", "wrist", "joint_states"])
def test_a_stream_that_stops_ends_commands_and_is_named(running, stream):
    scene = running
    scene.robot.silent.add(stream)
    scene.spin(1.0)
    count = len(scene.robot.trajectories)
    scene.spin(1.5)
    assert len(scene.robot.trajectories) == count, "nothing is commanded on old input"
    status = scene.robot.statuses[-1]
    assert f"{stream}: " in status.reason and "s old" in status.reason
    assert status.skipped_stale > 0
    assert dict(zip(status.stream_names, status.stream_ages, strict=True))[stream] > 1
    scene.robot.silent.clear()
    scene.wait_for_commits(1)


def test_a_stream_that_never_came_is_named_and_nothing_is_commanded(make_scene, checkpoint):
    scene = make_scene(checkpoint=str(checkpoint), task="sway")
    scene.robot.silent.add("wrist")
    scene.wait_for_state("running")
    scene.spin(1.5)
    status = scene.robot.statuses[-1]
    assert status.reason == "wrist: nothing received yet" and status.skipped_missing > 0
    assert status.inferences == 0 and not scene.robot.trajectories


def test_a_joint_that_is_not_a_number_ends_commands_and_is_named(running):
    scene = running
    scene.robot.positions[2] = math.nan
    scene.spin(0.5)
    count = len(scene.robot.trajectories)
    scene.spin(1.0)
    assert len(scene.robot.trajectories) == count
    assert "elbow_flex is not a finite number" in scene.robot.statuses[-1].reason


def test_a_thousand_resets_and_starts_against_running_inference(make_scene, checkpoint):
    """Over DDS, with injected delays: what is published after a reset stems from after it."""
    rng = random.Random(3)
    scene = make_scene(checkpoint=str(checkpoint), seed=1)
    scene.wait_for_state("idle")
    policy = scene.policy
    real = policy._engine.infer
    policy._worker._infer = lambda *args: (time.sleep(rng.choice((0, 0.01, 0.05))), real(*args))[1]
    assert scene.call("start_episode", task="sway").success
    resets = 0
    counters = policy._episode.counters
    # How many inferences a reset interrupts is up to the machine's speed.
    while resets < 1000 or counters.accepted < 20 or counters.dropped_epoch < 50:
        assert resets < 5000, counters
        resets += 1
        # The node's own callbacks, called on its own thread between two of its callbacks.
        if rng.random() < 0.5:
            policy._on_reset_memory(None, type("Response", (), {})())
        else:
            request = type("Request", (), {"task": "sway"})()
            policy._on_start_episode(request, type("Response", (), {})())
        assert policy._episode.memory is None
        scene.spin(rng.choice((0, 0, 0, 0.01, 0.03, 0.2)))
        counters = policy._episode.counters
    scene.wait_for_commits(3)
    counters = policy._episode.counters
    outcomes = (counters.accepted, counters.dropped_epoch, counters.dropped_late, counters.failed)
    assert counters.inferences == sum(outcomes)
    assert len({from_time(m.last_reset) for m in scene.robot.memories}) > 0.9 * resets
    previous = None
    for memory in scene.robot.memories:
        if previous is not None and memory.last_reset == previous.last_reset:
            assert memory.step == previous.step + 1, "each accepted step commits exactly once"
        else:
            assert memory.step == 0
        if memory.step:
            assert stamp(memory) >= from_time(memory.last_reset)
        previous = memory


def test_without_a_checkpoint_the_node_stays_up_and_says_what_to_do(make_scene):
    scene = make_scene()
    assert scene.wait_for_state("unconfigured")
    answer = scene.call("start_episode", task="x")
    assert not answer.success and "not active" in answer.message


def test_all_problems_of_a_configuration_are_named_at_once(make_scene, checkpoint, tmp_path, capfd):
    contract = tmp_path / "contract.yaml"
    contract.write_text("fps: 30\ncameras: {observation.images.frnt: {topic: a}}\n")
    scene = make_scene(checkpoint=str(checkpoint), contract=str(contract), device="cuda:7", dtype="bfloat16")
    scene.wait_for_state("unconfigured")
    log = capfd.readouterr().err
    for part in ("dtype bfloat16", "observation.images.front", "joints must be a list", "device cuda:7"):
        assert part in log
    assert "Traceback" not in log


def test_memory_can_be_switched_off(make_scene, checkpoint):
    scene = make_scene(checkpoint=str(checkpoint), num_mem_tokens=0, task="sway")
    memory = scene.wait_for_commits(1)[0]
    assert memory.num_mem_tokens == 0 and not memory.norm
    assert scene.robot.trajectories


def test_dry_run_infers_and_commands_nothing(make_scene, checkpoint):
    scene = make_scene(checkpoint=str(checkpoint), dry_run=True, task="sway")
    scene.wait_for_commits(2)
    assert not scene.robot.trajectories


def test_the_same_seed_gives_the_same_first_chunk(make_scene, checkpoint):
    chunks = []
    for _ in range(2):
        scene = make_scene(checkpoint=str(checkpoint), seed=5, task="sway")
        scene.wait_for_commits(1)
        chunks.append([p.positions.tolist() for p in scene.robot.trajectories[0].points])
        scene.policy.close()
    np.testing.assert_array_equal(chunks[0], chunks[1])


def test_it_can_be_deactivated_cleaned_up_and_started_again(running):
    scene = running
    policy = scene.policy
    policy.trigger_deactivate()
    scene.spin(0.3)
    count = len(scene.robot.trajectories)
    scene.spin(0.7)
    assert len(scene.robot.trajectories) == count
    policy.trigger_cleanup()
    assert "not active" in scene.call("start_episode", task="x").message
    policy.trigger_configure()
    policy.trigger_activate()
    assert scene.call("start_episode", task="sway").success
    scene.wait_for_commits(1)


@pytest.mark.parametrize(("task", "told"), [("", ["start", "stop"]), ("sway", ["start", "start"])])
def test_a_clock_that_goes_back_ends_the_episode(make_scene, checkpoint, task, told):
    """And with a task of its own the policy starts anew; the memory is empty either way."""
    scene = make_scene(checkpoint=str(checkpoint), use_sim_time=True, task=task)
    clock = scene.robot.create_publisher(Clock, "/clock", 10)
    timer = scene.robot.create_timer(
        0.01, lambda: clock.publish(Clock(clock=scene.robot.get_clock().now().to_msg()))
    )
    scene.wait_for_state("running" if task else "idle")
    if not task:
        assert scene.call("start_episode", task="sway").success
    scene.wait_for_commits(1)
    scene.robot.destroy_timer(timer)
    seen = len(scene.robot.memories)
    clock.publish(Clock(clock=to_time(scene.robot.get_clock().now().nanoseconds - 10**10)))
    assert scene.spin(10, lambda: len(scene.robot.events) == 2)
    assert [e.event for e in scene.robot.events] == told
    assert scene.spin(5, lambda: len(scene.robot.memories) > seen)
    assert scene.robot.memories[-1].step == 0


def start_process(checkpoint) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "smolvla_mem_ros.start", "nodes.policy_node", "--ros-args"]
    command += ["-p", f"checkpoint:={checkpoint}", "-p", "autostart:=true"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_cleanly(checkpoint, number):
    process = start_process(checkpoint)
    for line in process.stdout:
        if "loaded" in line:
            break
    began = time.monotonic()
    process.send_signal(number)
    rest = process.communicate(timeout=20)[0]
    assert process.returncode == 0 and time.monotonic() - began < 3
    assert "Traceback" not in rest


def test_a_signal_while_it_imports_and_loads_ends_it_quietly(checkpoint):
    process = start_process(checkpoint)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)[0]
    assert process.returncode == 0
    assert "Traceback" not in rest
