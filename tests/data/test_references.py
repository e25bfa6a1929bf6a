"""No pixel is wrong in silence: every kind of file shows what is in it, and what ImageMagick makes of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import image_kinds
import numpy as np
import pytest
from image_kinds import Kind
from PIL import Image

from catdog.data import images

# Most levels, of 255, in which pictures may differ in the mean. Lossy formats differ by up to 2; 4:1:1 by 3.6.
LIMIT = 4

# Where ImageMagick 6 does not show what is in the file, and why. What is in it was encoded by hand.
ODD = {
    r"jpeg lossless.jpg": "does not read it",
    r"(png|webp) .*(turned|EXIF (big-endian|as long)).*": "does not read their EXIF",
    r"(heic|avif) alpha.*": "does not read their transparency",
    r"png linear.png": "applies gamma; here it is ignored, like colour profiles",
    r"tiff .*white is zero [24].*": "takes it for black is zero",
    r"tiff .*RGB and another.*": "takes a channel of no meaning for transparency (TIFF 6.0, section 18)",
    r"tiff .*signed.*": "takes them for unsigned",
    r"tiff .*32.tif": "white is the greatest number that fits; here, one of the usual ones",
    r"tiff .*LAB.*": "differs by 5 levels, as its white point does",
}


@pytest.fixture(scope="module")
def kinds() -> list[Kind]:
    return list(image_kinds.every_kind())


def difference(pixels: np.ndarray, expected: np.ndarray) -> float:
    """Mean difference of two pictures in levels; that of black and white if their sizes differ."""
    expected = np.repeat(expected[..., None], 3, axis=2) if expected.ndim == 2 else expected
    return float(np.abs(pixels - expected.astype(float)).mean()) if pixels.shape == expected.shape else 255.0


def test_every_kind_shows_what_is_in_it(kinds: list[Kind]) -> None:
    assert len({kind.name for kind in kinds}) == len(kinds) > 300
    wrong = {}
    for kind in kinds:
        decoded = images.decode_whole(kind.data)
        found = decoded.detail if decoded.status == "unreadable" else difference(decoded.pixels, kind.shows)
        if isinstance(found, str) or found > LIMIT:
            wrong[kind.name] = found
    assert not wrong


def test_every_kind_is_as_imagemagick_shows_it(kinds: list[Kind], tmp_path: Path) -> None:
    program = shutil.which("magick") or shutil.which("convert")
    if program is None:
        pytest.skip("ImageMagick is absent")
    chosen = [kind for kind in kinds if not any(re.fullmatch(pattern, kind.name) for pattern in ODD)]
    assert len(chosen) > 350
    words = []
    for number, kind in enumerate(chosen):
        place = tmp_path / f"{number}{Path(kind.name).suffix}"
        place.write_bytes(kind.data)
        words += ["(", f"{place}[0]", "-auto-orient", "-background", "white", "-alpha", "remove", "-colorspace", "sRGB"]
        words += ["-depth", "8", "-type", "TrueColor", "-write", f"ppm:{tmp_path / str(number)}", "+delete", ")"]
    done = subprocess.run([program, *words, "xc:white", "null:"], capture_output=True, text=True, check=False)
    wrong = {}
    for number, kind in enumerate(chosen):
        assert (tmp_path / str(number)).exists(), (kind.name, done.stderr)
        with Image.open(tmp_path / str(number)) as shown:
            found = difference(images.decode_whole(kind.data).pixels, np.asarray(shown))
        if found > LIMIT:
            wrong[kind.name] = found
    assert not wrong
