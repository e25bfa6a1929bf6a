"""Contact sheets: what is drawn lies within its tile, whatever it is called."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from catdog.reporting.contact_sheet import Tile, draw_sheet, in_rows

SIDE, GAP, MARGIN = 140, 12, 16
BLUE = np.full((50, 100, 3), (0, 0, 255), np.uint8)


def drawn(rows: list[list[Tile]]) -> np.ndarray:
    with Image.open(io.BytesIO(draw_sheet(rows, SIDE))) as sheet:
        assert sheet.format == "PNG"
        return np.asarray(sheet.convert("RGB"))


@pytest.mark.parametrize(
    "name",
    [
        "W" * 500 + ".jpg",
        "猫" * 100,
        "\U0001f408" * 60,
        "a\nb\tc\r\0\x1b[31m",
        "\u202eevil" * 30,
        "é" * 90,
        "",
        "\ud800x",
    ],
)
def test_captions_stay_within_their_tiles(name: str) -> None:
    sheet = drawn([[Tile(BLUE, [name, name]), Tile(None, [name])]])
    assert sheet.shape[1] == 2 * MARGIN + 2 * SIDE + GAP
    between = sheet[:, MARGIN + SIDE : MARGIN + SIDE + GAP]
    edges = np.concatenate([sheet[:, :MARGIN].ravel(), sheet[:, -MARGIN:].ravel(), sheet[-MARGIN:].ravel()])
    assert (between == 255).all()
    assert (edges == 255).all()
    assert (sheet[MARGIN + SIDE :, MARGIN:] < 128).any() == bool(name)  # dark text


def test_photos_are_whole_in_their_own_proportions_and_not_enlarged() -> None:
    sheet = drawn([[Tile(BLUE, [])], [Tile(np.full((600, 300, 3), (0, 255, 0), np.uint8), [])]])
    assert (sheet == (0, 0, 255)).all(axis=2).sum() == 50 * 100
    assert (sheet == (0, 255, 0)).all(axis=2).sum() == SIDE * SIDE // 2


def test_the_bar_shows_the_share() -> None:
    lengths = []
    for share in (0.0, 0.5, 1.0, 7.0):
        plain, bar = (drawn([[Tile(BLUE, [], each)]]) for each in (0.0, share))
        lengths.append((plain != bar).any(axis=2).any(axis=0).sum())
    assert lengths == [0, SIDE // 2, SIDE, SIDE]


def test_tiles_in_rows_and_none_at_all() -> None:
    tiles = [Tile(BLUE, [str(number)]) for number in range(7)]
    assert [len(row) for row in in_rows(tiles, 3)] == [3, 3, 1]
    assert (drawn([]) == 255).all()
