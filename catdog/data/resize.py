"""Resizing images to squares, in the same way for training and scoring."""

from __future__ import annotations

import functools
import threading

import cv2
import numpy as np
from scipy import sparse

# For images with more samples, copying them to floats takes more time than it saves.
_SMALL = 2**21

# The longest axis whose shares are kept; those of 4,096 pairs then take less than 150 MB.
_KEPT = 4096

# Smaller overlaps of an old with a new pixel are ignored, as by OpenCV.
_SLIVER = 1e-3

# A buffer for `_average_areas` in each thread.
_scratch = threading.local()


def squash(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resizes an image to a square, each axis separately: area averaging to shrink, bilinear to enlarge.

    Args:
        pixels: uint8, H×W×3.
        size: S, in pixels.

    Returns:
        uint8, S×S×3.
    """
    height, width = pixels.shape[:2]
    shrunk = (min(width, size), min(height, size))
    if pixels.size <= _SMALL and (width % shrunk[0] or height % shrunk[1]):
        pixels = _average_areas(pixels, *shrunk)
    elif shrunk != (width, height):
        pixels = cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (size, size):
        pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    return pixels


def _average_areas(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Shrinks like OpenCV's INTER_AREA in half the time: one axis, then the other, as sparse matrix products.

    The order of summation differs, so about one value in 50,000 is rounded to the neighbouring byte.
    """
    old_height, old_width = pixels.shape[:2]
    # A reused buffer: page faults of newly allocated memory would take as long as the computation.
    if getattr(_scratch, "floats", np.empty(0)).size < pixels.size:
        _scratch.floats = np.empty(pixels.size, np.float32)
    floats = _scratch.floats[: pixels.size].reshape(old_height, -1)
    np.copyto(floats, pixels.reshape(old_height, -1))
    rows = (_shares(old_height, height) @ floats).reshape(height, old_width, 3)
    turned = cv2.transpose(rows, _scratch.floats[: rows.size].reshape(old_width, height, 3))
    columns = _shares(old_width, width) @ turned.reshape(old_width, -1)
    return cv2.transpose(cv2.convertScaleAbs(columns.reshape(width, height, 3)))


def _shares(old: int, new: int) -> sparse.csr_array:
    """What `_compute_shares` returns, which is kept for lengths that photos have."""
    return _kept_shares(old, new) if old <= _KEPT else _compute_shares(old, new)


def _compute_shares(old: int, new: int) -> sparse.csr_array:
    """The fraction of each new pixel that each old pixel covers, along one axis: float32, new×old."""
    edges = np.arange(new + 1) * (old / new)
    covered = np.floor(edges[:-1, None]).astype(np.int32) + np.arange(old // new + 2, dtype=np.int32)
    overlap = np.minimum(edges[1:, None], covered + 1) - np.maximum(edges[:-1, None], covered)
    counts = (overlap > _SLIVER) & (covered < old)
    rows = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
    return sparse.csr_array(((overlap[counts] * (new / old)).astype(np.float32), covered[counts], rows), (new, old))


_kept_shares = functools.lru_cache(maxsize=4096)(_compute_shares)
