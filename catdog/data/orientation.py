"""EXIF orientation: how a camera was held, read and undone in the same way for every file format.

Only EXIF counts, as in browsers, and not XMP, which other programs leave behind when they turn an image.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

_TAG = 0x0112
_LONG = 4


def read_orientation(exif: bytes) -> int:
    """Reads the orientation in the first directory of EXIF's TIFF structure (TIFF 6.0, section 2).

    Args:
        exif: the structure, which may be damaged, with or without the bytes "Exif" before it.

    Returns:
        1 to 8 (Exif 2.32, section 4.6.4); 1, which is upright, if there is none.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    at = int.from_bytes(exif[4:8], order)
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(exif[at : at + 2], order), 12):
        if int.from_bytes(exif[entry : entry + 2], order) == _TAG:
            is_long = int.from_bytes(exif[entry + 2 : entry + 4], order) == _LONG
            found = int.from_bytes(exif[entry + 8 : entry + (12 if is_long else 10)], order)
            return found if 1 <= found <= 8 else 1
        if entry > len(exif):
            break
    return 1


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and mirrors an image so that it is upright.

    Args:
        pixels: uint8, H×W×3.
        orientation: from `read_orientation`.

    Returns:
        uint8, H×W×3, or W×H×3 if the camera was held upright.
    """
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    mirrored, upside_down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    if mirrored or upside_down:
        pixels = cv2.flip(pixels, -1 if mirrored and upside_down else int(mirrored))
    return pixels
