"""JPEG decoding by libjpeg-turbo, with detection of damaged files.

OpenCV and Pillow use the same library and give the same pixels, but ignore its warnings: a truncated JPEG with an end
marker decodes to an image whose rest is grey, without an error.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import numpy as np
import simplejpeg

from catdog.data import orientation

_APP1 = 0xE1
# Markers from C0 to CF that do not begin a frame.
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
_FRAME_FIELDS = struct.Struct(">BHHB")

# Markers of frames that are not progressive.
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
# In the data of a scan, FF is followed by 00 or by a restart marker; FF before a marker is padding.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SCAN, _END = 0xDA, 0xD9

# Encoders make about ten. Each scan is a pass over the whole image, however few bytes it has.
_MOST_SCANS = 100

_FAULT = "truncated or damaged ({})"


class TooManyScansError(Exception):
    """Decoding would take far too long for the size of the file; the message says how many scans it has."""


class _Frame(NamedTuple):
    """Header fields of a JPEG.

    Attributes:
        at: offset of the frame header.
        bits: bits per sample.
        width, height: in pixels.
        components: 1 for grey, 3 for YCbCr or RGB, 4 for CMYK.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
    """

    at: int
    bits: int
    width: int
    height: int
    components: int
    orientation: int


def decode_jpeg(data: bytes, most_pixels: int) -> tuple[np.ndarray, str] | None:
    """Decodes an 8-bit grey or colour JPEG.

    Args:
        data: the whole file; bytes after the end marker are ignored.
        most_pixels: the largest image to decode, in pixels.

    Returns:
        uint8, H×W×3, RGB, upright, and the fault of the file, "" if it is complete. None if this decoder does not
        support the file: another colour space, too large, rare sampling, or too damaged.

    Raises:
        TooManyScansError: no decoder should try.
    """
    frame = _frame(data)
    if frame is not None and (scans := _count_scans(data, frame)) > _MOST_SCANS:
        raise TooManyScansError(f"JPEG with {scans:,} scans, expected at most {_MOST_SCANS}")
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
    return orientation.turn_upright(pixels, frame.orientation), fault


def cmyk_fault(data: bytes) -> str:
    """The fault of a CMYK or YCCK JPEG; "" if it is complete or cannot be checked."""
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
    """Sets a JFIF revision that libjpeg knows; the warning about an unknown one would hide important warnings."""
    return data[:11] + b"\1\1" + data[13:] if data[6:11] == b"JFIF\0" and data[11] not in (1, 2) else data


def _frame(data: bytes) -> _Frame | None:
    """Parses the markers up to the frame header (ITU-T T.81, annex B)."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    at, turn = 2, 1
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            bits, height, width, components = _FRAME_FIELDS.unpack_from(data, at + 4)
            return _Frame(at, bits, width, height, components, turn)
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _APP1 and data.startswith(b"Exif\0\0", at + 4):
            turn = orientation.read_orientation(data[at + 4 : end])
        at = end
    return None


def _count_scans(data: bytes, frame: _Frame) -> int:
    """Counts the scans that a decoder would go through (ITU-T T.81, B.1.1.2)."""
    first = data.find(b"\xff\xda", frame.at)
    if data[frame.at + 1] in _SEQUENTIAL and data[first + 4 : first + 5] == bytes([frame.components]):
        return 1  # all components at once, as usual; decoders then read no further
    scans, at = 0, frame.at
    while (found := _MARKER.search(data, at)) and (marker := data[found.end() - 1]) != _END:
        scans += marker == _SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


def _has_all_scans(data: bytes, frame: _Frame) -> bool:
    """Returns whether the scans have all bits of all coefficients of all components (ITU-T T.81, annex G).

    libjpeg gives no warning for a file that ends between two scans.
    """
    missing, at = 64 * frame.components, frame.at
    while missing > 0:
        at = data.find(b"\xff\xda", at)
        if at < 0:
            return False
        at += 4
        components = data[at] if at < len(data) else 0
        scan = data[at + 1 + 2 * components : at + 4 + 2 * components]
        if len(scan) == 3 and not scan[2] & 15:  # a scan with the last bit
            missing -= components * (scan[1] - scan[0] + 1)
    return True
