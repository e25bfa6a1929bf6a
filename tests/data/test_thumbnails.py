"""Thumbnails: own proportions, upright, and nothing for what is no image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pictures import saved, smooth
from PIL import Image

from catdog.data.thumbnails import encode_jpeg, thumbnail


@pytest.mark.parametrize(("size", "expected"), [((400, 200), (50, 100)), ((200, 400), (100, 50)), ((60, 30), (30, 60))])
def test_a_thumbnail_keeps_the_proportions_and_never_enlarges(size: tuple[int, int], expected: tuple[int, int]) -> None:
    pixels = thumbnail(saved(smooth(*size), "PNG"), 100)
    assert pixels is not None
    assert pixels.shape == (*expected, 3)
    reference = np.asarray(smooth(*size).resize(expected[::-1], Image.Resampling.BOX), float)
    assert np.abs(pixels - reference).mean() < 3


def test_a_thumbnail_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    pixels = thumbnail(saved(smooth(400, 200), "JPEG", exif=exif), 100)
    assert pixels is not None
    assert pixels.shape == (100, 50, 3)


def test_what_is_no_image_has_no_thumbnail() -> None:
    assert thumbnail(b"not an image", 100) is None
    assert thumbnail(b"", 100) is None


def test_a_thumbnail_as_jpeg_opens_with_the_same_size() -> None:
    assert Image.open(io.BytesIO(encode_jpeg(np.zeros((20, 30, 3), np.uint8)))).size == (30, 20)
