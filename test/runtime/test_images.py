# SPDX-License-Identifier: Apache-2.0
"""Pins that a wrong image message is refused by name and a padded or reordered one is read right."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from smolvla_mem_ros.runtime.images import ImageError, decode_image

from .conftest import image_message

RGB = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)


def test_rgb_passes_through():
    np.testing.assert_array_equal(decode_image(image_message(data=RGB.tobytes())), RGB)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, RGB[..., :1]])),
        ("bgra8", np.dstack([RGB[..., ::-1], RGB[..., :1]])),
        ("8UC3", RGB[..., ::-1]),
    ],
)
def test_colour_orders_are_told_apart(encoding, data):
    message = image_message(encoding=encoding, data=data.tobytes(), step=6 * data.shape[2])
    np.testing.assert_array_equal(decode_image(message), RGB)


def test_mono_becomes_grey():
    image = decode_image(image_message(encoding="mono8", data=RGB[..., 0].tobytes()))
    np.testing.assert_array_equal(image, np.repeat(RGB[..., :1], 3, axis=2))


def test_row_padding_is_skipped_even_when_the_last_row_has_none():
    padded = np.full((4, 32), 99, np.uint8)
    padded[:, :18] = RGB.reshape(4, 18)
    for data in (padded.tobytes(), padded.tobytes()[: 3 * 32 + 18]):
        np.testing.assert_array_equal(decode_image(image_message(step=32, data=data)), RGB)


@pytest.mark.parametrize("encoding", ["bayer_rggb8", "yuv422_yuy2", "mono16"])
def test_other_encodings_give_rgb_of_the_declared_size(encoding):
    image = decode_image(image_message(encoding=encoding))
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_compressed_images_are_read_as_rgb(suffix):
    smooth = cv2.resize(RGB, (64, 48))
    ok, data = cv2.imencode(suffix, smooth[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    assert ok
    image = decode_image(SimpleNamespace(format="rgb8; jpeg compressed", data=data.tobytes()))
    assert np.abs(image.astype(int) - smooth).mean() < 3


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (image_message(encoding="banana"), "encoding 'banana' is not supported"),
        (image_message(step=10), "step 10 is less than a row"),
        (image_message(step=18, data=b"x" * 71), "needs more than the 71 bytes"),
        (image_message(height=2**31, width=2**31, step=2**32 - 1, data=b"x"), "is not an image size"),
        (image_message(height=0, data=b"x"), "is not an image size"),
        (image_message(step=2**32 - 1, data=b"x" * 72), "needs more than the 72 bytes"),
        (image_message(encoding="32FC3", step=72, data=b"x" * 288), "cannot be turned into RGB"),
        (SimpleNamespace(format="jpeg", data=b""), "cannot be decoded"),
        (SimpleNamespace(format="jpeg", data=b"\xff\xd8 not a jpeg"), "cannot be decoded"),
    ],
)
def test_wrong_messages_are_refused_with_the_cause(message, text):
    with pytest.raises(ImageError, match=text):
        decode_image(message)
