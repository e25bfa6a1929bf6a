"""Small pictures for people: a photo shrunk in its own proportions, decoded as for the model."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from catdog.data.images import decode_whole


def thumbnail(data: bytes, side: int, enlarge: bool = False) -> np.ndarray | None:
    """Shrinks a photo so that its longer side is at most `side` pixels, in its own proportions.

    Args:
        data: the bytes of the file.
        side: in pixels.
        enlarge: whether a smaller photo is enlarged, so that its longer side has `side` pixels.

    Returns:
        uint8, H×W×3, RGB; None if it is unreadable.
    """
    decoded = decode_whole(data)
    if decoded.status == "unreadable":
        return None
    image = Image.fromarray(decoded.pixels)
    if enlarge and max(image.size) < side:
        return np.asarray(ImageOps.contain(image, (side, side), Image.Resampling.BICUBIC))
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(image)


def encode_jpeg(pixels: np.ndarray, quality: int = 80) -> bytes:
    """Encodes pixels as a JPEG file.

    Args:
        pixels: uint8, H×W×3, RGB.
        quality: from 1 to 95.
    """
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes pixels as a PNG file.

    Args:
        pixels: uint8, H×W×3, RGB.
    """
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
