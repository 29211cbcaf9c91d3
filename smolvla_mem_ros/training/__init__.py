# SPDX-License-Identifier: Apache-2.0
"""What speeds up and repeats training runs; training itself is LeRobot's own lerobot-train."""
