"""Decoding with Pillow, for files that the fast decoders do not support: other formats, rare modes, broken files."""

from __future__ import annotations

import functools
import io
import logging
import re
import threading
import warnings

import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from catdog.data import formats, jpeg, orientation
from catdog.errors import first_line

# Tolerance of truncated files, the TIFF decoder and warning filters are global: one thread at a time may change them.
_lock = threading.Lock()

_SAMPLE_FORMAT, _PHOTOMETRIC, _PLANAR, _CHANNELS = 339, 262, 284, 277  # tags of TIFF 6.0
_UNSIGNED, _WHITE_IS_ZERO, _BY_CHANNEL = 1, 0, 2


class UnreadableError(Exception):
    """No picture could be decoded; the message gives the reason."""


def decode_with_pillow(data: bytes, most_pixels: int) -> tuple[np.ndarray, str]:
    """Decodes a file of any format of `formats.PILLOW_FORMATS`; of a broken file, as much as possible.

    Of several frames or pages the first is used. EXIF orientation is applied. Transparency is blended with white. Grey
    of more than 8 bits is scaled to 0…255:

    * 16 bits: 65535 is white.
    * 32-bit integers: 255 is white if no value is beyond 0…255, 65535 if none is beyond 0…65535.
    * floats: 1 is white if no value is beyond 0…1, 255 if none is beyond 0…255.
    * any other range: the minimum becomes black and the maximum white. Floats that are not finite become black.

    Args:
        data: the whole file.
        most_pixels: the largest image to decode, in pixels.

    Returns:
        uint8, H×W×3, RGB, upright; and a description: format, mode, conversions and faults.

    Raises:
        UnreadableError: no picture could be decoded.
        MemoryError: there is too little memory.
    """
    kind = formats.sniff(data[: formats.HEAD_BYTES])
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faults are in the description
        _register_plugins()
        try:
            return _decode_whole_or_part(data, most_pixels)
        except UnidentifiedImageError as error:
            if kind is None:
                raise UnreadableError(f"is not an image (it starts with {data[:12]!r})") from error
            raise UnreadableError(f"{kind} whose structure is truncated, damaged or of a rare kind") from error
        except (OSError, SyntaxError, EOFError) as error:
            raise UnreadableError(f"{kind}, truncated or damaged ({first_line(error)})") from error
        except (MemoryError, UnreadableError):
            raise
        except Exception as error:  # decoders raise errors of many kinds on broken files
            raise UnreadableError(
                f"{kind} that cannot be decoded ({type(error).__name__}: {first_line(error)})"
            ) from error


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Reads the size that a file says its image has, without decoding it.

    Args:
        data: the whole file.

    Returns:
        Width and height in pixels, as stored; None if the file does not tell.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _register_plugins()
        try:
            with Image.open(io.BytesIO(data), formats=formats.PILLOW_FORMATS) as image:
                return image.size
        except Exception:  # as many kinds as there are broken files; decoding will tell what is wrong
            return None


def shows_nothing(pixels: np.ndarray) -> bool:
    """Returns whether at least 99 % of a broken picture, H×W×3, have the fill colour of missing pixels."""
    corners = (pixels[0, 0], pixels[-1, -1])  # the missing rows of a BMP are at the top
    return any((pixels != corner).any(axis=2).mean() < 0.01 for corner in corners)


@functools.cache
def _register_plugins() -> None:
    import pillow_heif

    # One thread, because the other cores belong to other workers.
    pillow_heif.register_heif_opener(decode_threads=1)
    # Without any handler, logged errors would be printed.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    # Where each channel is stored by itself, Pillow's own decoder takes 16 bits for twice 8.
    TiffImagePlugin.READ_LIBTIFF = True


def _decode_whole_or_part(data: bytes, most_pixels: int) -> tuple[np.ndarray, str]:
    try:
        return _decode(data, most_pixels, whole=True)
    except UnidentifiedImageError:
        raise
    except (OSError, SyntaxError) as error:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            pixels, detail = _decode(data, most_pixels, whole=False)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        if shows_nothing(pixels):
            raise error
        return pixels, detail


def _decode(data: bytes, most_pixels: int, whole: bool) -> tuple[np.ndarray, str]:
    with _opened(data) as image:
        width, height = image.size
        if width * height > most_pixels:
            raise ValueError(f"{width}×{height} pixels, more than {most_pixels}")
        for name in ("xmp", "XML:com.adobe.xmp"):  # in which Pillow would look for an orientation
            image.info.pop(name, None)
        image.load()
        detail = f"{image.format} {image.mode}"
        if image.mode == "F" or image.mode.startswith("I"):
            pixels, note = _from_grey(image)
        elif image.has_transparency_data:
            pixels, note = _from_transparent(image, _transparent_value(image, data))
        else:
            pixels, note = np.asarray(image.convert("RGB")), ""
        # Of a TIFF this is empty, and the image upright already.
        pixels = orientation.turn_upright(pixels, orientation.read_orientation(image.info.get("exif") or b""))
    if not whole:
        note += ", truncated or damaged"
    elif image.format in ("JPEG", "MPO"):
        # Pillow reports no fault in a JPEG, and `jpeg.decode_jpeg` did not support this one.
        fault = jpeg.cmyk_fault(data) if image.mode == "CMYK" else "of a rare kind, perhaps not whole"
        note += f", {fault}" if fault else ""
    return pixels, detail + note


def _opened(data: bytes) -> ImageFile.ImageFile:
    """Opens a file so that Pillow takes its samples for what they are."""
    image = Image.open(io.BytesIO(data), formats=formats.PILLOW_FORMATS)
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image
    if image.tag_v2.get(_PLANAR) == _BY_CHANNEL and image.tag_v2.get(_CHANNELS, 1) > 1:
        if image.mode not in ("RGB", "RGBA", "CMYK"):  # of others Pillow confuses the channels
            raise UnreadableError(f"TIFF {image.mode} with each channel stored by itself, expected them together")
    elif image.info.get("compression") == "raw":
        TiffImagePlugin.READ_LIBTIFF = False  # without it, there is a picture in a truncated file
        try:
            return TiffImagePlugin.TiffImageFile(io.BytesIO(data))
        finally:
            TiffImagePlugin.READ_LIBTIFF = True
    for at, tile in enumerate(image.tile):
        # libtiff gives samples in this machine's order; for signed ones and floats, Pillow believes in the file's.
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
            image.tile[at] = tile._replace(args=(re.sub("B([SF])$", r"N\1", tile.args[0]), *tile.args[1:]))
    return image


def _from_grey(image: ImageFile.ImageFile) -> tuple[np.ndarray, str]:
    """Scales grey of more than 8 bits, as described in `decode_with_pillow`."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and image.mode == "I" and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
        values = values.view(np.uint32)
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    tops = [1, 255] if image.mode == "F" else [255, 65535]
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        tops = [65535]
    low, high = next(((0.0, float(top)) for top in tops if least >= 0 and most <= top), (least, most))
    grey = np.empty(values.shape, np.uint8)
    for row in range(len(values)):  # row by row, because the whole image as floats would take eight times the memory
        floats = np.nan_to_num(values[row].astype(np.float64), nan=low, posinf=low, neginf=low)
        grey[row] = np.rint((floats - low) * (255 / ((high - low) or 1)))
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return np.repeat(grey[..., None], 3, axis=2), f", shown from {low:g} to {high:g}"


def _transparent_value(image: ImageFile.ImageFile, data: bytes) -> tuple[int, ...] | None:
    """The 8-bit grey or RGB value that means transparent; None if transparency is stored in another way."""
    value = image.info.get("transparency")
    if value is None or image.mode not in ("1", "L", "RGB"):
        return None
    values: tuple[int, ...] = value if isinstance(value, tuple) else (value,) * 3
    # In PNG the value has the bit depth of the file (W3C PNG, section 11.3.2.1); Pillow does not convert it.
    depth = data[24] if image.format == "PNG" else 8
    return tuple(each >> 8 if depth == 16 else each * 255 // (2**depth - 1) for each in values)


def _from_transparent(image: Image.Image, value: tuple[int, ...] | None) -> tuple[np.ndarray, str]:
    """Blends an image with white."""
    if value is not None:
        pixels = np.array(image.convert("RGB"))
        clear = (pixels == value).all(axis=2)
        pixels[clear] = 255
        return pixels, ", laid on white" if clear.any() else ""
    layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema()[0] == 255:
        return np.asarray(layer.convert("RGB")), ""
    white = Image.new("RGBA", layer.size, "white")
    white.alpha_composite(layer)
    return np.asarray(white.convert("RGB")), ", laid on white"
