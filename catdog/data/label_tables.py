"""Labels from a table: a CSV beside the images, or the rows of Parquet files.

What can be read is read: other delimiters and encodings, an index column, ids without a suffix or without their leading
zeros. What could mean two things is an error.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from catdog.data import csv_tables, formats, layouts
from catdog.data.csv_tables import Table
from catdog.data.layouts import Labels
from catdog.data.sources import SPLIT_FOLDERS, Given, split_of
from catdog.data.splits import Remark
from catdog.errors import CatdogError, UsageError

# What a spreadsheet makes of a long number, whose digits are lost with it.
_SCIENTIFIC = re.compile(r"\d[.,]\d+e\+\d+", re.IGNORECASE)


def choose_labels(
    tables: Mapping[str, bytes], paths: list[str], source: str, named: tuple[str, bytes] | None = None
) -> tuple[Labels | None, list[Remark]]:
    """Labels of a source's images, where a table has them.

    Args:
        tables: content of each CSV in the source, by path.
        paths: paths of the images.
        source: URI of the source, for messages.
        named: name and content of the table that the user named; then no other counts.

    Returns:
        The labels, or None without a table of labels; and remarks on what was taken, and what does not fit.

    Raises:
        CatdogError: a table contradicts itself or another one, or could mean two things.
    """
    files = _FileIndex(paths)
    if named is not None:
        name, content = named
        table = csv_tables.read_table(name, content)
        if isinstance(table, str):
            raise CatdogError(f"--labels received {name}, which {table}")
        labels, remarks = _labels_of(table, files)
        if not labels.rows:
            raise CatdogError(
                f"--labels received {name}, but none of its {len(table.rows)} rows names an image of {source}: its "
                f"first is {table.rows[0][1][table.ids[0]]!r}, an image is {min(paths, default='none')}"
            )
        return labels, remarks
    found: list[tuple[Labels, list[Remark]]] = []
    tables_read = {name: csv_tables.read_table(name, content) for name, content in tables.items()}
    unfit = [Remark(f"{name} {why}: not read for labels") for name, why in tables_read.items() if isinstance(why, str)]
    for name, table in tables_read.items():
        if isinstance(table, str):
            continue
        if why := csv_tables.unlike_labels(table):
            unfit.append(Remark(f"{name} {why}: not read for labels"))
            continue
        labels, remarks = _labels_of(table, files)
        if labels.rows:
            found.append((labels, remarks))
        else:
            unfit.append(Remark(f"{name} names none of the images: not read for labels"))
    if not found:
        return None, unfit
    labels, remarks = _combine(found, source)
    return labels, [*remarks, *unfit]


def labels_of_rows(given: Mapping[str, Given], origin: str) -> Labels:
    """Labels of images whose own files hold them.

    Args:
        given: by path of the image.
        origin: what holds them, for messages.

    Raises:
        CatdogError: they are not of two classes.
    """
    texts = {path: csv_tables.clean_label(each.label or "") for path, each in given.items()}
    names, numbers = _two_classes(texts.values(), origin)
    rows = {path: (numbers.get(texts[path].casefold()), each.split) for path, each in given.items()}
    return Labels(rows, names, origin)


# --- what a table says of each image -----------------------------------------------------------------------------


class _FileIndex:
    """Images by their names, as a table may write them."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_number: dict[int, list[str]] = defaultdict(list)
        for path in paths:
            name = PurePosixPath(path).name.lower()
            stem = name if PurePosixPath(name).suffix not in formats.SUFFIXES else PurePosixPath(name).stem
            self._by_name[name].append(path)
            self._by_stem[stem].append(path)
            if stem.isascii() and stem.isdecimal():
                self._by_number[int(stem)].append(path)

    def find(self, text: str, split: str | None) -> list[str]:
        """Paths of the images that a cell may name: one, none, or several if it is ambiguous.

        Args:
            text: a path, a name with or without suffix, or a number.
            split: split that the image must be in, unless its path says nothing.
        """
        plain = text.replace("\\", "/").removeprefix("./")
        name = PurePosixPath(plain).name
        number = re.fullmatch(r"(\d{1,18})(?:[.,]0+)?", name)
        found = self._by_name.get(name.lower()) or self._by_stem.get(name.lower())
        if not found and PurePosixPath(name).suffix.lower() in formats.SUFFIXES:
            found = self._by_stem.get(PurePosixPath(name).stem.lower())
        if not found and number:
            found = self._by_number.get(int(number[1]))
        split = split_of(plain) or split
        fitting = [path for path in found or () if split is None or split_of(path) in (None, split)]
        if len(fitting) < 2:
            return fitting
        # The one that agrees with most of the cell's folders, then in case; then the one that is not a test image.
        folders = [_common_end(plain, path) for path in fitting]
        fitting = [path for path, common in zip(fitting, folders, strict=True) if common == max(folders)]
        fitting = [path for path in fitting if PurePosixPath(path).name == name] or fitting
        return [path for path in fitting if split_of(path) != "test"] or fitting


def _common_end(text: str, path: str) -> int:
    """Number of folders right above the file that two paths share."""
    count = 0
    for one, other in zip(text.lower().split("/")[-2::-1], path.lower().split("/")[-2::-1], strict=False):
        if one != other:
            break
        count += 1
    return count


def _labels_of(table: Table, files: _FileIndex) -> tuple[Labels, list[Remark]]:
    """Labels that a table gives, for the images that there are; an empty one if it names none."""
    splits = _splits_of(table)
    named = {
        column: [files.find(row[column], split) for (_, row), split in zip(table.rows, splits, strict=True)]
        for column in table.ids
    }
    column = max(table.ids, key=lambda each: sum(map(bool, named[each])))
    if not any(named[column]):
        return Labels({}, layouts.DEFAULT_CLASS_NAMES, table.name), []
    label_column, texts = _label_column(table)
    names, numbers = _two_classes(texts, f"{table.name}, column {table.header[label_column]},")
    rows: dict[str, tuple[int | None, str | None]] = {}
    first: dict[str, int] = {}
    absent: list[str] = []
    repeated = 0
    for (line, row), text, found, split in zip(table.rows, texts, named[column], splits, strict=True):
        if not found:
            if _SCIENTIFIC.fullmatch(row[column]):
                raise CatdogError(
                    f"{table.name} line {line}: {row[column]!r} was an id before a spreadsheet rounded it; expected "
                    "the table as it was before"
                )
            absent.append(row[column])
            continue
        if len(found) > 1:
            raise CatdogError(
                f"{table.name} line {line}: {row[column]!r} may be {found[0]} or {found[1]}; expected paths that tell "
                "them apart"
            )
        path, given = found[0], (numbers.get(text.casefold()), split)
        if path in rows:
            repeated += 1
            if rows[path] != given:
                raise CatdogError(
                    f"{table.name} lines {first[path]} and {line} say different things of {path}; correct one of them"
                )
        rows[path], first[path] = given, first.get(path, line)
    counts = Counter(label for label, _ in rows.values())
    each = ", ".join(f"{counts[label]:,} {name}" for label, name in enumerate(names))
    remarks = [Remark(f"Labels: {table.name}, columns {table.header[column]} and {table.header[label_column]}: {each}")]
    if absent:
        said = f"Rows of {table.name} that name no image here: {len(absent):,} of {len(table.rows):,}"
        remarks.append(Remark(f"{said}, e.g. {absent[0]}", warning=True))
    if repeated:
        remarks.append(Remark(f"Rows of {table.name} that repeat another: {repeated:,}"))
    return Labels(rows, names, table.name), remarks


def _splits_of(table: Table) -> list[str | None]:
    if table.split is None:
        return [table.own_split] * len(table.rows)
    for line, row in table.rows:
        if row[table.split] and row[table.split].lower() not in SPLIT_FOLDERS:
            raise CatdogError(
                f"{table.name} line {line}: column {table.header[table.split]} holds {row[table.split]!r}; expected "
                "train, valid or test"
            )
    return [SPLIT_FOLDERS.get(row[table.split].lower(), table.own_split) for _, row in table.rows]


def _label_column(table: Table) -> tuple[int, list[str]]:
    """The label column and its cells; of several that say the same, the one with words."""
    cells = {column: [csv_tables.clean_label(row[column]) for _, row in table.rows] for column in table.labels}
    two = [column for column in table.labels if len({text.casefold() for text in cells[column] if text}) == 2]
    chosen = next((column for column in two if not any(text.isdecimal() for text in cells[column])), None)
    chosen = chosen if chosen is not None else two[0] if two else table.labels[0]
    for other in two:
        pairs = {(one.casefold(), two.casefold()) for one, two in zip(cells[chosen], cells[other], strict=True)}
        if len(pairs) != len({one for one, _ in pairs}):
            raise CatdogError(
                f"{table.name}: columns {table.header[chosen]} and {table.header[other]} both have two values, and "
                "differ; leave one of them in the table"
            )
    return chosen, cells[chosen]


def _two_classes(texts: Iterable[str], where: str) -> tuple[tuple[str, str], dict[str, int]]:
    """The names of both classes, and the number of each by its name in lower case.

    Raises:
        CatdogError: there are not two.
    """
    counts = Counter(text for text in texts if text)
    folded: dict[str, list[str]] = defaultdict(list)
    for text, _ in counts.most_common():
        folded[text.casefold()].append(text)
    if folded.keys() <= layouts.CLASS_FOLDERS.keys():
        return layouts.DEFAULT_CLASS_NAMES, {name: layouts.CLASS_FOLDERS[name] for name in folded}
    if len(folded) != 2:
        some = ", ".join(
            f"{spelled[0][:40]} ({sum(counts[s] for s in spelled):,})" for spelled in list(folded.values())[:5]
        )
        more = ", …" if len(folded) > 5 else ""
        raise CatdogError(
            f"{where} holds {len(folded)} class{'es' * (len(folded) != 1)}: {some}{more}; expected two, so leave only "
            "rows of two classes"
        )
    numeric = all(re.fullmatch(r"-?\d+", name) for name in folded)
    ordered = sorted(folded, key=int) if numeric else sorted(folded)
    return (folded[ordered[0]][0], folded[ordered[1]][0]), {name: label for label, name in enumerate(ordered)}


# --- several tables ----------------------------------------------------------------------------------------------


def _combine(found: list[tuple[Labels, list[Remark]]], source: str) -> tuple[Labels, list[Remark]]:
    """One table of several: a table for each split, or tables that say the same."""
    first, remarks = found[0]
    if len(found) == 1:
        return first, remarks
    origins = [labels.origin for labels, _ in found]
    splits = [csv_tables.own_split(origin) for origin in origins]
    if all(labels.rows == first.rows and labels.class_names == first.class_names for labels, _ in found):
        return first, [*remarks, Remark(f"The same labels: {', '.join(origins[1:])}")]
    if None in splits or len(set(splits)) < len(splits):
        raise CatdogError(
            f"{source}: {' and '.join(origins[:3])} could both hold the labels; name one with --labels {origins[0]}"
        )
    rows: dict[str, tuple[int | None, str | None]] = {}
    for labels, _ in found:
        if labels.class_names != first.class_names:
            raise CatdogError(
                f"{source}: {first.origin} has classes {' and '.join(first.class_names)}, {labels.origin} has "
                f"{' and '.join(labels.class_names)}; expected the same"
            )
        if twice := rows.keys() & labels.rows.keys():
            raise CatdogError(f"{source}: {min(twice)} is in two of {', '.join(origins)}; expected it in one")
        rows |= labels.rows
    return Labels(rows, first.class_names, ", ".join(origins)), [each for _, own in found for each in own]


def find_named(name: str, tables: Mapping[str, bytes]) -> tuple[str, bytes] | None:
    """The table of a source that `--labels` names by its path, or by its file name alone.

    Raises:
        UsageError: several have that name.
    """
    plain = PurePosixPath(name).as_posix()
    found = [path for path in tables if path == plain] or [p for p in tables if PurePosixPath(p).name == plain]
    if len(found) > 1:
        raise UsageError(f"--labels received {name!r}, which may be {found[0]} or {found[1]}; give its path")
    return (found[0], tables[found[0]]) if found else None
