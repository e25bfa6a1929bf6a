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


def png(
    depth: int,
    colour_type: int,
    rows: np.ndarray,
    transparent: bytes = b"",
    palette: np.ndarray | None = None,
    interlaced: bool = False,
    chunks: dict[bytes, bytes] | None = None,
) -> bytes:
    """A PNG of any bit depth, encoded here because Pillow does not write all of them.

    Args:
        depth: bits per sample.
        colour_type: 0 for grey, 2 for RGB, 3 for a palette, 4 for grey and alpha, 6 for RGB and alpha.
        rows: samples, unsigned, H×W or H×W×C.
        transparent: content of the tRNS chunk; empty for none.
        palette: uint8, N×3, RGB.
        interlaced: whether the pixels come in Adam7's seven passes.
        chunks: further chunks, which are written before the palette.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    lines = b""
    for top, left, down, right in passes if interlaced else [(0, 0, 1, 1)]:
        for row in rows[top::down, left::right]:
            bits = np.unpackbits(row.reshape(-1, 1).astype(">u2").view(np.uint8), axis=1)[:, 16 - depth :]
            lines += b"\0" + np.packbits(bits.ravel()).tobytes() if len(row) else b""
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, colour_type, 0, 0, interlaced)
    extra = [chunk(kind, data) for kind, data in (chunks or {}).items()]
    extra += [] if palette is None else [chunk(b"PLTE", palette.tobytes())]
    extra += [chunk(b"tRNS", transparent)] if transparent else []
    image = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(image)


def tiff(
    samples: np.ndarray,
    photometric: int = 1,
    sample_format: int = 1,
    *,
    depth: int = 0,
    order: str = "<",
    planar: bool = False,
    tile: int = 0,
    deflated: bool = False,
    **fields: tuple[int, ...],
) -> bytes:
    """A TIFF of a kind that Pillow does not write (TIFF 6.0, section 2).

    Args:
        samples: H×W or H×W×C, of any type.
        photometric: 0 if white is zero, 1 if black is, 2 for RGB, 3 for a palette, 5 for CMYK, 8 for CIE L*a*b*.
        sample_format: 1 for unsigned, 2 for signed, 3 for floats.
        depth: bits per sample; 0 for those of the type.
        order: "<" for little-endian, ">" for big-endian.
        planar: whether each channel is stored by itself.
        tile: side of the tiles; 0 for one strip.
        deflated: whether the samples are compressed.
        fields: further tags, as t338=(2,).
    """
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, channels = samples.shape
    depth = depth or 8 * samples.itemsize
    pieces = [samples[..., at : at + 1] for at in range(channels)] if planar else [samples]
    if tile:
        edges = ((0, -height % tile), (0, -width % tile), (0, 0))
        padded = [np.pad(piece, edges) for piece in pieces]
        spots = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
        pieces = [piece[y : y + tile, x : x + tile] for piece in padded for y, x in spots]
    data = [_packed(piece, depth, order) for piece in pieces]
    data = [zlib.compress(each) for each in data] if deflated else data
    starts = [8 + sum(map(len, data[:at])) for at in range(len(data))]
    tags = {256: (width,), 257: (height,), 258: (depth,) * channels, 259: (8 if deflated else 1,)}
    tags |= {262: (photometric,), 277: (channels,), 284: (1 + planar,), 339: (sample_format,) * channels}
    sizes = tuple(map(len, data))
    tags |= {322: (tile,), 323: (tile,), 324: tuple(starts), 325: sizes} if tile else {}
    tags |= {} if tile else {273: tuple(starts), 278: (height,), 279: sizes}
    tags |= {int(name[1:]): values for name, values in fields.items()}
    body = b"".join(data)
    entries, rest = b"", b""
    at = 8 + len(body)
    for tag, values in sorted(tags.items()):
        short = tag not in (273, 279, 324, 325)
        content = struct.pack(f"{order}{len(values)}{'H' if short else 'I'}", *values)
        if len(content) > 4:
            content, rest = struct.pack(order + "I", at + 6 + 12 * len(tags) + len(rest)), rest + content
        entries += struct.pack(order + "HHI", tag, 3 if short else 4, len(values)) + content.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    directory = struct.pack(order + "H", len(tags)) + entries + bytes(4) + rest
    return mark + struct.pack(order + "HI", 42, at) + body + directory


def _packed(samples: np.ndarray, depth: int, order: str) -> bytes:
    """Samples, H×W×C, row by row, each row beginning with a byte of its own."""
    if depth >= 8:
        return samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    return b"".join(np.packbits(row.ravel()).tobytes() for row in bits)


def bmp(
    rows: list[bytes],
    width: int,
    depth: int,
    *,
    compression: int = 0,
    palette: np.ndarray | None = None,
    masks: tuple[int, ...] = (),
    top_down: bool = False,
    height: int = 0,
) -> bytes:
    """A BMP of a kind that Pillow does not write (Microsoft's BITMAPINFOHEADER and BITMAPV4HEADER).

    Args:
        rows: content of each row, from the top; one item if it is compressed.
        width: in pixels.
        depth: bits per pixel.
        compression: 0 for none, 1 for RLE8, 3 for bit masks.
        palette: uint8, N×3, RGB.
        masks: those of red, green, blue and perhaps alpha.
        top_down: whether the first row is the top one.
        height: in pixels; 0 for the number of rows.
    """
    height = height or len(rows)
    colours = b"" if palette is None else np.insert(palette[:, ::-1], 3, 0, axis=1).astype(np.uint8).tobytes()
    size = 108 if len(masks) == 4 else 40
    extra = struct.pack(f"<{len(masks)}I", *masks)
    header = struct.pack("<IiiHHIIiiII", size, width, -height if top_down else height, 1, depth, compression,
                         0, 2835, 2835, 0 if palette is None else len(palette), 0)  # fmt: skip
    header += extra.ljust(68, b"\0") if size == 108 else extra
    if not compression or masks:
        rows = [row + bytes(-len(row) % 4) for row in (rows if top_down else rows[::-1])]
    start = 14 + len(header) + len(colours)
    body = b"".join(rows)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + colours + body


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
