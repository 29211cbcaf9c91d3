# SPDX-License-Identifier: Apache-2.0
"""Pins each encoding to pixels that were worked out here, and that a wrong message is refused by name."""

import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rosbags.image.image import ENCODINGMAP

from smolvla_mem_ros.runtime.images import MAX_PIXELS, ImageError, decode_image

from .conftest import image_message

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
ODD = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
MOSAICS = ("bayer_rggb", "bayer_bggr", "bayer_gbrg", "bayer_grbg")


def message(encoding, pixels, width=None, padding=0, big_endian=0):
    """``pixels`` (rows, ...) as a camera sends them: each row followed by ``padding`` bytes of rubbish."""
    pixels = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<")))
    rows = pixels.reshape(len(pixels), -1).view(np.uint8)
    padded = np.full((len(rows), rows.shape[1] + padding), 99, np.uint8)
    padded[:, : rows.shape[1]] = rows
    return SimpleNamespace(
        encoding=encoding,
        height=len(rows) * 2 // 3 if encoding.startswith("nv") else len(rows),
        width=pixels.shape[1] if width is None else width,
        step=padded.shape[1],
        is_bigendian=big_endian,
        data=padded.tobytes(),
    )


def deep(pixels):
    """The same brightness in 16 bits, whose bytes differ, so that their order matters."""
    return np.minimum(pixels.astype(int) * 257 + 100, 65535).astype(np.uint16)


def compressed(suffix, pixels, form):
    ok, data = cv2.imencode(suffix, pixels)
    assert ok
    return SimpleNamespace(format=form, data=data.tobytes())


# Orders of channels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rgb", [RGB, ODD, RGB[:1, :1]], ids=["even", "odd", "one pixel"])
@pytest.mark.parametrize("padding", [0, 13])
@pytest.mark.parametrize(
    ("encodings", "order"),
    [
        (("rgb8", "rgb16"), (0, 1, 2)),
        (("bgr8", "bgr16", "8UC3", "16UC3"), (2, 1, 0)),
        (("rgba8", "rgba16"), (0, 1, 2, 1)),
        (("bgra8", "bgra16", "8UC4", "16UC4"), (2, 1, 0, 1)),
    ],
    ids=["rgb", "bgr", "rgba", "bgra"],
)
def test_colour_orders_are_told_apart(encodings, order, padding, rgb):
    for encoding in encodings:
        pixels = rgb[..., list(order)]
        if "16" not in encoding:
            np.testing.assert_array_equal(decode_image(message(encoding, pixels, padding=padding)), rgb)
            continue
        for big_endian in (0, 1):
            sent = message(encoding, deep(pixels), padding=padding, big_endian=big_endian)
            np.testing.assert_array_equal(decode_image(sent), rgb)


@pytest.mark.parametrize("padding", [0, 13])
def test_mono_becomes_grey(padding):
    grey = np.repeat(ODD[..., :1], 3, axis=2)
    for encoding in ("mono8", "8UC1"):
        np.testing.assert_array_equal(decode_image(message(encoding, ODD[..., 0], padding=padding)), grey)
    for big_endian in (0, 1):
        sent = message("mono16", deep(ODD[..., 0]), padding=padding, big_endian=big_endian)
        np.testing.assert_array_equal(decode_image(sent), grey)


def test_the_last_row_may_lack_its_padding():
    sent = message("rgb8", RGB, padding=14)
    sent.data = sent.data[:-14]
    np.testing.assert_array_equal(decode_image(sent), RGB)


def test_a_step_of_zero_is_that_of_rows_without_padding():
    np.testing.assert_array_equal(decode_image(image_message(step=0, data=RGB.tobytes())), RGB)


def test_what_rclpy_hands_over_is_read():
    from sensor_msgs.msg import CompressedImage, Image

    sent = Image(height=4, width=6, encoding="bgr8", step=18, data=RGB[..., ::-1].tobytes())
    np.testing.assert_array_equal(decode_image(sent), RGB)
    png = CompressedImage(format="png", data=compressed(".png", RGB[..., ::-1], "png").data)
    np.testing.assert_array_equal(decode_image(png), RGB)


# Colours shared by neighbours -----------------------------------------------------------------------


def from_yuv(y, u, v):
    """BT.601 with head and foot room, as cameras send it: black is 16, white 235."""
    y, u, v = 1.164 * (np.maximum(y, 16.0) - 16), u - 128.0, v - 128.0
    rgb = np.stack([y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("padding", [0, 13])
@pytest.mark.parametrize(("encoding", "luma"), [("uyvy", 1), ("yuv422", 1), ("yuyv", 0), ("yuv422_yuy2", 0)])
def test_packed_yuv_has_its_colours(encoding, luma, padding):
    y = RNG.integers(0, 256, (5, 8))
    u, v = (np.repeat(RNG.integers(0, 256, (5, 4)), 2, axis=1) for _ in range(2))
    pixels = np.zeros((5, 8, 2), np.uint8)
    pixels[:, :, luma] = y
    pixels[:, 0::2, 1 - luma], pixels[:, 1::2, 1 - luma] = u[:, 0::2], v[:, 0::2]
    image = decode_image(message(encoding, pixels, padding=padding))
    np.testing.assert_allclose(image.astype(int), from_yuv(y, u, v), atol=1)
    # Red is red: what a swap of U and V, or of luma and colour, would not give.
    red = np.zeros((2, 4, 2), np.uint8)
    red[..., luma], red[:, 0::2, 1 - luma], red[:, 1::2, 1 - luma] = 81, 90, 240
    np.testing.assert_allclose(decode_image(message(encoding, red)), [[[255, 0, 0]] * 4] * 2, atol=1)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(("encoding", "first"), [("nv12", 0), ("nv21", 1)])
def test_planes_of_brightness_and_colour_are_put_together(encoding, first, padding):
    y, (u, v) = RNG.integers(0, 256, (4, 6)), RNG.integers(0, 256, (2, 2, 3))
    colours = np.zeros((2, 6), int)
    colours[:, first::2], colours[:, 1 - first :: 2] = u, v
    image = decode_image(message(encoding, np.vstack([y, colours]).astype(np.uint8), padding=padding))
    wide = [np.repeat(np.repeat(c, 2, axis=0), 2, axis=1) for c in (u, v)]
    np.testing.assert_allclose(image.astype(int), from_yuv(y, *wide), atol=1)


# Mosaics --------------------------------------------------------------------------------------------


def mosaic(encoding, rgb):
    """What a sensor sees of ``rgb``: of each pixel the one colour that the name tells, row by row."""
    seen = np.zeros(rgb.shape[:2], rgb.dtype)
    for place, colour in enumerate(encoding.removeprefix("bayer_")):
        y, x = divmod(place, 2)
        seen[y::2, x::2] = rgb[y::2, x::2, "rgb".index(colour)]
    return seen


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50)], ids=str)
@pytest.mark.parametrize("encoding", MOSAICS)
def test_a_mosaic_of_one_colour_is_of_that_colour_everywhere(encoding, colour):
    for size in ((4, 6), (5, 7), (3, 3)):
        rgb = np.full((*size, 3), colour, np.uint8)
        seen = mosaic(encoding, rgb)
        for padding in (0, 13):
            np.testing.assert_array_equal(decode_image(message(encoding + "8", seen, padding=padding)), rgb)
        for big_endian in (0, 1):
            wide = message(encoding + "16", deep(seen), big_endian=big_endian)
            np.testing.assert_array_equal(decode_image(wide), rgb)


@pytest.mark.parametrize("encoding", MOSAICS)
def test_a_pixel_keeps_the_colour_that_the_sensor_saw_there(encoding):
    rgb = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = decode_image(message(encoding + "8", mosaic(encoding, rgb)))
    # At the border there are fewer neighbours to tell the other colours from.
    np.testing.assert_array_equal(mosaic(encoding, image)[1:-1, 1:-1], mosaic(encoding, rgb)[1:-1, 1:-1])


# Compressed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        (".png", "png"),
        (".png", ""),
        (".png", "rgb8; png compressed bgr8"),
        (".jpg", "jpeg"),
        (".jpg", "rgb8; jpeg compressed bgr8"),
        (".jpg", "bgr8; jpeg compressed bgr8"),
        (".jpg", "yuv422_yuy2; jpeg compressed bgr8"),
        # By hand: ordinary files, whatever they say.
        (".jpg", "rgb8; jpeg compressed"),
        (".jpg", "rgb8; jpeg compressed rgb8"),
    ],
)
def test_compressed_images_are_read_as_rgb(suffix, form):
    blocks = np.repeat(np.repeat(RGB, 16, axis=0), 16, axis=1)[:-1, :-1]
    image = decode_image(compressed(suffix, blocks[..., ::-1], form))
    assert image.shape == blocks.shape
    # JPEG blurs where colours meet.
    np.testing.assert_allclose(image[8::16, 8::16].astype(int), RGB, atol=0 if suffix == ".png" else 4)


def test_grey_and_deep_files_and_files_that_can_be_seen_through_are_read():
    grey, wide = np.repeat(RGB[..., :1], 3, axis=2), RGB.astype(np.uint16) * 257
    for pixels, form, expected in (
        (RGB[..., 0], "mono8; png compressed ", grey),
        (wide[..., 0], "mono16; png compressed ", grey),
        (wide[..., ::-1], "rgb16; png compressed bgr16", RGB),
        (np.dstack([RGB[..., ::-1], RGB[..., 0]]), "bgra8; png compressed bgra8", RGB),
    ):
        np.testing.assert_array_equal(decode_image(compressed(".png", pixels, form)), expected)


@pytest.mark.parametrize("encoding", MOSAICS)
def test_a_mosaic_that_was_compressed_as_it_is_gets_its_colours(encoding):
    rgb = np.full((32, 48, 3), (200, 100, 50), np.uint8)
    seen = mosaic(encoding, rgb)
    for pixels, form in (
        (seen, f"{encoding}8; png compressed "),
        (deep(seen), f"{encoding}16; png compressed "),
    ):
        np.testing.assert_array_equal(decode_image(compressed(".png", pixels, form)), rgb)
    form = f"{encoding}8; jpeg compressed {encoding}8"
    np.testing.assert_allclose(decode_image(compressed(".jpg", seen, form)).astype(int), rgb, atol=12)
    # This one was made grey before.
    grey = np.repeat(ODD[..., :1], 3, axis=2)
    form = f"{encoding}8; png compressed mono8"
    np.testing.assert_array_equal(decode_image(compressed(".png", ODD[..., 0], form)), grey)


@pytest.mark.parametrize(("form", "order"), [("rgb8; tiff compressed ", 1), ("bgr8; tiff compressed ", -1)])
def test_tiff_has_the_order_of_the_encoding_before(form, order):
    np.testing.assert_array_equal(decode_image(compressed(".tiff", RGB[..., ::order], form)), RGB)


# Wrong ----------------------------------------------------------------------------------------------


def bomb(width, height):
    """A small PNG of a large black picture."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj()
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BROKEN_PNG = bomb(6, 4)[:60]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (image_message(step=10), "rgb8 image of 6x4 pixels has 4 rows of 18 bytes, .* step of 10 and 40"),
        (image_message(step=18, data=b"x" * 71), "a step of 18 and 71 bytes"),
        (image_message(step=18, data=b"x" * 73), "a step of 18 and 73 bytes.*its encoding, size or step"),
        (image_message(step=18, data=b""), "a step of 18 and 0 bytes"),
        (image_message(step=0, data=b"x" * 71), "a step of 18 and 71 bytes"),
        (image_message(encoding="rgba8", step=18, data=b"x" * 72), "rgba8 .* has 4 rows of 24 bytes"),
        (image_message(encoding="mono8", data=RGB.tobytes()), "mono8 .* a step of 6 and 72 bytes"),
        (image_message(step=2**32 - 1, data=b"x" * 72), "a step of 4294967295 and 72 bytes"),
        (image_message(height=2**31, width=2**31, step=2**32 - 1, data=b"x"), "is not an image size"),
        (image_message(height=0, data=b"x"), "6x0 pixels is not an image size"),
        (image_message(width=7, encoding="yuyv", step=14), "yuyv image of 7x4 pixels.* must be even"),
        (image_message(height=5, encoding="nv12", step=6, data=b"x" * 42), "nv12 .*6x5 .* must be even"),
        (image_message(height=2, encoding="bayer_rggb8"), "bayer_rggb8 image of 6x2 pixels.*3x3"),
        (SimpleNamespace(format="jpeg", data=b""), r"\('jpeg', 0 bytes\) cannot be decoded"),
        (SimpleNamespace(format="jpeg", data=b"\xff\xd8 not a jpeg"), "cannot be decoded"),
        (SimpleNamespace(format="png", data=BROKEN_PNG), "cannot be decoded"),
        (SimpleNamespace(format="h264", data=b"\0\0\0\1\x67"), r"\('h264', 5 bytes\) cannot be decoded"),
        (SimpleNamespace(format="16UC1; compressedDepth png", data=bytes(12)), "is a depth image"),
        (compressed(".png", RGB[..., 0].astype(np.uint16), "16UC1; png compressed "), "is a depth image"),
        (compressed(".png", RGB, "bayer_rggb8; png compressed "), "bayer_rggb8 .* has 4 rows of 6 bytes"),
    ],
    ids=range(20),
)
def test_wrong_messages_are_refused_with_the_cause(message, text):
    with pytest.raises(ImageError, match=text) as raised:
        decode_image(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("encoding", ["banana", "", "16UC1", "32FC1", "32FC3", "8UC2", "8SC3", "nv24"])
def test_an_unknown_encoding_is_refused_with_those_that_are_known(encoding):
    with pytest.raises(ImageError, match=f"encoding '{encoding}' is not supported") as raised:
        decode_image(image_message(encoding=encoding))
    known = str(raised.value).partition("these are: ")[2].split(", ")
    assert {"rgb8", "bgr8", "mono8", "yuv422", "yuyv", "bayer_rggb8", "8UC3", "nv12"} <= set(known)
    assert len(known) == len(set(known)) and encoding not in known


def test_every_encoding_that_is_named_as_known_is_decoded():
    """And so each has a test above: one that rosbags learns is to get one."""
    above = {"mono8", "mono16", "uyvy", "yuv422", "yuyv", "yuv422_yuy2", "nv12", "nv21"}
    above |= {name + depth for name in (*MOSAICS, "rgb", "bgr", "rgba", "bgra") for depth in ("8", "16")}
    assert above == set(ENCODINGMAP)


def test_a_few_bytes_that_unpack_to_gigabytes_are_not_unpacked(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was unpacked"))
    data = bomb(5000, 4000)
    assert len(data) < 50_000 and MAX_PIXELS < 5000 * 4000
    with pytest.raises(ImageError, match="5000x4000 pixels is not an image size"):
        decode_image(SimpleNamespace(format="png", data=data))
