"""One decoder for all: what it makes of every kind of file, and how a view shows it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from catdog import formats, images


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


def reference(image: Image.Image, size: int) -> np.ndarray:
    """What Pillow decodes, averaged exactly over the area of each new pixel."""
    pixels = np.asarray(image.convert("RGB"), np.float64)
    weights = overlap(size, pixels.shape[0]), overlap(size, pixels.shape[1])
    return np.einsum("yh,xw,hwc->yxc", *weights, pixels, optimize=True)


def overlap(new: int, old: int) -> np.ndarray:
    """The share of each new pixel that each old one covers, along one axis."""
    edges = np.arange(new + 1) * old / new
    low, high = np.maximum(edges[:-1, None], np.arange(old)), np.minimum(edges[1:, None], np.arange(1, old + 1))
    return np.clip(high - low, 0, None) * new / old


@pytest.mark.parametrize(
    ("data", "status", "detail"),
    [
        (saved(smooth(300, 200), "JPEG", quality=95), "ok", ""),
        (saved(smooth(300, 200), "JPEG", quality=95, progressive=True), "ok", ""),
        (saved(smooth(300, 200), "JPEG", quality=95) + b"trailing bytes", "ok", ""),
        (saved(smooth(300, 200), "PNG"), "ok", ""),
        (saved(smooth(300, 200), "BMP"), "recovered", "BMP RGB"),
        (saved(smooth(300, 200), "WEBP", quality=95), "recovered", "WEBP RGB"),
        (saved(smooth(300, 200), "GIF"), "recovered", "GIF P"),
        (saved(smooth(300, 200).convert("P"), "PNG"), "recovered", "PNG P"),
        (saved(smooth(300, 200).convert("CMYK"), "JPEG", quality=95), "recovered", "JPEG CMYK"),
        (saved(smooth(300, 200).convert("RGBA"), "PNG"), "recovered", "PNG RGBA"),
    ],
    ids=["jpeg", "progressive", "trailing", "png", "bmp", "webp", "gif", "palette", "cmyk", "rgba"],
)
def test_every_kind_of_file_gives_the_picture(data: bytes, status: str, detail: str) -> None:
    decoded = images.decode(data, 64)
    assert (decoded.status, decoded.detail) == (status, detail)
    assert decoded.pixels.shape == (64, 64, 3)
    assert decoded.pixels.dtype == np.uint8
    # A GIF's or a palette's colours are coarse.
    limit = 12 if detail.endswith(" P") else 2
    assert np.abs(decoded.pixels - reference(smooth(300, 200), 64)).mean() < limit


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = np.tile(np.linspace(0, 65535, 200).astype(np.uint16), (200, 1))
    decoded = images.decode(saved(Image.fromarray(grey), "PNG"), 50)
    assert decoded.status == "recovered"
    expected = np.linspace(0, 255, 50)[None, :, None]
    assert np.abs(decoded.pixels.astype(float) - expected).max() < 5


def test_a_grey_jpeg_has_three_equal_channels() -> None:
    decoded = images.decode(saved(smooth(90, 90).convert("L"), "JPEG"), 32)
    assert decoded.status == "ok"
    assert (decoded.pixels[..., 0] == decoded.pixels[..., 2]).all()


def test_a_truncated_tail_is_recovered() -> None:
    whole = saved(smooth(300, 200), "JPEG", quality=95)
    decoded = images.decode(whole[: len(whole) * 3 // 4], 64)
    assert decoded.status == "recovered"
    assert "truncated" in decoded.detail
    top = np.abs(decoded.pixels[:24].astype(float) - reference(smooth(300, 200), 64)[:24]).mean()
    assert top < 4
    # The switch that let Pillow read it is off again.
    assert images.decode(whole, 64).status == "ok"


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<html>404</html>", "is not an image"),
        (b"\xff\xd8\xff", "is not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), ""),
    ],
)
def test_what_is_no_image(data: bytes, detail: str) -> None:
    decoded = images.decode(data, 16)
    assert decoded.status == "unreadable"
    assert decoded.detail.startswith(detail)
    assert not decoded.pixels.any()


def test_a_file_that_claims_to_be_huge_is_not_unpacked() -> None:
    header = bytearray(saved(Image.new("RGB", (1, 1)), "PNG"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    assert images.decode(bytes(header), 16).status == "unreadable"


def test_folders_and_absent_files_are_verdicts(tmp_path: Path) -> None:
    assert images.read(str(tmp_path), 16)[1:] == ("unreadable", "is a folder")
    os.mkfifo(tmp_path / "fifo.jpg")
    assert images.read(str(tmp_path / "fifo.jpg"), 16)[1:] == ("unreadable", "could not be read: is not a regular file")
    assert images.read(str(tmp_path / "no.jpg"), 16)[1:] == (
        "unreadable",
        "could not be read: No such file or directory",
    )


@pytest.mark.parametrize("kind", formats.PILLOW_FORMATS)
def test_the_first_bytes_tell_every_format_that_is_read(kind: str) -> None:
    pillow_heif.register_heif_opener()
    assert formats.sniff(saved(smooth(30, 20), kind)[: formats.HEAD_BYTES]) == kind
    # Every usual name of such a file, as Pillow knows them, is one of ours.
    assert {suffix for suffix, name in Image.registered_extensions().items() if name == kind} <= formats.SUFFIXES


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", None),
        (b"BM is how this text begins", None),
        (b"P1 is how this text begins", None),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", None),
        (b"%PDF-1.7\n", None),
        (b'<svg xmlns="http://www.w3.org/2000/svg">', None),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", None),  # a film
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1avif", "HEIF"),  # the box ends before the last brand
        (b"MM\0+\0\x08\0\0", "TIFF"),  # BigTIFF
    ],
)
def test_first_bytes_that_say_something_else(head: bytes, kind: str | None) -> None:
    assert formats.sniff(head) == kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    upright = smooth(120, 80)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose codes that store it that way
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = images.decode(saved(stored, "JPEG", quality=95, exif=exif), 40)
    assert decoded.status == "ok"
    assert np.abs(decoded.pixels - reference(upright, 40)).mean() < 4


def test_the_pixels_are_pinned() -> None:
    """Shrinking averages areas, enlarging is bilinear; whoever changes this changes every trained model."""
    image = smooth(64, 64)
    data = saved(image, "PNG")
    pixels = np.asarray(image)
    areas = pixels.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(images.decode(data, 16).pixels - areas).max() <= 0.5
    assert (images.decode(data, 64).pixels == pixels).all()
    enlarged = cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_LINEAR)
    assert (images.decode(data, 96).pixels == enlarged).all()
    shrunk = cv2.resize(pixels, (40, 40), interpolation=cv2.INTER_AREA)
    assert (images.decode(data, 40).pixels == shrunk).all()
    tall = saved(smooth(20, 90), "PNG")
    shrunk = cv2.resize(np.asarray(smooth(20, 90)), (20, 30), interpolation=cv2.INTER_AREA)
    assert (images.decode(tall, 30).pixels == cv2.resize(shrunk, (30, 30))).all()


def test_real_photos_at_original_size_agree_with_pillow(photos: Path) -> None:
    import zipfile

    with zipfile.ZipFile(photos / "original-size.zip") as archive:
        for name in archive.namelist()[:40]:
            data = archive.read(name)
            photo = Image.open(io.BytesIO(data))
            size = min(192, *photo.size)
            decoded = images.decode(data, size)
            assert decoded.status == "ok"
            assert np.abs(decoded.pixels - reference(photo, size)).mean() < 0.6


def test_views_are_the_image_its_mirror_and_the_middle_of_it() -> None:
    batch = np.stack([np.asarray(smooth(50, 50))] * 2)
    assert (images.show(batch, "identity") == batch).all()
    assert (images.show(batch, "mirror") == batch[:, :, ::-1]).all()
    # The middle 80 % of 50 pixels are the 40 from 5 to 44; Pillow enlarges them likewise.
    middle = Image.fromarray(batch[0, 5:45, 5:45]).resize((50, 50), Image.Resampling.BILINEAR)
    inside = (slice(1, -1), slice(1, -1))  # at the rim Pillow has nothing to look at beyond its 40 pixels
    shown = images.show(batch, "crop-80")[0].astype(float)
    assert np.abs(shown - np.asarray(middle))[inside].max() <= 2
    assert (images.show(batch, "crop-80-mirror")[1] == images.show(batch, "crop-80")[0][:, ::-1]).all()
