# SPDX-License-Identifier: Apache-2.0
"""ROS-free run time of the policy: contract, observations, engine, episode, trajectory."""
