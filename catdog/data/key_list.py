"""Lists of keys, for `--leave-out`: read, and written by a review. Keys may contain commas, quotes and line breaks."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Mapping
from typing import NamedTuple

from catdog import spreadsheets

KEEP, FLIP, LEAVE_OUT = "keep", "flip", "leave out"
ACTIONS = (KEEP, FLIP, LEAVE_OUT)
COLUMNS = ("key", "action")

_LINE = re.compile(r"([^\n]*?)\r?(?:\n|\Z)")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"\r?(?:\n|\Z)')


class Corrections(NamedTuple):
    """What a list changes about the training images.

    Attributes:
        left_out: keys of images that are not trained on.
        flipped: keys of images that are trained on with the other label.
    """

    left_out: set[str]
    flipped: set[str]


def parse_corrections(text: str, known: set[str]) -> Corrections:
    """Parses a list of keys to leave out, or a review: a CSV with the columns `key` and `action`.

    Args:
        text: as for `parse_keys`; without a column `action` all keys are left out.
        known: as for `parse_keys`.

    Raises:
        ValueError: a row is incomplete, an action is none of `ACTIONS`, or a key has two.
    """
    actions = parse_actions(text)
    if actions is None:
        return Corrections(parse_keys(text, known), set())
    return Corrections(*({key for key, given in actions.items() if given == action} for action in (LEAVE_OUT, FLIP)))


def parse_actions(text: str) -> dict[str, str] | None:
    """Parses a review.

    Args:
        text: a CSV with the columns `key` and `action`.

    Returns:
        The action for each key; None if it is not such a CSV.

    Raises:
        ValueError: as `parse_corrections`.
    """
    with contextlib.suppress(csv.Error):
        header = next(csv.reader(io.StringIO(text, newline=""), strict=True), [])
        if set(header) >= set(COLUMNS):
            found: dict[str, str] = {}
            for cell, action in zip(*(_column(text, header, name) for name in COLUMNS), strict=True):
                key = spreadsheets.unescape_cell(cell)
                if action not in ACTIONS:
                    raise ValueError(f"{key} has the action {action!r}, expected {', '.join(ACTIONS)}")
                if found.setdefault(key, action) != action:
                    raise ValueError(f"{key} has two actions, {found[key]} and {action}")
            return found
    return None


def format_actions(actions: Mapping[str, str]) -> str:
    """Writes a review as CSV.

    Args:
        actions: by key, each of `ACTIONS`.
    """
    return spreadsheets.csv_text([COLUMNS, *actions.items()])


def parse_keys(text: str, known: set[str]) -> set[str]:
    """Parses a list of keys.

    Args:
        text: a CSV with a column `key`, or one key per line, with or without CSV quoting.
        known: the keys of the data set, to distinguish a quoted key from one that begins and ends with a quote.

    Raises:
        ValueError: a row of the CSV is incomplete.
    """
    with contextlib.suppress(csv.Error):  # not a CSV
        header = next(csv.reader(io.StringIO(text, newline=""), strict=True), [])
        if "key" in header:
            cells = _column(text, header, "key")
            read = {cell: spreadsheets.unescape_cell(cell) for cell in cells}
            # A list that catdog did not write may have the key as it is.
            return {cell if cell in known and key not in known else key for cell, key in read.items()}
    return _lines(text, known)


def _column(text: str, header: list[str], name: str) -> list[str]:
    column = header.index(name)
    rows, values = csv.reader(io.StringIO(text, newline=""), strict=True), []
    try:
        next(rows)
        for row in rows:
            if row and len(row) <= column:
                raise ValueError(f"line {rows.line_num} has no column {name}: {row}")
            values += [row[column]] if row else []
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from error
    return values


def _lines(text: str, known: set[str]) -> set[str]:
    keys, at = set(), 0
    while at < len(text):
        line, quoted = _LINE.match(text, at), _QUOTED.match(text, at)
        assert line is not None  # it matches any text
        key, end = line[1], line.end()
        if quoted is not None:
            inner = quoted[1].replace('""', '"')
            if inner in known or ("\n" not in inner and key not in known):
                key, end = inner, quoted.end()
        keys |= {key} if key else set()
        at = end
    return keys
