# SPDX-License-Identifier: Apache-2.0
"""MuJoCo scene, cameras and servo-bus emulator. Free of ROS."""

import os

# MuJoCo chooses its renderer when it is first imported; without a display only EGL works.
if not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")
