# SPDX-License-Identifier: Apache-2.0
"""The action over DDS with real types, also where control_msgs is not installed.

PyPI has no control_msgs. What the arm uses of it stands in test/action_interfaces, with the same fields, and
is built first. Its libraries are found only by a process that was started with them.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """This process's, for one that finds control_msgs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    if importlib.util.find_spec("control_msgs"):
        return clean
    folder = tmp_path_factory.mktemp("control_msgs")
    source, build, prefix = HERE.parent / "action_interfaces", folder / "build", folder / "install"
    options = (f"-DCMAKE_INSTALL_PREFIX={prefix}", f"-DPython3_EXECUTABLE={sys.executable}")
    steps = (["-S", source, "-B", build, *options], ["--build", build], ["--install", build])
    for step in steps:
        made = subprocess.run(["cmake", *map(str, step)], capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
    [packages] = prefix.glob("lib/python*/site-packages")
    first = {"PYTHONPATH": packages, "LD_LIBRARY_PATH": prefix / "lib", "AMENT_PREFIX_PATH": prefix}
    return clean | {name: f"{path}:{os.environ.get(name, '')}" for name, path in first.items()}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_real_client_drives_the_emulated_arm(environment):
    command = [sys.executable, "-m", "pytest", "-v", "--reruns=1", str(HERE / "action_over_dds.py")]
    run = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout and "skipped" not in run.stdout
