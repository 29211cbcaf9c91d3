# SPDX-License-Identifier: Apache-2.0
"""Closed-loop evaluation of policies on the memory tasks. Free of ROS."""
