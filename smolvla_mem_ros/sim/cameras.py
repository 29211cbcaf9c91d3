# SPDX-License-Identifier: Apache-2.0
"""Pictures from a scene's named cameras, rendered off screen."""

from __future__ import annotations

import mujoco
import numpy as np

# Each of them multiplies the time a picture takes on a CPU renderer.
COSTLY = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_HAZE)


class Cameras:
    """Renders a model's cameras, all at one size. Use it from one thread, and close it (or use ``with``).

    Raises:
        ValueError: a camera is not in the model, or the size is not positive.
        RuntimeError: there is nothing to render with.
    """

    def __init__(self, model: mujoco.MjModel, names: tuple[str, ...], width: int, height: int) -> None:
        known = [model.camera(i).name for i in range(model.ncam)]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"the scene has no camera {', '.join(unknown)}; it has {', '.join(known)}")
        if width <= 0 or height <= 0:
            raise ValueError(f"{width}x{height} is not a picture size")
        self.names = names
        # The buffer is exactly as large as the picture: clearing it costs time per pixel.
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except (mujoco.FatalError, RuntimeError, ImportError, AttributeError) as error:
            raise RuntimeError(
                f"cannot render off screen ({error}): install libegl1 and libgl1-mesa-dri, set MUJOCO_GL=egl"
            ) from error
        for flag in COSTLY:
            self._renderer.scene.flags[flag] = False

    def render(self, data: mujoco.MjData, name: str) -> np.ndarray:
        """(height, width, 3) uint8 RGB of what camera ``name`` sees in ``data``."""
        self._renderer.update_scene(data, camera=name)
        return self._renderer.render()

    def close(self) -> None:
        """Give the GL context back. Safe to call twice."""
        self._renderer.close()

    def __enter__(self) -> Cameras:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
