"""Pictures of the page: which images its grids show, and each one as a thumbnail inside the page."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from catdog.data import images, thumbnails
from catdog.evaluation import metrics
from catdog.reporting.report import Section

_FIRST, _MORE = 25, 20
_SIDE = 160
# Of a thumbnail, in bytes: 300 of them are less than 4 MB in base64.
_MAX_BYTES = 9_000
_QUALITIES = (80, 60, 40, 20, 5)
# Files of large photos are read and decoded so many at a time.
_HELD = 32


@dataclass(frozen=True)
class Thumbnail:
    """A small picture.

    Attributes:
        data: a JPEG file in base64, or "" where there is no picture.
        width: in pixels.
        height: in pixels.
        why: why there is no picture, or "".
    """

    data: str
    width: int = _SIDE
    height: int = _SIDE
    why: str = ""


@dataclass(frozen=True)
class Scores:
    """Predictions of every image of a split, with labels or without.

    Attributes:
        split: its name.
        rows: of the catalog, N: key, id and uri.
        logits: float, N; NaN for an unreadable image.
        probabilities: float64, N, as written.
        recovered: number of damaged images that were read as far as they go.
        unreadable: id, key and detail of the images that could not be read.
    """

    split: str
    rows: pa.Table
    logits: np.ndarray
    probabilities: np.ndarray
    recovered: int
    unreadable: pa.Table

    @property
    def readable(self) -> np.ndarray:
        """Whether each image could be read: bool, N."""
        return ~np.isnan(self.logits)


@dataclass(frozen=True)
class Tile:
    """An image of a grid, and what the model says of it.

    Attributes:
        uri: of the image.
        key: of the image.
        says: the likelier class.
        share: probability of that class.
        truth: the true class; "" where it is unknown.
        loss: log loss of the prediction, in nats; None where the truth is unknown.
    """

    uri: str
    key: str
    says: str
    share: float
    truth: str = ""
    loss: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether the likelier class is the true one."""
        return self.says == self.truth


@dataclass(frozen=True)
class Grid:
    """A grid of images.

    Attributes:
        title: what they have in common.
        tiles: the images.
        nothing: what to say where there are none.
    """

    title: str
    tiles: list[Tile]
    nothing: str = ""


def judged_grids(section: Section, scores: Scores) -> list[Grid]:
    """Grids of a split with labels, of images that the model was not trained on."""
    labels, logits, judged = (section.images[name].to_numpy() for name in ("label", "logit", "judged"))
    shown = scores.readable[section.rows] & ~np.isnan(judged)
    right = (judged > 0.5) == (labels == 1)
    losses, sureness = metrics.losses(labels, judged), np.abs(logits)
    chosen = [
        ("Predictions, spread evenly over the split", _spread(shown), ""),
        ("Most confident mistakes", _lowest(-losses, shown & ~right), "It made no mistakes here."),
        ("Most confident hits", _lowest(-sureness, shown & right), "It was never right here."),
        ("Least sure", _lowest(sureness, shown), ""),
    ]
    return [Grid(title, judged_tiles(section, scores, rows), nothing) for title, rows, nothing in chosen]


def test_grids(scores: Scores, class_names: tuple[str, str]) -> list[Grid]:
    """Grids of the test split, for which no label is needed."""
    logits, shown = scores.logits, scores.readable
    chosen = [
        ("First predictions", np.flatnonzero(shown)[:_FIRST]),
        (f"Surest: {class_names[0]}", _lowest(logits, shown & (logits <= 0))),
        (f"Surest: {class_names[1]}", _lowest(-logits, shown & (logits > 0))),
        ("Least sure", _lowest(np.abs(logits), shown)),
    ]
    return [
        Grid(title, _tiles(scores, rows, scores.probabilities[rows], class_names), "None.") for title, rows in chosen
    ]


def judged_tiles(section: Section, scores: Scores, rows: np.ndarray) -> list[Tile]:
    """Images of a split with labels.

    Args:
        section: of the split.
        scores: of the split.
        rows: of the section's images, int, n.
    """
    labels, judged = section.images["label"].to_numpy(), section.images["judged"].to_numpy()
    tiles = _tiles(scores, section.rows[rows], judged[rows], section.class_names)
    losses = metrics.losses(labels[rows], judged[rows])
    return [
        dataclasses.replace(tile, truth=section.class_names[int(labels[row])], loss=float(loss))
        for tile, row, loss in zip(tiles, rows, losses, strict=True)
    ]


def _tiles(scores: Scores, rows: np.ndarray, probabilities: np.ndarray, class_names: tuple[str, str]) -> list[Tile]:
    tiles = []
    for row, probability in zip(rows, probabilities.tolist(), strict=True):
        entry = scores.rows.slice(int(row), 1).to_pylist()[0]
        likelier = int(probability > 0.5)
        share = probability if likelier else 1 - probability
        tiles.append(Tile(entry["uri"], entry["key"], class_names[likelier], share))
    return tiles


def _spread(among: np.ndarray) -> np.ndarray:
    """Rows spread evenly over a split, since a catalog lists one class after the other."""
    rows = np.flatnonzero(among)
    return rows[np.unique(np.linspace(0, len(rows) - 1, _FIRST).round().astype(int))] if len(rows) else rows


def _lowest(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Rows with the lowest values, the lowest first; of equal ones the earlier."""
    rows = np.flatnonzero(among)
    if len(rows) > _MORE:  # a million values need not be sorted for twenty
        bound = np.partition(values[rows], _MORE - 1)[_MORE - 1]
        rows = rows[values[rows] <= bound]
    return rows[np.argsort(values[rows], kind="stable")][:_MORE]


def read_thumbnails(uris: Iterable[str]) -> dict[str, Thumbnail]:
    """Reads images and shrinks them; what is not there any more, or no image, is told and never raised.

    Args:
        uris: of the images, all in one place.

    Returns:
        A thumbnail for each different URI, in their order.
    """
    asked = dict.fromkeys(uris)
    # Sorted, so that rows of a shard that lie together are read together.
    wanted = sorted(asked)
    found: dict[str, Thumbnail] = {}
    with ThreadPoolExecutor(2) as pool:
        for group in _groups(wanted):
            found |= zip(group, pool.map(_shrink, images.fetch_all(group)), strict=True)
    return {uri: found[uri] for uri in asked}


def _groups(uris: list[str]) -> Iterator[list[str]]:
    return (uris[start : start + _HELD] for start in range(0, len(uris), _HELD))


def _shrink(data: bytes | str) -> Thumbnail:
    if isinstance(data, str):
        return Thumbnail("", why=data)
    pixels = thumbnails.thumbnail(data, _SIDE)
    if pixels is None:
        return Thumbnail("", why="cannot be decoded any more")
    for quality in _QUALITIES:
        encoded = thumbnails.encode_jpeg(pixels, quality)
        if len(encoded) <= _MAX_BYTES:
            break
    return Thumbnail(base64.b64encode(encoded).decode(), pixels.shape[1], pixels.shape[0])


def number(found: dict[str, Thumbnail]) -> dict[str, tuple[str, Thumbnail]]:
    """Gives each thumbnail a name within the page, by which it is shown wherever it occurs."""
    return {uri: (f"picture-{at}", thumbnail) for at, (uri, thumbnail) in enumerate(found.items(), 1)}
