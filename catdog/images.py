"""The one path from a file's bytes to pixels, for training, scoring and serving alike.

OpenCV (libjpeg-turbo) decodes the plain JPEG and PNG files that nearly every image is; Pillow takes the rest. The
whole image is squashed to S×S. Nothing here scales pixel values: a batch stays uint8 RGB until the model does.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from catdog import storage
from catdog.resize import squash

Status = Literal["ok", "recovered", "unreadable"]

# Twice what Pillow warns at: beyond it a small file that claims to be huge would take the worker's memory.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)

# How a verdict begins that is about the storage and not about the image: another time it may be read.
NOT_READ = "could not be read"

# Files of a bucket that are asked for at once, as one alone is mostly waited for, and that are held in memory.
_REQUESTS, _HELD = 16, 64

# Pillow's tolerance of truncated files is a global switch; one thread at a time may turn it.
_pillow_lock = threading.Lock()


class Decoded(NamedTuple):
    """One image, or why there is none.

    Attributes:
        pixels: uint8, S×S×3, RGB; all zero where `status` is "unreadable".
        status: "ok", "recovered" (Pillow could read what the fast decoder could not) or "unreadable".
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
            decoded = _unreadable(size, data) if isinstance(data, str) else decode(data, size)
            array[at] = decoded.pixels
        # Only the verdict is kept: 64 images' own pixels, beside the batch's, would not stay in the core's cache.
        statuses.append(decoded.status)
        details.append(decoded.detail)
    for array in pixels.values():
        array[len(statuses) :] = 0
    return Batch(pixels, statuses, details)


def read(uri: str, size: int) -> Decoded:
    """Reads and decodes one file; whatever is wrong with it becomes a verdict, never an exception.

    Args:
        uri: the file.
        size: S, the side of the square to squash the image to, in pixels.
    """
    data = fetch(uri)
    return _unreadable(size, data) if isinstance(data, str) else decode(data, size)


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


def decode(data: bytes, size: int) -> Decoded:
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
    if _is_plain_jpeg(data) or _is_plain_png(data):
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            pixels = None
        if pixels is not None:
            return Decoded(cv2.cvtColor(squash(pixels, size), cv2.COLOR_BGR2RGB), "ok", "")
    return _decode_with_pillow(data, size)


def _decode_with_pillow(data: bytes, size: int) -> Decoded:
    with _pillow_lock:
        try:
            try:
                return Decoded(*_pillow_pixels(data, size))
            except (OSError, SyntaxError) as error:
                if isinstance(error, UnidentifiedImageError):
                    raise
                ImageFile.LOAD_TRUNCATED_IMAGES = True
                pixels, _, detail = _pillow_pixels(data, size)
                return Decoded(pixels, "recovered", f"{detail}, truncated")
        except UnidentifiedImageError:
            return _unreadable(size, f"is not an image (it starts with {data[:12]!r})")
        except Exception as error:  # a broken file can raise anything at all from a decoder
            return _unreadable(size, f"{type(error).__name__}: {error}")
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def _pillow_pixels(data: bytes, size: int) -> tuple[np.ndarray, Status, str]:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}×{height} pixels, more than {MAX_PIXELS}")
        detail = f"{image.format} {image.mode}"
        plain = image.format == "JPEG" and image.mode in ("RGB", "L")
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            # 16 bits a pixel: Pillow's own conversion would clip all above 255 to white.
            grey = np.asarray(upright).astype(np.uint32).clip(0, 65535)
            pixels = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
        else:
            pixels = np.asarray(upright.convert("RGB"))
    # A whole JPEG that merely has bytes after its end is as good as any other.
    return squash(pixels, size), "ok" if plain else "recovered", "" if plain else detail


def _unreadable(size: int, detail: str) -> Decoded:
    return Decoded(np.zeros((size, size, 3), np.uint8), "unreadable", detail)


def _is_plain_jpeg(data: bytes) -> bool:
    """Tells whether bytes are a complete 8-bit grey or YCbCr JPEG, from its markers (ITU T.81, annex B)."""
    if not data.startswith(b"\xff\xd8") or not data.endswith(b"\xff\xd9"):
        return False
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (
                int.from_bytes(data[at + 5 : at + 7], "big"),
                int.from_bytes(data[at + 7 : at + 9], "big"),
            )
            return data[at + 4] == 8 and data[at + 9] in (1, 3) and 0 < height * width <= MAX_PIXELS
        at += 2 + length
    return False


def _is_plain_png(data: bytes) -> bool:
    """Tells whether bytes are a complete 8-bit grey or RGB PNG without a palette or transparency."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or data[-8:-4] != b"IEND" or len(data) < 33:
        return False
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return data[24] == 8 and data[25] in (0, 2) and 0 < width * height <= MAX_PIXELS


def use_one_thread() -> None:
    """Keeps OpenCV to the thread that calls it: in a Ray worker the cores belong to other workers."""
    cv2.setNumThreads(1)


def show(batch: np.ndarray, view: str) -> np.ndarray:
    """Gives a batch as a view of it: what test-time augmentation shows to a model.

    Args:
        batch: uint8, N×S×S×3.
        view: "identity", "mirror", or "crop-88" (the middle 88 % of each side, enlarged again) and "crop-88-mirror".

    Returns:
        uint8, N×S×S×3.
    """
    kind, _, share = view.removesuffix("mirror").rstrip("-").partition("-")
    if kind == "crop":
        size = batch.shape[1]
        side = size * int(share) / 100
        # Pixel centres: output x shows input (x + 1/2)·share - 1/2 + offset.
        scale = side / size
        offset = (size - side) / 2 + (scale - 1) / 2
        matrix = np.array([[scale, 0, offset], [0, scale, offset]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        batch = np.stack([cv2.warpAffine(image, matrix, (size, size), flags=flags) for image in batch])
    return batch[:, :, ::-1] if view.endswith("mirror") else batch
