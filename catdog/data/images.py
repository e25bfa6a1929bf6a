"""Image decoding: the only path from a file's bytes to pixels, for training and scoring.

libjpeg-turbo decodes JPEG and OpenCV plain PNG, which are nearly all images; Pillow decodes the rest. The whole image
is resized to S×S without cropping. Batches are uint8 RGB; the models themselves convert to floats.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from catdog import storage
from catdog.data import fallback, jpeg, orientation
from catdog.data.resize import squash

Status = Literal["ok", "recovered", "unreadable"]

# Twice the size at which Pillow warns; a small file that declares a huge image must not exhaust the worker's memory.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)

# Prefix of details that are about the storage, not the image; reading the file again may succeed.
NOT_READ = "could not be read"

# Detail of an image whose decoding asked for more memory than there is, or than a limit allows.
TOO_MUCH_MEMORY = "needs too much memory to decode"

# Parallel requests to a bucket, which hide its latency, and the number of files held in memory.
_REQUESTS, _HELD = 16, 64


class Decoded(NamedTuple):
    """A decoded image, or the reason why it is unreadable.

    Attributes:
        pixels: uint8, S×S×3, RGB; all zero if `status` is "unreadable".
        status: "ok", "recovered" (decoded, but damaged or of an unusual kind) or "unreadable".
        detail: format and faults in a few words; empty if the status is "ok".
    """

    pixels: np.ndarray
    status: Status
    detail: str


class Batch(NamedTuple):
    """Decoded images in one or several sizes.

    Attributes:
        pixels: for each S, uint8, N×S×S×3, RGB; all zero for unreadable images and unused rows.
        statuses: the status of each image, as in `Decoded`.
        details: the detail of each image, as in `Decoded`.
    """

    pixels: dict[int, np.ndarray]
    statuses: list[Status]
    details: list[str]


def read_batch(uris: list[str], sizes: list[int]) -> Batch:
    """Reads each file once and decodes it to one or several sizes, in the calling thread.

    Args:
        uris: N files.
        sizes: values of S, in pixels.
    """
    return decode_batch(fetch_all(uris), {size: np.empty((len(uris), size, size, 3), np.uint8) for size in sizes})


def decode_batch(files: Iterable[bytes | str], pixels: dict[int, np.ndarray]) -> Batch:
    """Decodes files into existing arrays, in the calling thread.

    Args:
        files: results of `fetch`.
        pixels: for each S, uint8, N×S×S×3, N at least the number of files; extra rows are set to zero.
    """
    use_one_thread()
    statuses: list[Status] = []
    details: list[str] = []
    for at, data in enumerate(files):
        for size, array in pixels.items():
            decoded = _unreadable(size, data) if isinstance(data, str) else decode_image(data, size)
            array[at] = decoded.pixels
        # The decoded pixels are dropped at once: keeping those of 64 images would overflow the core's cache.
        statuses.append(decoded.status)
        details.append(decoded.detail)
    for array in pixels.values():
        array[len(statuses) :] = 0
    return Batch(pixels, statuses, details)


def read_image(uri: str, size: int) -> Decoded:
    """Reads and decodes a file. Faults are reported in the status and detail, never as exceptions.

    Args:
        uri: URI of the file.
        size: S, in pixels.
    """
    data = fetch(uri)
    return _unreadable(size, data) if isinstance(data, str) else decode_image(data, size)


def fetch(uri: str) -> bytes | str:
    """Reads a file; returns its bytes, or the reason as text if that fails."""
    try:
        return storage.read_bytes(uri)
    except IsADirectoryError:
        return "is a folder"
    except storage.NotPackedError as error:
        return str(error)
    except OSError as error:
        return f"{NOT_READ}: {error.strerror or error}"


def fetch_all(uris: list[str]) -> Iterator[bytes | str]:
    """Reads files in order; local files one by one, several at a time from a bucket.

    Args:
        uris: N files, all local or all in one bucket.

    Yields:
        The result of `fetch` for each file.
    """
    if not uris or storage.is_local(uris[0]) or storage.is_packed(uris[0]):
        yield from map(fetch, uris)
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for start in range(0, len(uris), _HELD):
            yield from pool.map(fetch, uris[start : start + _HELD])


def decode_image(data: bytes, size: int) -> Decoded:
    """Decodes an image and resizes it to S×S, ignoring the aspect ratio.

    EXIF orientation is applied. Each axis is resized separately: area averaging to shrink, bilinear to enlarge.

    Args:
        data: the bytes of the file.
        size: S, in pixels.
    """
    whole = decode_whole(data)
    if whole.status == "unreadable":
        return _unreadable(size, whole.detail)
    try:
        return Decoded(squash(whole.pixels, size), whole.status, whole.detail)
    except MemoryError:
        return _unreadable(size, TOO_MUCH_MEMORY)


def decode_whole(data: bytes) -> Decoded:
    """Decodes an image at its own size, EXIF orientation applied.

    Args:
        data: the bytes of the file.

    Returns:
        Pixels H×W×3; 0×0×3 if unreadable.
    """
    if not data:
        return _unreadable(0, "is empty (0 bytes)")
    try:
        return _decode_whole(data)
    except MemoryError:
        return _unreadable(0, TOO_MUCH_MEMORY)
    except jpeg.TooManyScansError as error:
        return _unreadable(0, str(error))


def _decode_whole(data: bytes) -> Decoded:
    found = jpeg.decode_jpeg(data, MAX_PIXELS)
    if found:
        pixels, fault = found
        if not fault:
            return Decoded(pixels, "ok", "")
        if fallback.shows_nothing(pixels):
            return _unreadable(0, f"JPEG, {fault}")
        return Decoded(pixels, "recovered", f"JPEG, {fault}")
    plain = _decode_plain_png(data)
    if plain is not None:
        return Decoded(plain, "ok", "")
    try:
        pixels, detail = fallback.decode_with_pillow(data, MAX_PIXELS)
    except fallback.UnreadableError as error:
        return _unreadable(0, str(error))
    return Decoded(pixels, "recovered", detail)


def _unreadable(size: int, detail: str) -> Decoded:
    return Decoded(np.zeros((size, size, 3), np.uint8), "unreadable", detail)


def _decode_plain_png(data: bytes) -> np.ndarray | None:
    exif = _exif_of_plain_png(data)
    if exif is None:
        return None
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if pixels is None else orientation.turn_upright(pixels, orientation.read_orientation(exif))


def _exif_of_plain_png(data: bytes) -> bytes | None:
    """The EXIF of a complete 8-bit grey or RGB PNG without transparency, which may be empty (W3C PNG); else None."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or len(data) < 33 or data[24] != 8 or data[25] not in (0, 2):
        return None
    # OpenCV believes a header that is damaged, and then takes gigabytes.
    is_whole = data[8:16] == b"\0\0\0\rIHDR" and zlib.crc32(data[12:29]) == int.from_bytes(data[29:33], "big")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not is_whole or any(data[26:28]) or not 0 < width * height <= MAX_PIXELS:
        return None
    at, exif = 8, b""
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):  # OpenCV believes the length of a chunk, too
            return None
        if kind in (b"IEND", b"tRNS", b"acTL"):
            return exif if kind == b"IEND" else None
        if kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        at = end
    return None


def use_one_thread() -> None:
    """Makes OpenCV use only the calling thread, because the other cores belong to other Ray workers."""
    cv2.setNumThreads(1)
