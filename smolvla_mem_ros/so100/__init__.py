# SPDX-License-Identifier: Apache-2.0
"""The SO-100 arm: LeRobot's servo driver made safe, and the trajectory follower. Free of ROS."""
