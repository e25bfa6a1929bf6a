"""A CSV of labels as people have it: any delimiter and encoding, with what pandas and spreadsheets add."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import PurePosixPath

from catdog.data import formats
from catdog.data.sources import SPLIT_FOLDERS, split_of
from catdog.errors import CatdogError

# Names of columns, without case and punctuation. Of several id columns, the one that names most files counts.
_ID_NAMES = frozenset(
    (
        *("path", "filepath", "imagepath", "file", "files", "filename", "fname", "image", "images", "imagefile"),
        *("imagename", "imagefilename", "img", "imgname", "imgid", "photo", "picture", "name", "key", "imageid"),
        *("id", "ids", "uuid", "idcode"),
    )
)
_LABEL_NAMES = frozenset(
    ("label", "labels", "class", "classes", "classname", "classlabel", "target", "category", "species", "animal", "y")
)
_MISSING = frozenset(("", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "?"))
_DELIMITERS = ",;\t|"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose rows name images.

    Attributes:
        name: path of the file, for messages.
        header: names of its columns, as they are written.
        rows: line number and cells of each row.
        ids: columns that may name files.
        labels: columns that may hold labels.
        split: column of splits, or None.
        own_split: split that the table's own name says it is of, or None.
        known_label: whether a label column has a usual name.
    """

    name: str
    header: list[str]
    rows: list[tuple[int, list[str]]]
    ids: list[int]
    labels: list[int]
    split: int | None
    own_split: str | None
    known_label: bool


def read_table(name: str, content: bytes) -> Table | str:
    """Reads a CSV of labels.

    Args:
        name: its path, for messages.
        content: its bytes.

    Returns:
        The table, or in words why it is not one of labels, to follow "NAME ".

    Raises:
        CatdogError: it is one, but a line lacks cells.
    """
    try:
        text = _decode(content).lstrip("\r\n")
        if "\0" in text:
            return "is not a CSV (it holds bytes of 0)"
        lines = text.splitlines()
        separator = re.fullmatch(r"\"?sep=(.)\"?", lines[0].strip()) if lines else None
        first = 1 if separator else 0
        if len(lines) <= first:
            return "is empty"
        delimiter = separator[1] if separator else max(_DELIMITERS, key=lines[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        # Also a line break in quotes, so that no message has more than one line.
        numbered = [(reader.line_num, [" ".join(cell.split()) for cell in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        return f"is not a CSV ({error})"
    numbered = [(number, row) for number, row in numbered[first:] if any(row)]
    if not numbered:
        return "is empty"
    header, rows = numbered[0][1], numbered[1:]
    if len(header) == 2 and PurePosixPath(header[0]).suffix.lower() in formats.SUFFIXES:
        header, rows = ["file", "label"], numbered  # a table without a header
    plain = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in header]
    # Without a name there is an index that pandas wrote, or what follows a delimiter at the end of each line.
    named = [at for at, cell in enumerate(plain) if cell and not re.fullmatch(r"unnamed\d+", cell)]
    ids = [at for at in named if plain[at] in _ID_NAMES]
    if not ids and header[0] == "" and rows and not rows[0][1][0].replace(".", "").isdecimal():
        ids = [0]  # the index of pandas, if it holds names; a number may be a mere count
    labels = [at for at in named if plain[at] in _LABEL_NAMES]
    split = next((at for at in named if plain[at] == "split"), None)
    rest = [at for at in named if at not in ids and at not in labels and at != split]
    known_label = bool(labels)
    if not labels and len(rest) == 1:
        labels = rest
    if not ids or not labels:
        lacking = "column of file names or ids" if not ids else "column of labels"
        return f"has no {lacking} (it has {', '.join(header)[:200]}); expected a header such as id,label or file,label"
    if not rows:
        return "has no rows"
    width = max(*ids, *labels, split or 0) + 1
    short = next((number for number, row in rows if len(row) < width), None)
    if short is not None:
        raise CatdogError(f"{name} line {short}: expected {len(header)} cells, as its header has; correct the line")
    return Table(name, header, rows, ids, labels, split, own_split(name), known_label)


def _decode(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")  # "Unicode text" of a spreadsheet
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def own_split(name: str) -> str | None:
    """The split that a table is of, by its folder or its name: `train_labels.csv`, `val.csv`, `trainLabels.csv`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", PurePosixPath(name).stem).lower()
    found = {SPLIT_FOLDERS[word] for word in re.split(r"[^a-z0-9]+", words) if word in SPLIT_FOLDERS}
    return split_of(name) or (found.pop() if len(found) == 1 else None)


def unlike_labels(table: Table) -> str:
    """Why a table that nobody named as one of labels is probably not one, to follow "NAME "; else ""."""
    texts = {clean_label(row[table.labels[0]]) for _, row in table.rows}
    if any(re.fullmatch(r"\d*[.,]?\d+(e-\d+)?", text) and not text.isdecimal() for text in texts):
        return "holds probabilities or other fractions"
    if not table.known_label and len({text.casefold() for text in texts if text}) != 2:
        return f"has no column of labels ({table.header[table.labels[0]]} has not two values)"
    return ""


def clean_label(text: str) -> str:
    """A label without what pandas and spreadsheets add; empty if there is none."""
    text = " ".join(text.split())
    if text.casefold() in _MISSING:
        return ""
    whole = re.fullmatch(r"(-?\d+)[.,]0+", text)
    return whole[1] if whole else text
