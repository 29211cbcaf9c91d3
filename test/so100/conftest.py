# SPDX-License-Identifier: Apache-2.0
"""An emulated arm in its own process, and LeRobot's driver at the other end of its port."""

from pathlib import Path

import pytest

from smolvla_mem_ros.sim.emulator_process import EmulatorProcess
from smolvla_mem_ros.so100.driver import So100Driver


@pytest.fixture
def calibration():
    return Path(__file__).parents[2] / "config/calibration/so100_sim.json"


@pytest.fixture
def port(tmp_path):
    return str(tmp_path / "ttySO100")


@pytest.fixture
def emulator(port, calibration):
    with EmulatorProcess(port, calibration) as emulator:
        emulator.wait_ready()
        yield emulator


@pytest.fixture
def driver(emulator, port, calibration):
    driver = So100Driver(port, calibration)
    yield driver
    driver.close(False)
