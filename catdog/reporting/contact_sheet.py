"""Contact sheets: photos in rows on one page, each with a few lines below it, as a PNG."""

from __future__ import annotations

import importlib.util
import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_GAP, _MARGIN = 12, 16
_PAPER, _MOUNT, _INK, _FAINT, _BAR = "#ffffff", "#eef0f2", "#1b1f24", "#5b6570", "#2f6fb0"
_BAR_HEIGHT = 5
_LINE_HEIGHT = 1.45  # times the font's size


@dataclass(frozen=True)
class Tile:
    """One photo of a contact sheet.

    Attributes:
        pixels: uint8, H×W×3, RGB; None for a photo that is unreadable.
        captions: lines below it, the first one darker; each is cut to the tile's width in its middle.
        share: from 0 to 1: how far a bar below the photo is filled; None for no bar.
    """

    pixels: np.ndarray | None
    captions: list[str]
    share: float | None = None


def draw_sheet(rows: list[list[Tile]], side: int = 180) -> bytes:
    """Draws a contact sheet.

    Args:
        rows: the tiles, from top to bottom and from left to right.
        side: the width of a tile, and the height of its photo, in pixels; larger photos are shrunk.

    Returns:
        A PNG file.
    """
    columns = max((len(row) for row in rows), default=1)
    lines = max((len(tile.captions) for row in rows for tile in row), default=0)
    size = max(10, side // 14)
    bold, plain = _font("DejaVuSans-Bold.ttf", size), _font("DejaVuSans.ttf", size - 1)
    step = int(size * _LINE_HEIGHT)
    height = side + _BAR_HEIGHT + 4 + step * lines
    sheet = Image.new(
        "RGB",
        (2 * _MARGIN + columns * (side + _GAP) - _GAP, 2 * _MARGIN + max(1, len(rows)) * (height + _GAP) - _GAP),
        _PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    for at, row in enumerate(rows):
        for column, tile in enumerate(row):
            x, y = _MARGIN + column * (side + _GAP), _MARGIN + at * (height + _GAP)
            pen.rectangle((x, y, x + side - 1, y + side - 1), fill=_MOUNT)
            if tile.pixels is None:
                _draw_cross(pen, x, y, side)
            else:
                photo = Image.fromarray(tile.pixels)
                photo.thumbnail((side, side), Image.Resampling.LANCZOS)
                sheet.paste(photo, (x + (side - photo.width) // 2, y + (side - photo.height) // 2))
            if tile.share is not None:
                filled = round(side * min(1.0, max(0.0, tile.share)))
                pen.rectangle((x, y + side, x + side - 1, y + side + _BAR_HEIGHT - 1), fill=_MOUNT)
                if filled:
                    pen.rectangle((x, y + side, x + filled - 1, y + side + _BAR_HEIGHT - 1), fill=_BAR)
            for number, caption in enumerate(tile.captions):
                font = plain if number else bold
                text = _fitted(caption, font, side)
                pen.text((x, y + side + _BAR_HEIGHT + 4 + step * number), text, _FAINT if number else _INK, font)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def in_rows(tiles: list[Tile], columns: int) -> list[list[Tile]]:
    """Cuts a list of tiles into rows of so many."""
    return [tiles[start : start + columns] for start in range(0, len(tiles), columns)]


def _draw_cross(pen: ImageDraw.ImageDraw, x: int, y: int, side: int) -> None:
    inset = side // 3
    for ends in ((inset, inset, side - inset, side - inset), (inset, side - inset, side - inset, inset)):
        pen.line((x + ends[0], y + ends[1], x + ends[2], y + ends[3]), fill="#b9c0c7", width=3)


def _font(name: str, size: int) -> Font:
    """DejaVu Sans of matplotlib: more alphabets than Pillow's own font, which is what remains without it."""
    # Not imported, because that would complain about a home that cannot be written to.
    package = importlib.util.find_spec("matplotlib")
    try:
        return ImageFont.truetype(Path(str(package and package.origin)).parent / "mpl-data/fonts/ttf" / name, size)
    except OSError:
        return ImageFont.load_default(size)


def _fitted(text: str, font: Font, width: int) -> str:
    """A caption as one line of visible characters, its middle left out where it is too wide: ends tell files apart."""
    # What is not printed at all would draw a box for each character, and a line break another line.
    plain = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(each)[0] == "C" else each for each in text)
    plain = plain[:100] + plain[-100:] if len(plain) > 200 else plain
    keep = len(plain)
    shown = plain
    while keep > 1 and font.getlength(shown) > width:
        keep -= 1
        start = keep // 3
        shown = f"{plain[:start]}…{plain[len(plain) - (keep - start) :]}"
    return shown
