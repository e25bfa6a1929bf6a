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


def csv_text(rows: Iterable[Sequence[object]], line_end: str = "\r\n") -> str:
    """Rows as the text of a CSV file that a spreadsheet may open.

    Args:
        rows: texts and numbers; None is an empty cell.
        line_end: ends each line. Only with the default are cells quoted that contain any line break.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end).writerows([escape_cell(cell) for cell in row] for row in rows)
    return text.getvalue()
