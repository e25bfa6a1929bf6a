"""One decoder for all: what it makes of every kind of file, and how a view shows it."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import simplejpeg
from pictures import named, reference, saved, smooth
from PIL import Image

from catdog.data import formats, images
from catdog.data.resize import squash
from catdog.inference.views import apply_view


@pytest.mark.parametrize(
    ("data", "status", "detail"),
    [
        (saved(smooth(300, 200), "JPEG", quality=95), "ok", ""),
        (saved(smooth(300, 200), "JPEG", quality=95, progressive=True), "ok", ""),
        (saved(smooth(300, 200), "JPEG", quality=95) + b"trailing bytes", "ok", ""),
        (saved(smooth(300, 200), "PNG"), "ok", ""),
        (saved(smooth(300, 200), "PNG") + b"trailing bytes", "ok", ""),
        (saved(smooth(300, 200), "BMP"), "recovered", "BMP RGB"),
        (saved(smooth(300, 200), "WEBP", quality=95), "recovered", "WEBP RGB"),
        (saved(smooth(300, 200), "GIF"), "recovered", "GIF P"),
        (saved(smooth(300, 200), "TIFF"), "recovered", "TIFF RGB"),
        (saved(smooth(300, 200), "PPM"), "recovered", "PPM RGB"),
        (saved(smooth(300, 200), "JPEG2000"), "recovered", "JPEG2000 RGB"),
        (saved(smooth(300, 200), "AVIF", quality=95), "recovered", "AVIF RGB"),
        (saved(smooth(300, 200), "HEIF", quality=95), "recovered", "HEIF RGB"),
        (saved(smooth(300, 200), "MPO", quality=95, save_all=True, append_images=[smooth(300, 200)]), "ok", ""),
        (saved(smooth(300, 200), "PNG", save_all=True, append_images=[smooth(9, 9)]), "recovered", "PNG RGB"),
        (saved(smooth(300, 200).convert("P"), "PNG"), "recovered", "PNG P"),
        (saved(smooth(300, 200).convert("CMYK"), "JPEG", quality=95), "recovered", "JPEG CMYK"),
        (saved(smooth(300, 200).convert("RGBA"), "PNG"), "recovered", "PNG RGBA"),
    ],
    ids=named,
)
def test_every_kind_of_file_gives_the_picture(data: bytes, status: str, detail: str) -> None:
    decoded = images.decode_image(data, 64)
    assert (decoded.status, decoded.detail) == (status, detail)
    assert decoded.pixels.shape == (64, 64, 3)
    assert decoded.pixels.dtype == np.uint8
    # A GIF's or a palette's colours are coarse.
    limit = 12 if detail.endswith(" P") else 2
    assert np.abs(decoded.pixels - reference(smooth(300, 200), 64)).mean() < limit


def test_a_grey_jpeg_has_three_equal_channels() -> None:
    decoded = images.decode_image(saved(smooth(90, 90).convert("L"), "JPEG"), 32)
    assert decoded.status == "ok"
    assert (decoded.pixels[..., 0] == decoded.pixels[..., 2]).all()


END = b"\xff\xd9"


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("tail", [b"", END, END + b"trailing bytes"], ids=["cut", "ended", "trailing"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_cut_jpeg_is_never_ok(mode: str, options: dict, tail: bytes, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    noisy = Image.fromarray(np.asarray(smooth(320, 240)) // 2 + noise.repeat(10, 0).repeat(10, 1) // 2)
    whole = saved(noisy.convert(mode), "JPEG", quality=95, **options)
    first = whole.index(b"\xff\xda") + 2  # where the first scan begins: before there is nothing to see
    decoded = images.decode_image(whole[: int(first + (len(whole) - first) * share)] + tail, 64)
    assert decoded.status == "recovered"
    assert decoded.detail.startswith("JPEG")
    assert "truncated or damaged" in decoded.detail
    if share >= 0.5 and not options.get("progressive"):
        expected = reference(noisy.convert(mode), 64)[: int(64 * share) - 16]
        assert np.abs(decoded.pixels[: len(expected)] - expected).mean() < 4
    # The switch that lets Pillow read the truncated is off again.
    assert images.decode_image(whole, 64).detail in ("", "JPEG CMYK")


def test_a_jpeg_cut_between_two_scans_is_told() -> None:
    whole = saved(smooth(320, 240), "JPEG", quality=95, progressive=True)
    scans = [at for at in range(len(whole)) if whole.startswith(b"\xff\xda", at)]
    assert len(scans) > 3
    # Each scan is preceded by its Huffman table.
    cut = whole[: whole.rindex(b"\xff\xc4", 0, scans[-2])] + END
    assert images.decode_image(cut, 64)[1:] == ("recovered", "JPEG, truncated or damaged (its last scans are missing)")


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_jpeg_of_very_many_scans_is_not_decoded(mode: str) -> None:
    """Each scan of a few bytes costs a pass over the image: 97 kB took 52 s at 12 megapixels."""
    # Markers in a comment and after the image are none of it.
    noise = b"\xff\xda\0\x02" * 200
    whole = saved(smooth(64, 64).convert(mode), "JPEG", quality=95, progressive=True, comment=noise)
    body, last = whole.removesuffix(END), whole[whole.rindex(b"\xff\xda") :].removesuffix(END)
    count = body[body.index(b"\xff\xc2") :].count(b"\xff\xda")
    few, many = (body + last * (scans - count) + END + noise for scans in (100, 1000))
    # The repeated scan makes it odd, but a picture.
    assert images.decode_image(few, 32).status == "recovered"
    assert images.decode_image(many, 32)[1:] == ("unreadable", "JPEG with 1,000 scans, expected at most 100")


def test_images_of_odd_lengths_leave_nothing_in_memory() -> None:
    before = psutil.Process().memory_info().rss
    for length in range(600_000, 600_025):
        assert squash(np.zeros((1, length, 3), np.uint8), 64).shape == (64, 64, 3)
    # What is kept of the lengths that photos have, so that it need not be computed again, would take 5 MB for each.
    assert psutil.Process().memory_info().rss - before < 70e6


def test_what_libjpeg_warns_of_is_judged() -> None:
    whole = saved(smooth(320, 240), "JPEG", quality=95)
    odd = whole[:11] + b"\0\0" + whole[13:]  # JFIF 0.00 is common, and harmless
    assert images.decode_image(odd, 64).status == "ok"
    assert images.decode_image(odd[: len(odd) // 2] + END, 64).status == "recovered"
    extra = images.decode_image(whole[:-2] + bytes(range(1, 100)) + END, 64)
    assert extra.status == "recovered"
    assert re.fullmatch(r"JPEG, truncated or damaged \(9. extraneous bytes before marker 0xd9\)", extra.detail)
    # Sampling that simplejpeg does not know: Pillow reads it, and cannot tell whether it is whole.
    frame = whole.index(b"\xff\xc0")
    rare = bytearray(saved(smooth(320, 320), "JPEG", subsampling=0))
    rare[frame + 11 : frame + 18 : 3] = b"\x22\x12\x11"
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(rare)
    assert images.decode_image(bytes(rare), 64)[1:] == ("recovered", "JPEG RGB, of a rare kind, perhaps not whole")


def test_a_jpeg_of_which_nothing_is_left_is_unreadable() -> None:
    whole = saved(smooth(320, 240), "JPEG", quality=95)
    scan = whole.index(b"\xff\xda") + 14
    for cut in (whole[: scan - 40], whole[:scan], whole[: scan - 40] + END, whole[:scan] + END):
        assert images.decode_image(cut, 16).status == "unreadable"


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("WEBP", {}),
        ("JPEG2000", {}),
        ("AVIF", {}),
        ("HEIF", {}),
    ],
    ids=named,
)
def test_a_cut_file_of_any_format_is_told(kind: str, options: dict, share: float) -> None:
    whole = saved(smooth(300, 200), kind, **options)
    decoded = images.decode_image(whole[: int(len(whole) * share)], 64)
    assert decoded.status != "ok"
    assert decoded.detail.startswith(kind)
    assert "truncated" in decoded.detail or "Unexpected end of file" in decoded.detail
    assert decoded.pixels.any() == (decoded.status == "recovered")
    if share == 0.95 and kind in ("PNG", "GIF", "BMP", "PPM"):
        assert decoded.status == "recovered"


def test_a_cut_png_that_ends_as_if_whole() -> None:
    whole = saved(smooth(300, 200), "PNG")
    decoded = images.decode_image(whole[: len(whole) // 2] + whole[-12:], 64)
    assert decoded[1:] == ("recovered", "PNG RGB, truncated or damaged")


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<html>404</html>", "is not an image"),
        (b"\xff\xd8\xff", "JPEG whose structure is truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG whose structure is truncated"),
    ],
)
def test_what_is_no_image(data: bytes, detail: str) -> None:
    decoded = images.decode_image(data, 16)
    assert decoded.status == "unreadable"
    assert decoded.detail.startswith(detail)
    assert not decoded.pixels.any()


def test_a_file_that_claims_to_be_huge_is_not_unpacked() -> None:
    header = bytearray(saved(Image.new("RGB", (1, 1)), "PNG"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    assert images.decode_image(bytes(header), 16).status == "unreadable"


@pytest.mark.parametrize(
    "text",
    [
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIBAAAAAQgCAAAAkHdT3gAAAAxJREFUUE5HDQoaCgAAAA1JSERSAAAAAQAAAAEIAgEA"
        "AAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAAAAkHdT3gAAAAxJREFUeJxj+M/AAAADAQEAyf6S7wAAAABJRU5ErkJggnic"
        "Y/jPwAAAAwEAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvwwAAAElFTkSuQmCC",
        "iVBORw0KGgoAAAANSUhEUgAAADAAAAAgCAIAAADbtmxLAAAAAXNSR0IArs4c6QAAAAlwSFlzAAAADkFkAAkAgABEAN4Bsv5JRU5ESUJggg==",
    ],
)
def test_damaged_lengths_are_not_believed(text: str) -> None:
    """Found by fuzzing: from these 201 and 79 bytes, OpenCV took 3 GB and seconds to minutes."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from here, proc_pid_clear_refs(5)
    before = peak_megabytes()
    assert images.decode_image(base64.b64decode(text), 16).status == "unreadable"
    assert peak_megabytes() < before + 200


def peak_megabytes() -> float:
    """The most memory that this process had in use, proc_pid_status(5)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def test_folders_and_absent_files_are_verdicts(tmp_path: Path) -> None:
    assert images.read_image(str(tmp_path), 16)[1:] == ("unreadable", "is a folder")
    os.mkfifo(tmp_path / "fifo.jpg")
    assert images.read_image(str(tmp_path / "fifo.jpg"), 16)[1:] == (
        "unreadable",
        "could not be read: is not a regular file",
    )
    assert images.read_image(str(tmp_path / "no.jpg"), 16)[1:] == (
        "unreadable",
        "could not be read: No such file or directory",
    )


@pytest.mark.parametrize("kind", formats.PILLOW_FORMATS)
def test_the_first_bytes_tell_every_format_that_is_read(kind: str) -> None:
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
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "HEIF"):
        # pillow-heif turns what it is given as bytes, as the standard wants.
        decoded = images.decode_image(saved(stored, kind, quality=95, exif=exif.tobytes()), 40)
        assert decoded.status == ("ok" if kind in ("JPEG", "PNG") else "recovered")
        assert np.abs(decoded.pixels - reference(upright, 40)).mean() < 4


def test_the_pixels_are_pinned() -> None:
    """Shrinking averages areas, enlarging is bilinear; whoever changes this changes every trained model."""
    image = smooth(64, 64)
    data = saved(image, "PNG")
    pixels = np.asarray(image)
    areas = pixels.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(images.decode_image(data, 16).pixels - areas).max() <= 0.5
    assert (images.decode_image(data, 64).pixels == pixels).all()
    enlarged = cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_LINEAR)
    assert (images.decode_image(data, 96).pixels == enlarged).all()
    shrunk = cv2.resize(pixels, (40, 40), interpolation=cv2.INTER_AREA)
    assert (images.decode_image(data, 40).pixels == shrunk).all()
    tall = saved(smooth(20, 90), "PNG")
    shrunk = cv2.resize(np.asarray(smooth(20, 90)), (20, 30), interpolation=cv2.INTER_AREA)
    assert (images.decode_image(tall, 30).pixels == cv2.resize(shrunk, (30, 30))).all()


def test_real_photos_agree_with_pillow_and_cut_ones_are_told(photos: Path) -> None:
    import zipfile

    with zipfile.ZipFile(photos / "original-size.zip") as archive:
        for name in archive.namelist()[:40]:
            data = archive.read(name)
            photo = Image.open(io.BytesIO(data))
            size = min(192, *photo.size)
            decoded = images.decode_image(data, size)
            assert decoded.status == "ok"
            assert np.abs(decoded.pixels - reference(photo, size)).mean() < 0.6
            assert images.decode_image(data[: len(data) * 9 // 10] + END, size).status == "recovered"


def test_views_are_the_image_its_mirror_and_the_middle_of_it() -> None:
    batch = np.stack([np.asarray(smooth(50, 50))] * 2)
    assert (apply_view(batch, "identity") == batch).all()
    assert (apply_view(batch, "mirror") == batch[:, :, ::-1]).all()
    # The middle 80 % of 50 pixels are the 40 from 5 to 44; Pillow enlarges them likewise.
    middle = Image.fromarray(batch[0, 5:45, 5:45]).resize((50, 50), Image.Resampling.BILINEAR)
    inside = (slice(1, -1), slice(1, -1))  # at the rim Pillow has nothing to look at beyond its 40 pixels
    shown = apply_view(batch, "crop-80")[0].astype(float)
    assert np.abs(shown - np.asarray(middle))[inside].max() <= 2
    assert (apply_view(batch, "crop-80-mirror")[1] == apply_view(batch, "crop-80")[0][:, ::-1]).all()
