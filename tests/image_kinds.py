"""Image files of every format, mode and variant that catdog reads, each with the pixels that it shows."""

from __future__ import annotations

import base64
import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from pictures import bmp, png, saved, tiff
from PIL import Image, ImageCms

# Without edges, so that no encoder blurs it, and different when it is turned or its channels are exchanged.
_X, _Y = np.meshgrid(np.linspace(0, 1, 48), np.linspace(0, 1, 32))
PIXELS = np.stack([255 * _X, 255 * _Y, 255 - 200 * _X], axis=2).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
GREY = PICTURE.convert("L")
# From clear at the left to opaque at the right.
ALPHA = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (32, 1))
RGBA = Image.fromarray(np.dstack([PIXELS, ALPHA]))
LA = Image.merge("LA", [GREY, Image.fromarray(ALPHA)])
INKS = PICTURE.convert("CMYK")
PALETTE = PICTURE.quantize(16)
COLOURS = np.array(PALETTE.getpalette()[:48], np.uint8).reshape(16, 3)
BITS = GREY.point(lambda value: 255 * (value > 127), "1")

# The same as arrays.
_GREY, _RGBA, _LA, _INKS, _INDICES = map(np.asarray, (GREY, RGBA, LA, INKS, PALETTE))
_DEEP = np.uint16(257)  # what makes 16 bits of 8


# The picture as `jpegtran -arithmetic` encodes it, also with `-progressive`: no Python package writes them.
_ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggL"
    "DAsKDAkKCgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/yQAR"
    "CAAgADADAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AO0ZiuVT8DBOMe4uEh4Sp0z/AD+9MtUUBuEFuRdffOVwFLBSCuUm"
    "Tcm+bV7v/afmc3NfMh+kCYXOwXzuZshEOv8AZ8M+wGSajV4Cj3k2y8276JOjow3w6JCq6XgzI+ylNHMovN378/pCKn+i8qGZc+fUyTKawFtF"
    "LXLd6uMsgpaigZvJR7WapNjwUSzygGt2VSc1ickfNj22tLHl9Wg4w9bRuO2x6jFWSEjZZrUScPdSKtwRHzuXKDowpizX5+mLHGr/AD+xXV/x"
    "2JvFGQQIW3zOUxC5bMl4kitVuuDyT9Wj5WYBUjyD/HmxSuBtn8qlCzKVVhWR1bsQiut395gQljiEX9chWaVzk07Gru9MnjPLQP/Z"
)
_ARITHMETIC_PROGRESSIVE = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggL"
    "DAsKDAkKCgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/ygAR"
    "CAAgADADAREAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf8A2i36UKOUoec8y7LBfwX0rNVEIxX7Tg4C3qNKSQtEgQT+xUBckxQVgw8E"
    "fEBn6k+v7oGdMRRvJcTJeJIsqn+rV3d58jiA/8wABBAF/9oACAEBAAEFAhRA75wmWGsLYdR54HHvp6uYH7Ms+MjDHkeR5HkeR5HkgP/MAAQR"
    "Bf/aAAgBAwEBPwEWAWziRLja1qc3fmDK4rvWiDlYSNW5AT7dkeQ4WJDn5vj/zAAEEQX/2gAIAQIBAT8BOloWYjPlNgyKuENzx/1DNqWNKt29"
    "22PsJ6DGJjXg/8wABBAF/9oACAEBAAY/AmHENjMbbrQL2hxaHmGw/8wABBAF/9oACAEBAAE/IR8RpwYSv3kc96eKKqSeX5fqeH9Q/9oADAMB"
    "AAIAAwAAABAof5NMqy4G89D/zAAEEQX/2gAIAQMBAT8QIw0GkWQvr4E+u+DOC4D/zAAEEQX/2gAIAQIBAT8QIae+c8dmPgluAyV10uD/zAAE"
    "EAX/2gAIAQEAAT8QDJav1MIl+4LdPrT8B8wDuypNpbiECn+PiKSebIeZ7SVzuCf/ALhTgP/Z"
)
# Grey without losses, as libjpeg-turbo 3 encodes it.
_LOSSLESS = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALCAAgADABAREA/8QAGAABAQEBAQAAAAAAAAAAAAAAAQIDAAf/2gAIAQEAAQAA8cVaVVpVWlVaVVpV"
    "VaVa1VVaVVpVWlVaVVpVWupdFpVWlVaVVpVWlVaVVpdVWlVaVVpVWlVaVVpVWtVVWlVaVVpVWlVaVVpV1VaVVpVWlVaVVpVWlVa1VVaVVpVW"
    "lVaVVpVWlXXmlVaVVpVWlVaVVpVWl0WupVaVVaVVpVWlVaVVrbmlVaVVpVWlVaVVpVWl0WupVWlVaVVpVWlVaVVrVVaVVWlVaVVpVWlVaVdV"
    "VVpVa6lVaVVpVWlVaXRaVVpVVpVVpVWlVaVVrZVVWlVaVVpVWlVaVVpdFrqVaVVWlVaVVpVWlVa1VaVVaVWuaVa6lVaVVpV1VVaVVpVWlVWl"
    "VWlVaXVVpVVaVa5pVWlVaVVpV1VVaVVrqVaVVWlVaVVpdFpVWlVaVVaVWupVaVVa1VaVVpVWlVaVVaVVaVXVVVpVWlVaVVpVVpVa6l1VaVVp"
    "VWlVaepVaVVaVdVVWlVaVVpVWlVVpVrqXRaVVpVWlVaVVpVWlVWnVVpVWlVaVVpVWlVWlVrVaVVpVWlVaVVrqVaVVWtVWlVaVVpVWlVaVVaV"
    "WtVVWlVaVVpVWlVaVVpV0WlVaVVpVWlVaVVpVWl2VVaVVpVWlVaVVpVWupf/2Q=="
)


class Kind(NamedTuple):
    """An image file.

    Attributes:
        name: of the file, with its usual suffix.
        data: its content.
        shows: the pixels that it shows, from 0 to 255, H×W or H×W×3.
    """

    name: str
    data: bytes
    shows: np.ndarray = PIXELS


def every_kind() -> Iterator[Kind]:
    """One file of each format, mode and variant."""
    yield from _jpegs()
    yield from _pngs()
    yield from _tiffs()
    yield from _bmps()
    yield from _others()


def levels(depth: int, grey: np.ndarray = _GREY) -> np.ndarray:
    """What is left of grey in so many bits."""
    return (grey >> 8 - depth) * (255 / (2**depth - 1)) if depth < 8 else grey


def on_white(pixels: np.ndarray, alpha: np.ndarray = ALPHA) -> np.ndarray:
    """Pixels that are transparent, laid on white."""
    share = alpha / 255 if pixels.ndim == 2 else alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


def without(pixels: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Pixels, white where they are clear."""
    return np.where(clear if pixels.ndim == 2 else clear[..., None], 255, pixels)


def turned(orientation: int) -> tuple[Image.Image, bytes]:
    """The picture as it is stored with an EXIF orientation, and that EXIF."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose codes that store it that way
    exif = Image.Exif()
    exif[0x0112] = orientation
    return PICTURE.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else PICTURE, exif.tobytes()


def without_segment(jpeg: bytes, marker: int) -> bytes:
    """A JPEG without its first segment of a kind."""
    at = jpeg.index(bytes([0xFF, marker]))
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def ycck() -> bytes:
    """A JPEG with inks as Adobe's programs transform them."""
    others = np.asarray(Image.merge("RGB", INKS.split()[:3]).convert("YCbCr"))
    data = bytearray(saved(Image.fromarray(np.dstack([255 - others, _INKS[..., 3]]), "CMYK"), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def adobe_ycbcr() -> bytes:
    """A JPEG of YCbCr that says so as Adobe's programs do, and not by JFIF."""
    plain = without_segment(saved(PICTURE, "JPEG", quality=95), 0xE0)
    return plain[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1" + plain[2:]


def profile() -> bytes:
    """An ICC profile by which the colours would differ, if profiles were applied: red and blue are exchanged."""
    there = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = there.index(b"rXYZ"), there.index(b"bXYZ")
    there[red : red + 4], there[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(there)


def xmp(orientation: int) -> bytes:
    """XMP that names an orientation, which does not count."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def odd_exifs() -> Iterator[tuple[str, bytes, bool]]:
    """EXIF that cameras and programs get wrong, and whether the picture is stored upside down with it."""
    yield "big-endian", b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0", True
    yield "as long", b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\4\0\0\0\1\0\0\0\3\0\0\0\0", True
    yield "no direction", b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x09\0\0\0\0\0\0", False
    yield "cut", b"Exif\0\0II*\0", False
    yield "noise", b"Exif\0\0" + b"\xff" * 40, False


def _jpegs() -> Iterator[Kind]:
    for sampling in ("444", "422", "420", "440", "411"):
        yield Kind(f"jpeg {sampling}.jpg", simplejpeg.encode_jpeg(PIXELS.copy(), 95, colorsubsampling=sampling))
    yield Kind("jpeg grey.jpg", saved(GREY, "JPEG", quality=95), _GREY)
    yield Kind("jpeg progressive.jpg", saved(PICTURE, "JPEG", quality=95, progressive=True))
    yield Kind("jpeg restarts.jpg", saved(PICTURE, "JPEG", quality=95, restart_marker_rows=1))
    yield Kind("jpeg arithmetic.jpg", base64.b64decode(_ARITHMETIC))
    yield Kind("jpeg arithmetic progressive.jpg", base64.b64decode(_ARITHMETIC_PROGRESSIVE))
    yield Kind("jpeg lossless.jpg", base64.b64decode(_LOSSLESS), _GREY)
    rgb = saved(PICTURE, "JPEG", quality=95, keep_rgb=True)
    yield Kind("jpeg RGB by Adobe.jpg", rgb)
    yield Kind("jpeg RGB by components.jpg", without_segment(rgb, 0xEE))
    yield Kind("jpeg YCbCr by Adobe.jpg", adobe_ycbcr())
    inks = saved(INKS, "JPEG", quality=95)
    yield Kind("jpeg CMYK.jpg", inks)
    yield Kind("jpeg CMYK by nobody.jpg", without_segment(inks, 0xEE))
    yield Kind("jpeg CMYK progressive.jpg", saved(INKS, "JPEG", quality=95, progressive=True))
    yield Kind("jpeg YCCK.jpg", ycck())
    yield Kind("jpeg other colours.jpg", saved(PICTURE, "JPEG", quality=95, icc_profile=profile()))
    yield Kind("jpeg two.mpo", saved(PICTURE, "MPO", quality=95, save_all=True, append_images=[PICTURE.rotate(180)]))
    for orientation in range(1, 9):
        stored, exif = turned(orientation)
        yield Kind(f"jpeg turned {orientation}.jpg", saved(stored, "JPEG", quality=95, exif=exif))
    stored, exif = turned(6)
    yield Kind("jpeg turned CMYK.jpg", saved(stored.convert("CMYK"), "JPEG", quality=95, exif=exif))
    yield Kind("jpeg turned grey.jpg", saved(stored.convert("L"), "JPEG", quality=95, exif=exif), _GREY)
    yield Kind("jpeg turned.mpo", saved(stored, "MPO", quality=95, exif=exif, save_all=True, append_images=[stored]))
    for name, exif, is_turned in odd_exifs():
        stored = turned(3)[0] if is_turned else PICTURE
        yield Kind(f"jpeg EXIF {name}.jpg", saved(stored, "JPEG", quality=95, exif=exif))
        yield Kind(f"jpeg CMYK EXIF {name}.jpg", saved(stored.convert("CMYK"), "JPEG", quality=95, exif=exif))
    yield Kind("jpeg XMP.jpg", saved(PICTURE, "JPEG", quality=95, xmp=xmp(3)))
    yield Kind("jpeg CMYK XMP.jpg", saved(INKS, "JPEG", quality=95, xmp=xmp(3)))


def _pngs() -> Iterator[Kind]:
    for interlaced in (False, True):
        also = " interlaced" * interlaced
        for depth in (1, 2, 4, 8, 16):
            samples = _GREY * _DEEP >> 16 - depth
            yield Kind(f"png grey {depth}{also}.png", png(depth, 0, samples, interlaced=interlaced), levels(depth))
        for depth in (8, 16):
            scale = _DEEP if depth == 16 else np.uint8(1)
            yield Kind(f"png RGB {depth}{also}.png", png(depth, 2, PIXELS * scale, interlaced=interlaced))
            la, rgba = (png(depth, kind, each * scale, interlaced=interlaced) for kind, each in ((4, _LA), (6, _RGBA)))
            yield Kind(f"png grey alpha {depth}{also}.png", la, on_white(_GREY))
            yield Kind(f"png RGBA {depth}{also}.png", rgba, on_white(PIXELS))
        for depth in (4, 8):
            data = png(depth, 3, _INDICES, palette=COLOURS, interlaced=interlaced)
            yield Kind(f"png palette {depth}{also}.png", data, COLOURS[_INDICES])
    for depth in (1, 2):
        few, colours = _INDICES >> 4 - depth, COLOURS[: 2**depth]
        yield Kind(f"png palette {depth}.png", png(depth, 3, few, palette=colours), colours[few])
    one = png(8, 3, _INDICES, b"\xff\xff\0", COLOURS)
    yield Kind("png palette one clear.png", one, without(COLOURS[_INDICES], _INDICES == 2))
    opacity = np.arange(0, 256, 17).astype(np.uint8)
    clear = png(4, 3, _INDICES, opacity.tobytes(), COLOURS)
    yield Kind("png palette alpha.png", clear, on_white(COLOURS[_INDICES], opacity[_INDICES]))
    for depth in (1, 2, 4, 8, 16):
        samples = _GREY * _DEEP >> 16 - depth
        one = png(depth, 0, samples, struct.pack(">H", samples[20, 20]))
        yield Kind(f"png grey {depth} one clear.png", one, without(levels(depth), samples == samples[20, 20]))
    for depth, scale in ((8, np.uint8(1)), (16, _DEEP)):
        one = png(depth, 2, PIXELS * scale, struct.pack(">3H", *PIXELS[9, 9] * scale))
        yield Kind(f"png RGB {depth} one clear.png", one, without(PIXELS, (PIXELS[9, 9] == PIXELS).all(axis=2)))
    for name, chunks in {
        "gamma": {b"gAMA": struct.pack(">I", 45455)},
        "linear": {b"gAMA": struct.pack(">I", 100000)},
        "sRGB": {b"sRGB": b"\0", b"pHYs": struct.pack(">IIB", 9, 4, 0)},
        "primaries": {b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)},
    }.items():
        yield Kind(f"png {name}.png", png(8, 2, PIXELS, chunks=chunks))
    yield Kind("png other colours.png", saved(PICTURE, "PNG", icc_profile=profile()))
    background = png(8, 6, _RGBA, chunks={b"bKGD": struct.pack(">3H", 255, 0, 0)})
    yield Kind("png background.png", background, on_white(PIXELS))
    yield Kind("png animated.png", saved(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)]))
    for orientation in (2, 6):
        stored, exif = turned(orientation)
        yield Kind(f"png turned {orientation}.png", saved(stored, "PNG", exif=exif))
        yield Kind(f"png turned {orientation} palette.png", saved(stored.convert("RGBA"), "PNG", exif=exif))
    for name, exif, is_turned in odd_exifs():
        stored = turned(3)[0] if is_turned else PICTURE
        chunks = {b"eXIf": exif[6:]}
        yield Kind(f"png EXIF {name}.png", png(8, 2, np.asarray(stored), chunks=chunks))
        opaque = np.asarray(stored.convert("RGBA"))
        yield Kind(f"png alpha EXIF {name}.png", png(8, 6, opaque, chunks=chunks))
    text = {b"iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(3)}
    yield Kind("png XMP.png", png(8, 2, PIXELS, chunks=text))
    yield Kind("png alpha XMP.png", png(8, 6, np.asarray(PICTURE.convert("RGBA")), chunks=text))


def _tiffs() -> Iterator[Kind]:
    for compression in ("packbits", "tiff_lzw", "tiff_deflate", "lzma", "zstd", "jpeg"):
        options = {"quality": 95} if compression == "jpeg" else {}
        for mode, shows in (("L", _GREY), ("RGB", PIXELS)):
            name = f"tiff {mode} {compression.removeprefix('tiff_')}.tif"
            yield Kind(name, saved(PICTURE.convert(mode), "TIFF", compression=compression, **options), shows)
    for compression in ("raw", "group3", "group4", "tiff_ccitt"):
        data = saved(BITS, "TIFF", compression=compression)
        yield Kind(f"tiff bits {compression}.tif", data, np.asarray(BITS) * 255.0)
    yield Kind("tiff predictor.tif", saved(PICTURE, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}))
    for name, samples, options, shows in _tiff_samples():
        for order, deflated, tile in itertools.product("<>", (False, True), (0, 16)):
            storage = f"{'big-endian ' * (order == '>')}{'deflated ' * deflated}{'tiles ' * bool(tile)}"
            data = tiff(samples, order=order, deflated=deflated, tile=tile, **options)
            # Of these Pillow reads no big-endian ones, and says so.
            if order == "<" or name not in ("white is zero 16", "32"):
                yield Kind(f"tiff {storage}{name}.tif", data, shows)
            if samples.ndim == 3 and samples.shape[2] > 2 and name != "LAB":
                apart = tiff(samples, order=order, deflated=deflated, tile=tile, planar=True, **options)
                yield Kind(f"tiff {storage}planar {name}.tif", apart, shows)
    yield Kind("tiff LAB by Pillow.tif", saved(lab(), "TIFF"))
    yield Kind("tiff YCbCr.tif", saved(PICTURE.convert("YCbCr"), "TIFF"))
    yield Kind("tiff pages.tif", saved(PICTURE, "TIFF", save_all=True, append_images=[PICTURE.rotate(180)]))
    yield Kind("tiff large.tif", saved(PICTURE, "TIFF", big_tiff=True))
    yield Kind("tiff XMP.tif", saved(PICTURE, "TIFF", tiffinfo={700: xmp(3)}))
    for orientation in range(1, 9):
        stored, _ = turned(orientation)
        yield Kind(f"tiff turned {orientation}.tif", tiff(np.asarray(stored), 2, t274=(orientation,)))
        deep = tiff(np.asarray(stored.convert("L")) * _DEEP, deflated=True, t274=(orientation,))
        yield Kind(f"tiff turned {orientation} grey 16.tif", deep, _GREY)


def _tiff_samples() -> Iterator[tuple[str, np.ndarray, dict, np.ndarray]]:
    """Name, samples, options of `tiff` and pixels shown of each kind of samples."""
    for depth in (1, 2, 4, 8):
        yield f"grey {depth}", _GREY >> 8 - depth, {"depth": depth}, levels(depth)
        inverse = {"photometric": 0, "depth": depth}
        yield f"white is zero {depth}", ~_GREY >> 8 - depth, inverse, 255 - levels(depth, ~_GREY)
    yield "grey 16", _GREY * _DEEP, {}, _GREY
    yield "white is zero 16", ~(_GREY * _DEEP), {"photometric": 0}, _GREY
    yield "signed 16", (_GREY * _DEEP >> 1).astype(np.int16), {"sample_format": 2}, _GREY / 2
    yield "32", _GREY * np.uint32(257), {}, _GREY
    yield "signed 32", _GREY * np.int32(257), {"sample_format": 2}, _GREY
    yield "floats", (_GREY / 255).astype(np.float32), {"sample_format": 3}, _GREY
    premultiplied = np.dstack([PIXELS * (ALPHA[..., None] / 255), ALPHA])
    for depth, scale in ((8, np.uint8(1)), (16, _DEEP)):
        yield f"RGB {depth}", PIXELS * scale, {"photometric": 2}, PIXELS
        yield f"RGBA {depth}", _RGBA * scale, {"photometric": 2, "t338": (2,)}, on_white(PIXELS)
        yield f"RGB and another {depth}", _RGBA * scale, {"photometric": 2, "t338": (0,)}, PIXELS
        yield f"CMYK {depth}", _INKS * scale, {"photometric": 5, "t332": (1,)}, PIXELS
        associated = (premultiplied * float(scale)).round().astype(scale.dtype)
        yield f"RGBA associated {depth}", associated, {"photometric": 2, "t338": (1,)}, on_white(PIXELS)
    yield "grey alpha", _LA, {"t338": (2,)}, on_white(_GREY)
    yield "LAB", np.asarray(lab()), {"photometric": 8}, PIXELS
    colours = {"photometric": 3, "t320": tuple(map(int, np.resize(COLOURS, (256, 3)).T.ravel() * _DEEP))}
    yield "palette 8", _INDICES, colours, COLOURS[_INDICES]
    colours = {"photometric": 3, "depth": 4, "t320": tuple(map(int, COLOURS.T.ravel() * _DEEP))}
    yield "palette 4", _INDICES, colours, COLOURS[_INDICES]


def lab() -> Image.Image:
    """The picture in CIE L*a*b*."""
    there = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(PICTURE, ImageCms.buildTransform(*there, "RGB", "LAB"))


def _bmps() -> Iterator[Kind]:
    yield Kind("bmp bits.bmp", saved(BITS, "BMP"), np.asarray(BITS) * 255.0)
    yield Kind("bmp grey.bmp", saved(GREY, "BMP"), _GREY)
    yield Kind("bmp palette 8.bmp", saved(PALETTE, "BMP"), COLOURS[_INDICES])
    yield Kind("bmp RGB.bmp", saved(PICTURE, "BMP"))
    two = _INDICES >> 3
    bits = [np.packbits(row).tobytes() for row in two]
    yield Kind("bmp palette 1.bmp", bmp(bits, 48, 1, palette=COLOURS[:2]), COLOURS[two])
    halves = [(row[::2] << 4 | row[1::2]).tobytes() for row in _INDICES]
    yield Kind("bmp palette 4.bmp", bmp(halves, 48, 4, palette=COLOURS), COLOURS[_INDICES])
    runs = b"".join(bytes(pair) for row in _INDICES[::-1] for pair in [*_runs(row), (0, 0)]) + b"\0\1"
    encoded = bmp([runs], 48, 8, compression=1, palette=COLOURS, height=32)
    yield Kind("bmp RLE8.bmp", encoded, COLOURS[_INDICES])
    yield Kind("bmp top-down.bmp", bmp([row[:, ::-1].tobytes() for row in PIXELS], 48, 24, top_down=True))
    red, green, blue = (PIXELS[..., at].astype("<u2") for at in range(3))
    five = (red >> 3) << 10 | (green >> 3) << 5 | blue >> 3
    yield Kind("bmp 555.bmp", bmp([row.tobytes() for row in five], 48, 16))
    six = (red >> 3) << 11 | (green >> 2) << 5 | blue >> 3
    masks = (0xF800, 0x7E0, 0x1F)
    yield Kind("bmp 565.bmp", bmp([row.tobytes() for row in six], 48, 16, compression=3, masks=masks))
    filled = np.dstack([PIXELS[..., ::-1], np.zeros((32, 48), np.uint8)])
    yield Kind("bmp 32.bmp", bmp([row.tobytes() for row in filled], 48, 32))
    deep = np.dstack([PIXELS[..., ::-1], ALPHA])
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    data = bmp([row.tobytes() for row in deep], 48, 32, compression=3, masks=masks)
    yield Kind("bmp alpha.bmp", data, on_white(PIXELS))


def _runs(row: np.ndarray) -> Iterator[tuple[int, int]]:
    """Length and value of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    for start, stop in itertools.pairwise(edges):
        yield stop - start, int(row[start])


def _others() -> Iterator[Kind]:
    colours = COLOURS[_INDICES]
    yield Kind("gif.gif", saved(PALETTE, "GIF"), colours)
    yield Kind("gif not interlaced.gif", saved(PALETTE, "GIF", interlace=0), colours)
    yield Kind("gif one clear.gif", saved(PALETTE, "GIF", transparency=3), without(colours, _INDICES == 3))
    animated = saved(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)], loop=0)
    yield Kind("gif animated.gif", animated, colours)
    yield Kind("gif grey.gif", saved(GREY, "GIF"), _GREY)
    stored, exif = turned(6)
    for name, kind, lossless in (("webp", "WEBP", {"lossless": True, "exact": True}), ("heic", "HEIF", {}),
                                 ("avif", "AVIF", {})):  # fmt: skip
        yield Kind(f"{name}.{name}", saved(PICTURE, kind, quality=95))
        yield Kind(f"{name} grey.{name}", saved(GREY, kind, quality=95), _GREY)
        yield Kind(f"{name} alpha.{name}", saved(RGBA, kind, quality=95, **lossless), on_white(PIXELS))
        yield Kind(f"{name} turned.{name}", saved(stored, kind, quality=95, exif=exif))
        several = saved(PICTURE, kind, quality=95, save_all=True, append_images=[PICTURE.rotate(180)])
        yield Kind(f"{name} several.{name}", several)
        yield Kind(f"{name} other colours.{name}", saved(PICTURE, kind, quality=95, icc_profile=profile()))
    yield Kind("webp lossless.webp", saved(PICTURE, "WEBP", lossless=True))
    yield Kind("webp lossy alpha.webp", saved(RGBA, "WEBP", quality=95, exact=True), on_white(PIXELS))
    yield Kind("webp XMP.webp", saved(PICTURE, "WEBP", quality=95, xmp=xmp(3)))
    for name, odd, is_turned in odd_exifs():
        yield Kind(f"webp EXIF {name}.webp", saved(turned(3)[0] if is_turned else PICTURE, "WEBP", exif=odd))
    for mode, image, shows in (("L", GREY, _GREY), ("RGB", PICTURE, PIXELS), ("RGBA", RGBA, on_white(PIXELS)),
                               ("LA", LA, on_white(_GREY))):  # fmt: skip
        yield Kind(f"jpeg2000 {mode}.jp2", saved(image, "JPEG2000"), shows)
    yield Kind(
        "jpeg2000 lossy.jp2", saved(PICTURE, "JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[45])
    )
    yield Kind("jpeg2000 tiles.jp2", saved(PICTURE, "JPEG2000", tile_size=(16, 16)))
    yield Kind("jpeg2000 codestream.j2k", saved(PICTURE, "JPEG2000", no_jp2=True))
    yield Kind("jpeg2000 grey 16.jp2", saved(Image.fromarray(_GREY * _DEEP), "JPEG2000"), _GREY)
    yield Kind("ppm bits.pbm", saved(BITS, "PPM"), np.asarray(BITS) * 255.0)
    yield Kind("ppm grey.pgm", saved(GREY, "PPM"), _GREY)
    yield Kind("ppm.ppm", saved(PICTURE, "PPM"))
    yield Kind("ppm grey 16.pgm", saved(Image.fromarray(_GREY * _DEEP), "PPM"), _GREY)
    yield Kind("ppm RGB 16.ppm", b"P6 48 32 65535\n" + (PIXELS * _DEEP).astype(">u2").tobytes())
    yield Kind("ppm grey 10.pgm", b"P5 48 32 1023\n" + (_GREY * _DEEP >> 6).astype(">u2").tobytes(), _GREY)
    few = (PIXELS >> 4) * 17
    yield Kind("ppm few levels.ppm", b"P6 48 32 15\n" + (PIXELS >> 4).tobytes(), few)
    yield Kind("ppm text.ppm", b"P3\n48 32\n255\n" + b" ".join(b"%d" % value for value in PIXELS.ravel()) + b"\n")
    bits = b" ".join(b"%d" % (not value) for value in np.asarray(BITS).ravel())
    yield Kind("ppm bits text.pbm", b"P1 48 32\n" + bits + b"\n", np.asarray(BITS) * 255.0)
    floats = saved(Image.fromarray((_GREY / 255).astype(np.float32)), "PPM")
    yield Kind("ppm floats.pfm", floats, _GREY)
