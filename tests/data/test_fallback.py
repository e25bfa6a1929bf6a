"""Files that only Pillow reads: grey of every depth, transparency, print colours; and no file starts a program."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import named, png, saved, smooth, tiff
from PIL import Image

from catdog.data import fallback, images


def shown(data: bytes, size: int = 24) -> tuple[np.ndarray, str]:
    """The pixels and the detail of a file that is read and remarked upon; `size` of its sides leaves it as it is."""
    decoded = images.decode_image(data, size)
    assert decoded.status == "recovered"
    return decoded.pixels, decoded.detail


NOISE = np.random.default_rng(0).integers(0, 65536, (24, 24)).astype(np.uint16)
UNIT = (NOISE / 65535).astype(np.float32)


@pytest.mark.parametrize(
    ("data", "expected", "detail"),
    [
        (saved(Image.fromarray(NOISE), "PNG"), NOISE / 257, "PNG I;16, shown from 0 to 65535"),
        (saved(Image.fromarray(NOISE), "TIFF"), NOISE / 257, "TIFF I;16, shown from 0 to 65535"),
        (saved(Image.fromarray(NOISE // 300), "TIFF"), NOISE // 300 / 257, "TIFF I;16, shown from 0 to 65535"),
        (saved(Image.fromarray(NOISE), "PPM"), NOISE / 257, "PPM I, shown from 0 to 65535"),
        (tiff(NOISE, 0), 255 - NOISE / 257, "TIFF I;16, shown from 0 to 65535"),
        (saved(Image.fromarray(NOISE.astype(np.int32)), "TIFF"), NOISE / 257, "TIFF I, shown from 0 to 65535"),
        (saved(Image.fromarray(NOISE.astype(np.int32) >> 8), "TIFF"), NOISE >> 8, "TIFF I, shown from 0 to 255"),
        (
            saved(Image.fromarray((NOISE.astype(np.int32) - NOISE.min()) * 7 - 9), "TIFF"),
            255.0 * (NOISE - NOISE.min()) / np.ptp(NOISE),
            f"TIFF I, shown from -9 to {7 * int(np.ptp(NOISE)) - 9}",
        ),
        (
            tiff((NOISE.astype(np.uint32) - NOISE.min()) * 65537),
            255.0 * (NOISE - NOISE.min()) / np.ptp(NOISE),
            f"TIFF I, shown from 0 to {65537.0 * np.ptp(NOISE):g}",
        ),
        (saved(Image.fromarray(UNIT), "TIFF"), 255 * UNIT, "TIFF F, shown from 0 to 1"),
        (saved(Image.fromarray(UNIT * 255), "TIFF"), 255 * UNIT, "TIFF F, shown from 0 to 255"),
        (tiff(UNIT, 0, 3), 255 - 255 * UNIT, "TIFF F, shown from 0 to 1"),
        (
            saved(Image.fromarray((UNIT - UNIT.min()) * 8 / np.ptp(UNIT) - 4), "TIFF"),
            255 * (UNIT - UNIT.min()) / np.ptp(UNIT),
            "TIFF F, shown from -4 to 4",
        ),
        (
            saved(Image.fromarray(np.where(UNIT < 0.5, np.nan, UNIT)), "TIFF"),
            np.where(UNIT < 0.5, 0, 255 * UNIT),
            "TIFF F, shown from 0 to 1",
        ),
        (png(16, 2, np.dstack([NOISE] * 3)), NOISE >> 8, "PNG RGB"),  # Pillow takes the upper byte
        (png(2, 0, NOISE >> 14), (NOISE >> 14) * 85, "PNG L"),
        (saved(Image.fromarray(NOISE > 32767), "TIFF"), np.where(NOISE > 32767, 255, 0), "TIFF 1"),
    ],
    ids=named,
)
def test_grey_of_every_depth_is_scaled(data: bytes, expected: np.ndarray, detail: str) -> None:
    pixels, said = shown(data)
    assert said == detail
    assert np.abs(pixels - expected[..., None]).max() <= 0.51  # rounded, of all channels alike


def test_an_image_of_one_value_is_not_divided_by_zero() -> None:
    pixels, detail = shown(saved(Image.fromarray(np.full((24, 24), -5, np.int32)), "TIFF"))
    assert detail == "TIFF I, shown from -5 to -5"
    assert not pixels.any()


COLOURS = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(2).integers(0, 256, (24, 24, 1), dtype=np.uint8)
GREY = COLOURS[..., :1]
ON_WHITE = {channels.shape[2]: channels * (ALPHA / 255) + 255 - ALPHA for channels in (COLOURS, GREY)}
PALETTE = Image.fromarray(COLOURS).quantize(8)


def without(pixels: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Pixels, white where they are transparent."""
    return np.where(clear.reshape(24, 24, 1), 255, pixels)


@pytest.mark.parametrize(
    ("data", "expected", "detail"),
    [
        (saved(Image.fromarray(np.dstack([COLOURS, ALPHA])), "PNG"), ON_WHITE[3], "PNG RGBA"),
        (saved(Image.fromarray(np.dstack([COLOURS, ALPHA])), "TIFF"), ON_WHITE[3], "TIFF RGBA"),
        (saved(Image.fromarray(np.dstack([COLOURS, ALPHA])), "WEBP", lossless=True), ON_WHITE[3], "WEBP RGBA"),
        (saved(Image.fromarray(np.dstack([GREY, ALPHA])), "PNG"), ON_WHITE[1], "PNG LA"),
        (saved(Image.fromarray(np.dstack([GREY, ALPHA])), "TIFF"), ON_WHITE[1], "TIFF LA"),
        (
            saved(PALETTE, "PNG", transparency=3),
            without(np.asarray(PALETTE.convert("RGB")), np.asarray(PALETTE) == 3),
            "PNG P",
        ),
        (
            saved(PALETTE, "GIF", transparency=3),
            without(np.asarray(PALETTE.convert("RGB")), np.asarray(PALETTE) == 3),
            "GIF P",
        ),
        (
            saved(PALETTE, "PNG", transparency=bytes([128] * 8)),
            np.asarray(PALETTE.convert("RGB")) * (128 / 255) + 127,
            "PNG P",
        ),
        (png(8, 2, COLOURS, struct.pack(">3H", *COLOURS[0, 0])), None, "PNG RGB"),
        (
            png(8, 0, GREY[..., 0], struct.pack(">H", GREY[5, 5, 0])),
            without(GREY, GREY[5, 5] == GREY),
            "PNG L",
        ),
        (
            png(4, 0, GREY[..., 0] >> 4, struct.pack(">H", 7)),
            without((GREY >> 4) * 17, GREY >> 4 == 7),
            "PNG L",
        ),
        (
            png(16, 0, NOISE, struct.pack(">H", NOISE[5, 5])),
            without(NOISE[..., None] / 257, NOISE[5, 5] == NOISE),
            "PNG I;16, shown from 0 to 65535",
        ),
        (png(16, 2, COLOURS * np.uint16(257), struct.pack(">3H", *(COLOURS[0, 0] * np.uint16(257)))), None, "PNG RGB"),
    ],
    ids=named,
)
def test_transparency_is_laid_on_white(data: bytes, expected: np.ndarray | None, detail: str) -> None:
    if expected is None:
        expected = without(COLOURS, (COLOURS[0, 0] == COLOURS).all(axis=2))
        assert (expected[0, 0] == 255).all()
    pixels, said = shown(data)
    assert said.removesuffix(", laid on white") == detail
    # White laid below may round the other way.
    assert np.abs(pixels - expected).max() <= 1


def test_opaque_alpha_changes_nothing() -> None:
    opaque = np.dstack([COLOURS, np.full((24, 24), 255, np.uint8)])
    pixels, detail = shown(saved(Image.fromarray(opaque), "PNG"))
    assert detail == "PNG RGBA"
    assert (pixels == COLOURS).all()


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n0 0 20 20 rectfill\nshowpage\n%%EOF\n",
        b"%PDF-1.4\n1 0 obj <</Type /Catalog>> endobj\ntrailer <</Root 1 0 R>>\n%%EOF\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><rect width="20" height="20"/></svg>',
    ],
    ids=["eps", "pdf", "svg"],
)
def test_no_program_is_started_for_a_file(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    for name in ("gs", "gswin64c", "pdftoppm", "inkscape", "convert"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {mark}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    file = tmp_path / "photo.jpg"
    file.write_bytes(data)
    decoded = images.read_image(str(file), 16)
    assert decoded[1:] == ("unreadable", f"is not an image (it starts with {data[:12]!r})")
    assert not mark.exists()
    if data.startswith(b"%!PS"):  # the trap works
        with Image.open(file) as opened, pytest.raises(OSError, match="Ghostscript|cannot|gs"):
            opened.load()
        assert mark.exists()


def test_nothing_is_printed_of_what_a_decoder_logs(tmp_path: Path) -> None:
    file = tmp_path / "photo.tif"
    file.write_bytes(tiff(NOISE, t277=(2000,)))
    script = f"from catdog.data import images; print(images.read_image({str(file)!r}, 16).detail)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "TIFF whose structure is truncated, damaged or of a rare kind\n"
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM"])
def test_the_declared_size_is_read_without_decoding(kind: str) -> None:
    data = saved(smooth(300, 200), kind)
    assert fallback.declared_size(data) == (300, 200)
    assert fallback.declared_size(data[:4]) is None
