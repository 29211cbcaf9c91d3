# SPDX-License-Identifier: Apache-2.0
"""Pins the direction of imports: the contracts in pyproject.toml hold, and each notices a breach."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(tree: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run(["lint-imports", "--no-cache"], cwd=tree, env=env, capture_output=True, text=True)


def test_imports_keep_to_the_architecture():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("folder", "line", "contract"),
    [
        ("policy", "import smolvla_mem_ros.runtime", "Imports point one way"),
        ("so100", "import torch", "know nothing of the policy"),
        ("sim", "import smolvla_mem_ros.runtime", "know nothing of the policy"),
        ("runtime", "from rclpy.node import Node", "Only nodes and cli speak ROS"),
    ],
)
def test_a_breach_is_noticed(tmp_path, folder, line, contract):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    package = tmp_path / "smolvla_mem_ros"
    for name in ("", "cli", "nodes", "runtime", "so100", "sim", "policy"):
        (package / name).mkdir(exist_ok=True)
        (package / name / "__init__.py").touch()
    (package / "units.py").touch()
    assert lint(tmp_path).returncode == 0

    (package / folder / "breach.py").write_text(line + "\n")

    result = lint(tmp_path)
    assert result.returncode == 1
    broken = [row for row in result.stdout.splitlines() if row.endswith("BROKEN")]
    assert any(contract in row for row in broken), result.stdout
