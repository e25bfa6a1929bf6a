"""Cells of CSV files that a spreadsheet would run as formulas: escaped when written, and read back as they were.

A file's name may begin with "=", and a spreadsheet takes such a cell of any CSV for a formula, which may read other
cells, ask a server, or start a program. It shows a cell that begins with an apostrophe as text (OWASP, CSV injection).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

# Apostrophes before it are doubled in effect, so that every text has one escaped form, and that form one meaning.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def escape_cell(value: object) -> object:
    """A value as it is written to a CSV: an apostrophe before a text that would be a formula; numbers as they are."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def unescape_cell(text: str) -> str:
    """The text that `escape_cell` wrote; any other text as it is."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def csv_text(rows: Iterable[Sequence[object]], escape: bool = True) -> str:
    """Rows as the text of a CSV file, its lines ended by LF; cells may hold line breaks of any kind.

    Args:
        rows: texts and numbers; None is an empty cell.
        escape: for people, who may open it in a spreadsheet; not for programs, which want the texts as they are.
    """
    text = _LineFeeds()
    csv.writer(text).writerows([escape_cell(cell) for cell in row] if escape else row for row in rows)
    return text.getvalue()


class _LineFeeds(io.StringIO):
    """What a writer of CSV writes to with its default line ends, CRLF; they become LF.

    Told to end lines with LF, a writer would leave a CR in a cell without quotes (CPython before 3.13), and readers
    would take it for the end of the line.
    """

    def write(self, row: str) -> int:
        return super().write(row.removesuffix("\r\n") + "\n")
