"""The one path from a file's bytes to pixels, for training, scoring and serving alike.

libjpeg-turbo decodes JPEG, OpenCV plain PNG, and so nearly every image; Pillow takes the rest. The whole image is
squashed to S×S. Nothing here scales pixel values to floats: a batch stays uint8 RGB until the model does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from catdog import storage
from catdog.data import fallback, jpeg
from catdog.data.resize import squash

Status = Literal["ok", "recovered", "unreadable"]

# Twice what Pillow warns at: beyond it a small file that claims to be huge would take the worker's memory.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)

# How a verdict begins that is about the storage and not about the image: another time it may be read.
NOT_READ = "could not be read"

# Files of a bucket that are asked for at once, as one alone is mostly waited for, and that are held in memory.
_REQUESTS, _HELD = 16, 64


class Decoded(NamedTuple):
    """One image, or why there is none.

    Attributes:
        pixels: uint8, S×S×3, RGB; all zero where `status` is "unreadable".
        status: "ok", "recovered" (read, but it is damaged or of an unusual kind) or "unreadable".
        detail: what was odd, in a few words; empty where nothing was.
    """

    pixels: np.ndarray
    status: Status
    detail: str


class Batch(NamedTuple):
    """Images, decoded to one size or to several.

    Attributes:
        pixels: by S, uint8, N×S×S×3, RGB; all zero where there is no image, or none that can be read.
        statuses: as of `Decoded`, one an image.
        details: likewise.
    """

    pixels: dict[int, np.ndarray]
    statuses: list[Status]
    details: list[str]


def read_batch(uris: list[str], sizes: list[int]) -> Batch:
    """Reads each file once and decodes it into arrays, in this thread alone.

    Args:
        uris: N files.
        sizes: the sizes wanted, in pixels.
    """
    return decode_batch(fetch_all(uris), {size: np.empty((len(uris), size, size, 3), np.uint8) for size in sizes})


def decode_batch(files: Iterable[bytes | str], pixels: dict[int, np.ndarray]) -> Batch:
    """Decodes files into arrays that are there, in this thread alone.

    Args:
        files: what `fetch` gave.
        pixels: by S, uint8, N×S×S×3, N at least the number of files; the rows beyond become zero.
    """
    use_one_thread()
    statuses: list[Status] = []
    details: list[str] = []
    for at, data in enumerate(files):
        for size, array in pixels.items():
            decoded = _unreadable(size, data) if isinstance(data, str) else decode_image(data, size)
            array[at] = decoded.pixels
        # Only the verdict is kept: 64 images' own pixels, beside the batch's, would not stay in the core's cache.
        statuses.append(decoded.status)
        details.append(decoded.detail)
    for array in pixels.values():
        array[len(statuses) :] = 0
    return Batch(pixels, statuses, details)


def read_image(uri: str, size: int) -> Decoded:
    """Reads and decodes one file; whatever is wrong with it becomes a verdict, never an exception.

    Args:
        uri: the file.
        size: S, the side of the square to squash the image to, in pixels.
    """
    data = fetch(uri)
    return _unreadable(size, data) if isinstance(data, str) else decode_image(data, size)


def fetch(uri: str) -> bytes | str:
    """Reads a file's bytes, or says why there are none."""
    try:
        return storage.read_bytes(uri)
    except IsADirectoryError:
        return "is a folder"
    except storage.NotPackedError as error:
        return str(error)
    except OSError as error:
        return f"{NOT_READ}: {error.strerror or error}"


def fetch_all(uris: list[str]) -> Iterator[bytes | str]:
    """Reads files in their order, one by one from this machine, several at once from a bucket.

    Args:
        uris: N files, all in one place.

    Yields:
        What `fetch` gives.
    """
    if not uris or storage.is_local(uris[0]) or storage.is_packed(uris[0]):
        yield from map(fetch, uris)
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for start in range(0, len(uris), _HELD):
            yield from pool.map(fetch, uris[start : start + _HELD])


def decode_image(data: bytes, size: int) -> Decoded:
    """Decodes one image file's bytes and squashes it to S×S.

    EXIF orientation is honoured. Shrinking averages areas, enlarging is bilinear, each axis for itself.

    Args:
        data: the whole file.
        size: S, in pixels.

    Returns:
        The pixels and a verdict on the file.
    """
    if not data:
        return _unreadable(size, "is empty (0 bytes)")
    found = jpeg.decode(data, MAX_PIXELS)
    if found:
        pixels, fault = found
        if not fault:
            return Decoded(squash(pixels, size), "ok", "")
        if fallback.shows_nothing(pixels):
            return _unreadable(size, f"JPEG, {fault}")
        return Decoded(squash(pixels, size), "recovered", f"JPEG, {fault}")
    plain = _decode_plain_png(data)
    if plain is not None:
        return Decoded(squash(plain, size), "ok", "")
    try:
        pixels, detail = fallback.decode(data, MAX_PIXELS)
    except fallback.UnreadableError as error:
        return _unreadable(size, str(error))
    return Decoded(squash(pixels, size), "recovered", detail)


def _unreadable(size: int, detail: str) -> Decoded:
    return Decoded(np.zeros((size, size, 3), np.uint8), "unreadable", detail)


def _decode_plain_png(data: bytes) -> np.ndarray | None:
    if not _is_plain_png(data):
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None


def _is_plain_png(data: bytes) -> bool:
    """Tells whether bytes are an uncut 8-bit grey or RGB PNG without transparency, from its chunks (W3C PNG)."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or len(data) < 33 or data[24] != 8 or data[25] not in (0, 2):
        return False
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not 0 < width * height <= MAX_PIXELS:
        return False
    at = 8
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        if kind in (b"IEND", b"tRNS", b"acTL"):
            return kind == b"IEND"
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False


def use_one_thread() -> None:
    """Keeps OpenCV to the thread that calls it: in a Ray worker the cores belong to other workers."""
    cv2.setNumThreads(1)
