# SPDX-License-Identifier: Apache-2.0
"""Both plants move, push, warm and slow down alike as servos do; the light one does without MuJoCo."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smolvla_mem_ros.sim.emulator import make_plant, make_servos
from smolvla_mem_ros.sim.first_order_plant import LAG, FirstOrderPlant
from smolvla_mem_ros.sim.joint_servos import MAX_SPEED
from smolvla_mem_ros.so100.arm import Calibration

CALIBRATIONS = Path(__file__).parents[2] / "config/calibration"
GOAL = np.array([0.5, -0.3, 0.2, 0.9, 0.4, 1.0])


class Rig:
    """A plant whose clock moves when the test says so."""

    def __init__(self, kind="first_order", model="so100", monkeypatch=None):
        self.now = 100.0
        if monkeypatch:
            monkeypatch.setattr("time.monotonic", lambda: self.now)
        self.calibration = Calibration.load(CALIBRATIONS / f"{model}_sim.json")
        self.servos = make_servos(self.calibration)
        if monkeypatch:
            self.plant = make_plant(kind, None, self.calibration, self.servos, None)
        else:
            self.plant = FirstOrderPlant(self.calibration, self.servos, lambda: self.now)

    def run(self, seconds, step=0.01):
        for _ in range(round(seconds / step)):
            self.now += step
            self.plant.advance()

    def order(self, radians, torque=1):
        for servo, ticks in zip(self.servos, self.calibration.ticks.from_radians(radians), strict=True):
            servo["Goal_Position"] = round(ticks)
            servo["Torque_Enable"] = torque

    def measured(self):
        return self.calibration.ticks.to_radians([s["Present_Position"] for s in self.servos])


@pytest.fixture(params=["first_order", "mujoco"])
def rig(request, monkeypatch):
    return Rig(request.param, monkeypatch=monkeypatch)


@pytest.mark.parametrize("model", ["so100", "so101"])
def test_the_arm_starts_in_the_middle_and_goes_to_its_goal(model):
    rig = Rig(model=model)
    middle = [(s["Min_Position_Limit"] + s["Max_Position_Limit"]) / 2 for s in rig.servos]
    np.testing.assert_allclose([s["Present_Position"] for s in rig.servos], middle, atol=1)
    rig.order(GOAL)
    rig.run(2.0)
    np.testing.assert_allclose(rig.measured(), GOAL, atol=0.002)
    np.testing.assert_allclose(rig.plant.qpos, GOAL, atol=0.002)


def test_a_near_goal_is_neared_by_its_time_constant_and_a_far_one_at_full_speed():
    rig = Rig()
    rig.order([0.1, 1.5, 0, 0, 0, 0.8])
    start = rig.plant.qpos.copy()
    rig.run(LAG, step=LAG / 30)
    assert 0.1 - rig.plant.qpos[0] == pytest.approx(0.1 / np.e, rel=0.03)
    assert rig.plant.qpos[1] - start[1] == pytest.approx(MAX_SPEED * LAG, rel=0.02)
    assert rig.servos[1]["Present_Velocity"] == pytest.approx(MAX_SPEED * 4095 / (2 * np.pi), rel=0.02)


def test_without_torque_nothing_moves_and_reset_puts_back_only_an_arm_that_is_not_held():
    rig = Rig()
    start = rig.measured()
    rig.order(GOAL, torque=0)
    rig.run(0.5)
    np.testing.assert_array_equal(rig.measured(), start)
    rig.order(GOAL)
    rig.run(1.5)
    rig.plant.reset()
    np.testing.assert_allclose(rig.measured(), GOAL, atol=0.002)
    rig.order(GOAL, torque=0)
    rig.plant.reset()
    np.testing.assert_array_equal(rig.measured(), start)
    assert rig.plant.resets == 2


def test_a_stuck_servo_stays_pushes_overloads_and_goes_on_when_free(rig):
    before = rig.measured()[0]
    rig.servos[0].stuck = True
    rig.order([0.8, *rig.measured()[1:]])
    rig.run(1.0)
    assert rig.measured()[0] == pytest.approx(before, abs=0.01)
    assert rig.servos[0]["Present_Load"] == 1000 and rig.servos[0]["Status"] == 0
    rig.run(1.5)
    assert rig.servos[0]["Status"] == 32 and rig.servos[0]["Present_Load"] == 200
    rig.servos[0].stuck = False
    rig.run(1.5)
    assert rig.measured()[0] == pytest.approx(0.8, abs=0.05)


def test_an_overheated_servo_lets_go_until_it_has_cooled(rig):
    before = rig.measured()
    rig.servos[0].forced_celsius = 80
    rig.run(0.05)
    rig.order([0.8, *before[1:]])
    rig.run(0.5)
    assert rig.measured()[0] == pytest.approx(before[0], abs=0.01)
    assert rig.servos[0]["Present_Temperature"] == 80
    rig.servos[0].forced_celsius = None
    rig.run(1.0)
    assert rig.measured()[0] == pytest.approx(0.8, abs=0.02)


def test_low_supply_makes_the_arm_slow_and_shows(rig):
    for servo in rig.servos:
        servo.supply = 3.7
    before = rig.measured()[0]
    rig.order([1.5, *rig.measured()[1:]])
    rig.run(0.3)
    assert rig.measured()[0] - before < 0.3 * MAX_SPEED / 2 + 0.01
    assert (rig.servos[0]["Present_Voltage"], rig.servos[0]["Status"]) == (37, 1)


def test_a_servo_that_pushes_gets_hot_within_minutes_and_then_lets_go():
    rig = Rig()
    rig.servos[0].stuck = True
    rig.servos[0]["Overload_Torque"] = 100
    rig.order([1.5, 0, 0, 0, 0, 0.8])
    rig.run(120, step=1.0)
    assert 40 < rig.servos[0]["Present_Temperature"] < 60 and rig.servos[0].torque == 1
    rig.run(600, step=1.0)
    assert rig.servos[0]["Present_Temperature"] in (70, 71)
    assert rig.servos[1]["Present_Temperature"] == 30


def test_the_light_plant_needs_no_mujoco():
    code = (
        "import sys, smolvla_mem_ros.sim.emulator, smolvla_mem_ros.sim.first_order_plant\n"
        "assert 'mujoco' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
