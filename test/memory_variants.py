# SPDX-License-Identifier: Apache-2.0
"""Every kind of memory, for tests that must hold for all of them, and the keys of their samples."""

import itertools

import pytest

from smolvla_mem_ros.policy.configuration_smolvla_mem import MEMORY_UPDATES

CAMERA = "observation.images.front"
STATE = "observation.state"

variants = pytest.mark.parametrize(
    ("update", "at_end"),
    list(itertools.product(MEMORY_UPDATES, (True, False))),
    ids=lambda value: value if isinstance(value, str) else ("written_after" if value else "written_in_place"),
)
