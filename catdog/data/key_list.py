"""Parsing of key lists, for `--leave-out`. Keys are file paths and may contain commas, quotes and line breaks."""

from __future__ import annotations

import contextlib
import csv
import io
import re

_LINE = re.compile(r"([^\n]*?)\r?(?:\n|\Z)")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"\r?(?:\n|\Z)')


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
            return _column(text, header.index("key"))
    return _lines(text, known)


def _column(text: str, column: int) -> set[str]:
    rows, keys = csv.reader(io.StringIO(text, newline=""), strict=True), set()
    try:
        next(rows)
        for row in rows:
            if row and len(row) <= column:
                raise ValueError(f"line {rows.line_num} has no column key: {row}")
            keys |= {row[column]} if row else set()
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from error
    return keys


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
