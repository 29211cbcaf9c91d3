# SPDX-License-Identifier: Apache-2.0
"""Image messages to RGB arrays, with the checks that keep a wrong message from becoming a picture."""

from __future__ import annotations

from io import BytesIO
from types import SimpleNamespace

import cv2
import numpy as np
from PIL import Image
from rosbags.image import image_to_cvimage
from rosbags.image.image import ENCODINGMAP

# No camera of such an arm is larger; a larger message is a mistake or an attack.
MAX_PIXELS = 16_000_000

# A camera's "8UC3" says nothing of the order; OpenCV's, which such drivers hand on, is BGR.
# "16UC1" is not among them: it is what depth cameras send.
BY_OPENCV = {
    "8U": "mono8", "8UC1": "mono8", "8UC3": "bgr8", "8UC4": "bgra8", "16UC3": "bgr16", "16UC4": "bgra16",
}  # fmt: skip
DEPTH = ("16UC1", "32FC1")


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
    height, width = message.height, message.width
    encoding = BY_OPENCV.get(message.encoding, message.encoding)
    if encoding not in ENCODINGMAP:
        known = ", ".join(sorted([*ENCODINGMAP, *BY_OPENCV]))
        raise ImageError(f"encoding {message.encoding!r} is not supported; these are: {known}")
    _check_size(width, height)
    _, colours, dtype, channels = ENCODINGMAP[encoding]
    what = f"a {message.encoding} image of {width}x{height} pixels"
    planes = encoding in ("nv12", "nv21")
    if colours.name.startswith("YUV") and (width % 2 or (planes and height % 2)):
        raise ImageError(f"{what}: neighbours share a colour, so the size must be even")
    if colours.name.startswith("BAYER") and min(width, height) < 3:
        raise ImageError(f"{what}: a mosaic needs 3x3")  # OpenCV would make it black

    # nv12 and nv21 carry half as many rows again for the colour.
    rows, row = height * 3 // 2 if planes else height, width * channels * np.dtype(dtype).itemsize
    step = message.step or row
    data = np.frombuffer(message.data, np.uint8)
    # The last row may do without padding.
    if step < row or not step * (rows - 1) + row <= data.size <= step * rows:
        raise ImageError(
            f"{what} has {rows} rows of {row} bytes, which a step of {step} and {data.size} bytes of data do "
            "not fit: its encoding, size or step is wrong, or it was cut off"
        )
    packed = np.ascontiguousarray(np.lib.stride_tricks.as_strided(data, (rows, row), (step, 1)))
    try:
        return image_to_cvimage(
            SimpleNamespace(
                encoding=encoding, height=rows, width=width, is_bigendian=message.is_bigendian, data=packed
            ),
            "rgb8",
        )
    except cv2.error as error:
        raise ImageError(f"{what} cannot be turned into RGB: {' '.join(str(error).split())}") from error


def _decode_compressed(message) -> np.ndarray:
    # image_transport writes "<encoding before>; <codec> compressed <order of colours>", others the codec
    # alone. The order is not heeded: files that say rgb8 there are ordinary ones all the same.
    before, _, packed = message.format.partition("; ")
    if before in DEPTH:
        raise ImageError(f"compressed image ({message.format!r}) is a depth image, not a picture")
    # Drivers pack a sensor's mosaic as it is, if they do not say that they made it grey, and image_transport
    # so packs TIFF.
    as_it_is = packed.startswith("tiff") or (before.startswith("bayer_") and "mono8" not in packed)
    image = _unpack(message, cv2.IMREAD_UNCHANGED if as_it_is else cv2.IMREAD_COLOR_RGB)
    if not as_it_is:
        return image
    height, width = image.shape[:2]
    return _decode_raw(
        SimpleNamespace(encoding=before, height=height, width=width, step=0, is_bigendian=0, data=image)
    )


def _unpack(message, flags: int) -> np.ndarray:
    cannot = f"compressed image ({message.format!r}, {len(message.data)} bytes) cannot be decoded"
    try:
        # Reads no more than the header: a few kilobytes may unpack to gigabytes.
        with Image.open(BytesIO(message.data)) as header:
            size = header.size
    except Exception as error:  # whatever a parser raises on bytes that are something else
        raise ImageError(cannot) from error
    _check_size(*size)
    try:
        image = cv2.imdecode(np.frombuffer(message.data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{cannot}: {' '.join(str(error).split())}") from error
    if image is None:
        raise ImageError(cannot)
    return image


def _check_size(width: int, height: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels is not an image size")
