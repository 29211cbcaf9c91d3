# SPDX-License-Identifier: Apache-2.0
"""rosbag2 files: recording, reading, and what a policy would have done in them. Needs no ROS."""
