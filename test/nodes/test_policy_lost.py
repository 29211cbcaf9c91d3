# SPDX-License-Identifier: Apache-2.0
"""A policy node that is killed or stands still in the middle of a motion leaves the arm holding still."""

import signal

import numpy as np
import pytest
from smolvla_mem_ros.srv import StartEpisode
from std_srvs.srv import Trigger

MOVES = 0.1  # rad/s


def positions(states):
    return np.array([state.position for state in states])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_policy_that_is_lost_leaves_the_arm_holding_still(
    start_node, calibration, checkpoint, probe, tmp_path, number
):
    port = tmp_path / "ttySO100"
    sim = start_node("so100_sim", {"port": port, "camera.width": 64, "camera.height": 48})
    sim.wait_for("a simulated SO-100 is at")
    start_node("so100_node", {"port": port, "calibration": calibration}).wait_for(
        "connected and holding still"
    )
    policy = start_node("policy_node", {"checkpoint": checkpoint, "autostart": True})
    policy.wait_for("loaded")
    assert probe.call(StartEpisode, "policy/start_episode", task="sway").success
    moves = lambda: probe.states and np.abs(probe.states[-1].velocity).max() > MOVES  # noqa: E731
    probe.spin_until(moves)

    policy.process.send_signal(number)
    probe.reports.clear()
    # Until command_timeout the last point is held, then where the arm is measured, which settles a little.
    probe.spin_until(lambda: probe.reports.get("so100", {}).get("timeouts", "0") != "0")
    probe.spin(1.0)
    probe.states.clear()
    probe.spin(1.0)
    assert np.ptp(positions(probe.states), axis=0).max() < 0.01
    report = probe.reports["so100"]
    assert report["state"] == "holding" and report["connected"] == "true"
    # The arm is not lost with it.
    assert probe.call(Trigger, "so100/emergency_stop").success
