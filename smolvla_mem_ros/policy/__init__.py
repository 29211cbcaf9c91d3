# SPDX-License-Identifier: Apache-2.0
"""SmolVLA with recurrent memory tokens, a LeRobot policy plugin.

Importing this package registers the policy type ``smolvla_mem`` with LeRobot.
"""

from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig

__all__ = ["SmolVLAMemConfig"]
