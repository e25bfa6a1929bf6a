"""Test images in many file formats, and reference implementations of their decoding."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()  # to write HEIF


def smooth(width: int, height: int) -> Image.Image:
    """A picture that survives JPEG and resizing: a gradient with a bright corner at the top left."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([255 * x, 255 * y, 255 * (1 - x)], axis=2)
    pixels[: height // 4, : width // 4] = (250, 240, 10)
    return Image.fromarray(pixels.astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(depth: int, colour_type: int, rows: np.ndarray, transparent: bytes = b"") -> bytes:
    """A PNG of any bit depth, encoded here because Pillow does not write all of them.

    Args:
        depth: bits per sample.
        colour_type: 0 for grey, 2 for RGB.
        rows: samples, unsigned, H×W or H×W×3.
        transparent: content of the tRNS chunk; empty for none.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bits = np.unpackbits(rows.reshape(len(rows), -1, 1).astype(">u2").view(np.uint8), axis=2)[..., 16 - depth :]
    lines = b"".join(b"\0" + np.packbits(line.ravel()).tobytes() for line in bits)
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def tiff(values: np.ndarray, sample_format: int, white_is_zero: bool = False) -> bytes:
    """A grey TIFF of a kind that Pillow does not write (TIFF 6.0, section 2)."""
    height, width = values.shape
    fields = [(256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, int(not white_is_zero))]
    fields += [(273, 8), (277, 1), (278, height), (279, values.nbytes), (339, sample_format)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    start = struct.pack("<2sHI", b"II", 42, 8 + values.nbytes)
    return start + values.tobytes() + struct.pack("<H", len(fields)) + directory + bytes(4)


def named(value: object) -> str:
    """Test id of a parameter; empty for bytes and arrays, which have no readable one."""
    return value if isinstance(value, str) else str(value) if isinstance(value, dict) else ""


def reference(image: Image.Image, size: int) -> np.ndarray:
    """Reference resize: the image averaged exactly over the area of each new pixel."""
    pixels = np.asarray(image.convert("RGB"), np.float64)
    weights = overlap(size, pixels.shape[0]), overlap(size, pixels.shape[1])
    return np.einsum("yh,xw,hwc->yxc", *weights, pixels, optimize=True)


def overlap(new: int, old: int) -> np.ndarray:
    """The fraction of each new pixel that each old pixel covers, along one axis."""
    edges = np.arange(new + 1) * old / new
    low, high = np.maximum(edges[:-1, None], np.arange(old)), np.minimum(edges[1:, None], np.arange(1, old + 1))
    return np.clip(high - low, 0, None) * new / old
