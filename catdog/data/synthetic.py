"""Synthetic data set: drawn cats and dogs, as JPEG files in Kaggle's layout, without a download.

Both classes share colours, sizes, poses and backgrounds. Only shapes distinguish them (pointed or hanging ears, a short
face with whiskers or a long muzzle, the tail), so a model has to learn shapes.
"""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from catdog import storage
from catdog.data import catalog, datasets, layouts, splits
from catdog.data.catalog import Catalog
from catdog.data.layouts import Row
from catdog.errors import CatdogError, UsageError

_FUR = [
    (205, 133, 63),
    (120, 72, 40),
    (150, 150, 150),
    (60, 55, 55),
    (225, 205, 175),
    (235, 235, 230),
    (180, 100, 50),
]
_SCENES = [(120, 160, 90), (200, 180, 150), (150, 190, 220), (90, 90, 110), (220, 215, 205), (170, 120, 110)]


def synthesize(dest: str, train: int, test: int, seed: int = 0, valid_fraction: float = 0.1) -> Catalog:
    """Draws a data set and prepares it in place: `train/cat.N.jpg`, `train/dog.N.jpg`, `test/N.jpg`, the catalog.

    The same arguments draw the same bytes; a folder that already has them is not changed.

    Args:
        dest: URI of the folder to create.
        train: number of labelled images, half of them cats, including those for validation.
        test: number of unlabelled images.
        seed: seed of the drawings and of the split.
        valid_fraction: share of the labelled images for validation.

    Returns:
        The catalog, already written.

    Raises:
        UsageError: a number is out of range.
        CatdogError: `dest` has other content.
    """
    if train < 2 or test < 0 or seed < 0:
        raise UsageError(
            f"received --train {train} --test {test} --seed {seed}, expected at least 2, at least 0, at least 0"
        )
    dest = storage.absolute(dest)
    options: dict[str, object] = {
        "split_seed": seed,
        "valid_fraction": valid_fraction,
        "content_sha256": f"{catalog.DRAWN}train {train}, test {test}, seed {seed}",
    }
    if catalog.has_catalog(dest):
        there = catalog.read_catalog(dest)
        if there.options == options:
            return there
        raise CatdogError(f"DEST {dest} already holds another data set; give a new folder")
    with datasets.creating_dataset(dest, ["train", "test", catalog.SAMPLE_NAME], "`catdog data synthesize`"):
        rows: list[Row] = []
        for label, name in enumerate(layouts.DEFAULT_CLASS_NAMES):
            for number in range(train // 2 + (train % 2 if label == 0 else 0)):
                rows.append(_write(dest, Row(f"train/{name}.{number}.jpg", "train", label), (seed, label, number)))
        if train >= 2 * len(layouts.DEFAULT_CLASS_NAMES):  # fewer images cannot be in both splits
            rows = splits.assign_splits(rows, False, valid_fraction, seed, "keep", {}, lambda _remark: None)
        for number in range(1, test + 1):
            rows.append(_write(dest, Row(f"test/{number}.jpg", "test", None), (seed, 2, number)))
        sample = "id,label\n" + "".join(f"{number},0.5\n" for number in range(1, test + 1))
        storage.write_text(storage.join(dest, catalog.SAMPLE_NAME), sample)
        rows.sort(key=lambda row: catalog.SPLITS.index(row.split))
        result = datasets.build_catalog(dest, rows, layouts.DEFAULT_CLASS_NAMES, options)
        result.write()
    return result


def _write(dest: str, row: Row, seed: tuple[int, int, int]) -> Row:
    """Draws the image of a row and writes it; returns the row with its digest."""
    # The class of a test image is random and not recorded.
    label = int(np.random.default_rng((seed[0], 3, seed[2])).integers(2)) if row.label is None else row.label
    picture = draw_animal(label, seed)
    storage.write_bytes(storage.join(dest, row.key), picture)
    return dataclasses.replace(row, digest=catalog.digest_of(picture))


def draw_animal(label: int, seed: tuple[int, ...]) -> bytes:
    """Draws one animal as a JPEG file.

    Args:
        label: 0 for a cat, 1 for a dog.
        seed: determines everything else about the picture.

    Returns:
        The bytes of the file; each side is 120 to 260 pixels long.
    """
    random = np.random.default_rng(seed)
    width, height = (int(side) for side in random.integers(120, 261, 2))
    image = _scene(random, width, height)
    animal = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    pen = ImageDraw.Draw(animal)
    fur = tuple(
        int(c) for c in np.clip(np.array(_FUR[random.integers(len(_FUR))]) + random.integers(-25, 26, 3), 0, 255)
    )
    shade = tuple(int(c * random.uniform(0.6, 0.85)) for c in fur)
    _body(pen, random, label, fur, shade)
    (_cat_head if label == 0 else _dog_head)(pen, random, fur, shade)
    if random.random() < 0.5:
        animal = animal.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    animal = animal.rotate(random.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True)
    side = int(min(width, height) * random.uniform(0.8, 1.25))
    animal = animal.resize((side, side), Image.Resampling.BILINEAR)
    place = (
        int(random.uniform(-0.1, 1.1) * (width - side)) if width > side else (width - side) // 2,
        int(random.uniform(-0.1, 1.1) * (height - side)) if height > side else (height - side) // 2,
    )
    image.paste(animal, place, animal)
    if random.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.4, 1.4)))
    noise = random.normal(0, random.uniform(2, 10), (height, width, 3))
    light = random.uniform(0.7, 1.2)
    pixels = np.clip(np.asarray(image, np.float32) * light + noise, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=int(random.integers(60, 96)))
    return out.getvalue()


def _scene(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """A background: a gradient between two colours with a few random shapes."""
    top, bottom = (np.array(_SCENES[random.integers(len(_SCENES))], float) for _ in range(2))
    ramp = np.linspace(0, 1, height)[:, None, None]
    pixels = (top * (1 - ramp) + bottom * ramp) + random.normal(0, 6, (height, width, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(random.integers(1, 6))):
        x, y = random.uniform(0, width), random.uniform(0, height)
        w, h = random.uniform(8, width / 4), random.uniform(8, height / 4)
        colour = tuple(int(c) for c in random.integers(40, 230, 3))
        kind = random.integers(3)
        if kind == 0:
            pen.rectangle([x, y, x + w, y + h], fill=colour)
        elif kind == 1:
            pen.ellipse([x, y, x + w, y + h], fill=colour)
        else:
            pen.polygon([(x, y + h), (x + w / 2, y), (x + w, y + h)], fill=colour)
    return image


def _body(pen: ImageDraw.ImageDraw, random: np.random.Generator, label: int, fur: tuple, shade: tuple) -> None:
    x, y = 128 + random.uniform(-14, 14), 190 + random.uniform(-6, 6)
    w, h = random.uniform(42, 60), random.uniform(44, 58)
    start, sweep = (x + w * 0.7, y + 20), random.uniform(0.7, 1.3)
    if label == 0:  # a long thin tail that curls up
        tail = [
            (start[0] + 34 * sweep * math.sin(t), start[1] - 90 * t / 3 + 12 * math.cos(2 * t))
            for t in np.linspace(0, 3, 12)
        ]
        pen.line(tail, fill=fur, width=9, joint="curve")
    else:  # a short thick tail that points away
        end = (start[0] + 34 * sweep, start[1] - 34 * sweep)
        pen.line([start, end], fill=fur, width=18)
    pen.ellipse([x - w, y - h, x + w, y + h], fill=fur)
    for foot in (-0.55, 0.55):
        pen.ellipse([x + foot * w - 14, y + h - 16, x + foot * w + 14, y + h + 10], fill=shade)


def _eyes(pen: ImageDraw.ImageDraw, random: np.random.Generator, x: float, y: float, apart: float) -> None:
    size = random.uniform(5, 8)
    for side in (-1, 1):
        pen.ellipse([x + side * apart - size, y - size, x + side * apart + size, y + size], fill=(25, 25, 25))
        pen.ellipse([x + side * apart - 2, y - 4, x + side * apart + 2, y], fill=(240, 240, 240))


def _cat_head(pen: ImageDraw.ImageDraw, random: np.random.Generator, fur: tuple, shade: tuple) -> None:
    x, y = 128 + random.uniform(-16, 16), 100 + random.uniform(-8, 8)
    r = random.uniform(44, 54)
    for side in (-1, 1):
        tip = (x + side * r * random.uniform(0.75, 1.0), y - r * random.uniform(1.35, 1.7))
        pen.polygon([(x + side * r * 0.95, y - r * 0.3), tip, (x + side * r * 0.15, y - r * 0.85)], fill=fur)
        inner = (tip[0] - side * 5, tip[1] + 12)
        pen.polygon([(x + side * r * 0.8, y - r * 0.5), inner, (x + side * r * 0.35, y - r * 0.8)], fill=shade)
    pen.ellipse([x - r, y - r * 0.9, x + r, y + r * 0.9], fill=fur)
    _eyes(pen, random, x, y - 8, r * 0.42)
    pen.polygon([(x - 7, y + 12), (x + 7, y + 12), (x, y + 20)], fill=(200, 110, 120))
    for side in (-1, 1):
        for lean in (-8, 0, 8):
            pen.line([(x + side * 12, y + 20), (x + side * r * 1.2, y + 18 + lean)], fill=(245, 245, 245), width=2)


def _dog_head(pen: ImageDraw.ImageDraw, random: np.random.Generator, fur: tuple, shade: tuple) -> None:
    x, y = 128 + random.uniform(-16, 16), 92 + random.uniform(-8, 8)
    r = random.uniform(40, 50)
    pen.ellipse([x - r, y - r * 0.95, x + r, y + r * 0.95], fill=fur)
    length = random.uniform(1.3, 1.7)
    for side in (-1, 1):
        left, right = sorted((x + side * r * 0.7, x + side * r * 1.3))
        pen.ellipse([left, y - r * 0.7, right, y + r * (length - 0.6)], fill=shade)
    muzzle = random.uniform(0.5, 0.62)
    pen.ellipse(
        [x - r * muzzle, y + r * 0.05, x + r * muzzle, y + r * 1.45],
        fill=tuple(min(255, c + 22) for c in fur),
    )
    _eyes(pen, random, x, y - 12, r * 0.38)
    pen.ellipse([x - 12, y + r * 0.25, x + 12, y + r * 0.25 + 18], fill=(20, 20, 20))
    if random.random() < 0.6:
        pen.ellipse([x - 8, y + r * 1.15, x + 8, y + r * 1.15 + 24], fill=(215, 90, 105))
