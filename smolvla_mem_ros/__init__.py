# SPDX-License-Identifier: Apache-2.0
"""SmolVLA with recurrent memory tokens on ROS 2, driving an SO-100 arm."""

from pkgutil import extend_path

# The messages are generated into a package of the same name (the colcon overlay).
# Joining the two lets a source checkout be imported beside them.
__path__ = extend_path(__path__, __name__)
