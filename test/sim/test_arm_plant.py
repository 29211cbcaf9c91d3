# SPDX-License-Identifier: Apache-2.0
"""The emulated servos move the arm as their registers say, at the pace of the clock they are given."""

from pathlib import Path

import numpy as np
import pytest

from smolvla_mem_ros.sim.arm_plant import LONGEST_CATCH_UP, ArmPlant
from smolvla_mem_ros.sim.emulator import make_servos
from smolvla_mem_ros.sim.joint_servos import MAX_SPEED
from smolvla_mem_ros.sim.scene import HOME, Scene
from smolvla_mem_ros.so100.arm import Calibration

CALIBRATION = Path(__file__).parents[2] / "config/calibration/so100_sim.json"


class Rig:
    """A plant whose clock moves when the test says so."""

    def __init__(self, offsets=None, seed=None):
        self.now = 100.0
        self.calibration = Calibration.load(CALIBRATION)
        if offsets is not None:
            self.calibration = Calibration(
                np.array(offsets), self.calibration.lower, self.calibration.upper, self.calibration.inverted
            )
        self.scene = Scene()
        self.servos = make_servos(self.calibration)
        self.plant = ArmPlant(self.scene, self.calibration, self.servos, lambda: self.now, seed)

    def run(self, seconds):
        end = self.now + seconds
        while self.now < end:
            self.now += 0.01
            self.plant.advance()

    def measured(self):
        return self.calibration.ticks.to_radians([s["Present_Position"] for s in self.servos])

    def order(self, radians):
        for servo, ticks in zip(self.servos, self.calibration.ticks.from_radians(radians), strict=True):
            servo["Goal_Position"] = round(ticks)

    def torque(self, on):
        for servo in self.servos:
            servo["Torque_Enable"] = on


@pytest.mark.parametrize("offsets", [None, [100, -200, 300, -1, 0, 85]])
def test_servos_measure_the_arm_in_calibrated_ticks(offsets):
    np.testing.assert_allclose(Rig(offsets).measured(), HOME, atol=0.001)


@pytest.mark.parametrize("offsets", [None, [100, -200, 300, -1, 0, 85]])
def test_with_torque_on_the_arm_goes_to_its_goal(offsets):
    rig = Rig(offsets)
    rig.torque(1)
    goal = np.array([0.5, -0.3, 0.2, 0.9, 0.4, 1.0])
    rig.order(goal)
    rig.run(2.0)
    np.testing.assert_allclose(rig.measured(), goal, atol=0.02)
    np.testing.assert_allclose(rig.scene.arm_position, goal, atol=0.02)


def test_with_torque_off_goals_do_nothing():
    rig = Rig()
    rig.order([0.5, -0.3, 0.2, 0.9, 0.4, 1.0])
    rig.run(1.0)
    np.testing.assert_allclose(rig.measured(), HOME, atol=0.03)


def test_a_far_goal_is_approached_at_the_servos_own_speed_and_its_velocity_is_measured():
    rig = Rig()
    rig.torque(1)
    rig.order([1.9, *HOME[1:]])
    rig.run(0.3)
    assert rig.measured()[0] < MAX_SPEED * 0.3
    before = rig.measured()[0]
    rig.run(0.05)
    speed = rig.servos[0]["Present_Velocity"] / rig.calibration.ticks.scale[0]
    assert speed == pytest.approx((rig.measured()[0] - before) / 0.05, rel=0.2) and speed > 1


def test_torque_on_with_goal_at_present_does_not_move_the_arm():
    rig = Rig()
    for servo in rig.servos:
        servo["Goal_Position"] = servo["Present_Position"]
    before = rig.measured()
    rig.torque(1)
    rig.run(0.5)
    np.testing.assert_allclose(rig.measured(), before, atol=0.02)


@pytest.mark.parametrize("torque", [0, 1])
def test_reset_returns_the_blocks_and_an_arm_that_is_not_held(torque):
    rig = Rig()
    goal = [0.5, -0.3, 0.2, 0.9, 0.4, 1.0]
    rig.torque(1)
    rig.order(goal)
    rig.run(1.5)
    rig.torque(torque)
    start = Scene().data.qpos[6:]
    rig.scene.data.qpos[6:] += 0.05
    rig.plant.reset()
    np.testing.assert_array_equal(rig.scene.data.qpos[6:], start)
    rig.run(0.5)
    np.testing.assert_allclose(rig.measured(), goal if torque else HOME, atol=0.03)
    assert rig.plant.resets == 1


def test_a_long_pause_is_not_simulated_afterwards():
    rig = Rig()
    before = rig.scene.data.time
    rig.now += 3600
    rig.plant.advance()
    assert rig.scene.data.time - before <= LONGEST_CATCH_UP


def test_each_reset_draws_new_block_places_from_the_seed():
    rows = []
    for _ in range(2):
        rig = Rig(seed=5)
        first = rig.scene.data.qpos.copy()
        rig.plant.reset()
        rows.append((first, rig.scene.data.qpos.copy()))
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0][0] != rows[0][1]).any()
