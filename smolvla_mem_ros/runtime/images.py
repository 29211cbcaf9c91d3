# SPDX-License-Identifier: Apache-2.0
"""Image messages to RGB arrays, with the checks that keep a wrong message from becoming a picture."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
from rosbags.image import ImageError as UnsupportedImage
from rosbags.image import image_to_cvimage
from rosbags.image.image import to_cvtype

# No camera of such an arm is larger; a larger message is a mistake or an attack.
MAX_PIXELS = 16_000_000


class ImageError(ValueError):
    """An image message cannot be used; the message says why."""


def decode_image(message) -> np.ndarray:
    """A ``sensor_msgs/Image`` or ``CompressedImage`` (or anything with their fields) to RGB.

    Returns:
        (H, W, 3) uint8, rows without padding.

    Raises:
        ImageError: an unknown encoding, or sizes that contradict the data.
    """
    return _decode_compressed(message) if hasattr(message, "format") else _decode_raw(message)


def _decode_raw(message) -> np.ndarray:
    try:
        _, _, dtype, channels = to_cvtype(message.encoding)
    except UnsupportedImage as error:
        raise ImageError(f"encoding {message.encoding!r} is not supported; publish rgb8 or bgr8") from error
    if dtype not in ("uint8", "uint16"):
        raise ImageError(f"encoding {message.encoding!r} cannot be turned into RGB; publish rgb8 or bgr8")
    height, width, step = message.height, message.width, message.step
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels is not an image size")
    row = width * channels * np.dtype(dtype).itemsize
    # nv12 and nv21 carry half as many rows again for the colour.
    rows = height * 3 // 2 if message.encoding in ("nv12", "nv21") else height
    if step < row:
        raise ImageError(f"step {step} is less than a row of {width} {message.encoding} pixels ({row} bytes)")
    data = np.frombuffer(message.data, np.uint8)
    if step * (rows - 1) + row > data.size:
        raise ImageError(f"step {step} x {rows} rows needs more than the {data.size} bytes that came")
    if step != row or data.size != rows * row:
        data = np.lib.stride_tricks.as_strided(data, (rows, row), (step, 1))
    compact = SimpleNamespace(
        encoding=message.encoding,
        height=rows,
        width=width,
        is_bigendian=message.is_bigendian,
        data=np.ascontiguousarray(data),
    )
    # A camera's "8UC3" says nothing of the order; OpenCV's, which such drivers hand on, is BGR.
    compact.encoding = {"8UC3": "bgr8", "8UC4": "bgra8", "8UC1": "mono8", "8U": "mono8"}.get(
        compact.encoding, compact.encoding
    )
    try:
        image = image_to_cvimage(compact, "rgb8")
    except (UnsupportedImage, cv2.error) as error:
        raise ImageError(f"encoding {message.encoding!r} cannot be turned into RGB: {error}") from error
    if image.shape != (height, width, 3):
        raise ImageError(f"encoding {message.encoding!r} gave an image of shape {image.shape}")
    return image


def _decode_compressed(message) -> np.ndarray:
    image = None
    if len(message.data):
        try:
            image = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise ImageError(f"compressed image ({message.format!r}) cannot be decoded: {error}") from error
    if image is None:
        raise ImageError(
            f"compressed image ({message.format!r}, {len(message.data)} bytes) cannot be decoded"
        )
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise ImageError(f"{image.shape[1]}x{image.shape[0]} pixels is not an image size")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
