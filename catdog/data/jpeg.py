"""JPEG to pixels by libjpeg-turbo, which also tells whether the file is whole.

OpenCV and Pillow use the same library, but swallow its warnings: a JPEG that was cut and given an end marker comes out
of them with a grey rest, as if nothing had happened. Pixels are equal to theirs, bit by bit.
"""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg

_APP1 = 0xE1
# Tables and the like, among the markers C0 to CF, which begin a frame otherwise.
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
_FRAME_FIELDS = struct.Struct(">BHHB")

_ORIENTATION_TAG = 0x0112

_FAULT = "truncated or damaged ({})"


class _Frame(NamedTuple):
    """What a JPEG's header says.

    Attributes:
        at: where its frame header begins.
        bits: bits a sample.
        width, height: in pixels.
        components: 1 for grey, 3 for YCbCr or RGB, 4 for CMYK.
        orientation: as EXIF counts, 1 to 8; 1 is upright.
    """

    at: int
    bits: int
    width: int
    height: int
    components: int
    orientation: int


def decode(data: bytes, most_pixels: int) -> tuple[np.ndarray, str] | None:
    """Decodes an 8-bit grey or colour JPEG.

    Args:
        data: the whole file; bytes after its end are ignored.
        most_pixels: the largest image to decode, in pixels.

    Returns:
        uint8, H×W×3, RGB, upright, and what is wrong with the file: "" where it is whole. None where this decoder does
        not take it: another colour space, too large, rare sampling, or damaged so that nothing can be decoded.
    """
    frame = _frame(data)
    if frame is None or frame.bits != 8 or frame.components not in (1, 3):
        return None
    if not 0 < frame.width * frame.height <= most_pixels:
        return None
    try:
        pixels, fault = _decode(_with_known_revision(data), "RGB")
    except ValueError:
        return None
    if not fault and not _has_all_scans(data, frame):
        fault = _FAULT.format("its last scans are missing")
    return _upright(pixels, frame.orientation), fault


def cmyk_fault(data: bytes) -> str:
    """Says what is wrong with a CMYK or YCCK JPEG; "" where it is whole, or where that cannot be told."""
    try:
        return _decode(_with_known_revision(data), "CMYK")[1]
    except ValueError:
        return ""


def _decode(data: bytes, colours: str) -> tuple[np.ndarray, str]:
    try:
        return simplejpeg.decode_jpeg(data, colours), ""
    except ValueError as error:
        pixels = simplejpeg.decode_jpeg(data, colours, strict=False)
        return pixels, _FAULT.format(str(error).removeprefix("Corrupt JPEG data: "))


def _with_known_revision(data: bytes) -> bytes:
    """Sets a JFIF revision that libjpeg knows: others mean nothing, but would hide a warning that does."""
    return data[:11] + b"\1\1" + data[13:] if data[6:11] == b"JFIF\0" and data[11] not in (1, 2) else data


def _frame(data: bytes) -> _Frame | None:
    """Reads a JPEG's markers up to its frame header (ITU-T T.81, annex B)."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    at, orientation = 2, 1
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            bits, height, width, components = _FRAME_FIELDS.unpack_from(data, at + 4)
            return _Frame(at, bits, width, height, components, orientation)
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _APP1 and data.startswith(b"Exif\0\0", at + 4):
            orientation = _orientation(data[at + 10 : end])
        at = end
    return None


def _orientation(exif: bytes) -> int:
    """Finds the orientation in the first directory of EXIF's TIFF structure (TIFF 6.0, section 2); 1 if it has none."""
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    at = int.from_bytes(exif[4:8], order)
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(exif[at : at + 2], order), 12):
        if int.from_bytes(exif[entry : entry + 2], order) == _ORIENTATION_TAG:
            found = int.from_bytes(exif[entry + 8 : entry + 10], order)
            return found if 1 <= found <= 8 else 1
        if entry > len(exif):
            break
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes what EXIF's orientation says (Exif 2.32, section 4.6.4)."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    mirrored, upside_down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    if mirrored or upside_down:
        pixels = cv2.flip(pixels, -1 if mirrored and upside_down else int(mirrored))
    return pixels


def _has_all_scans(data: bytes, frame: _Frame) -> bool:
    """Tells whether the scans hold every coefficient of every component to its last bit (ITU-T T.81, annex G).

    A file that ends between two scans has nothing that libjpeg warns of.
    """
    missing, at = 64 * frame.components, frame.at
    while missing > 0:
        at = data.find(b"\xff\xda", at)
        if at < 0:
            return False
        at += 4
        components = data[at] if at < len(data) else 0
        scan = data[at + 1 + 2 * components : at + 4 + 2 * components]
        if len(scan) == 3 and not scan[2] & 15:  # the scan that brings the last bit
            missing -= components * (scan[1] - scan[0] + 1)
    return True
