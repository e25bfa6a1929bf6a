"""Where the labels of a source come from: its paths, a CSV, or its Parquet files.

Paths that name the classes count; a CSV beside them may only agree. Without them, a CSV is looked for.
"""

from __future__ import annotations

import csv
import dataclasses
import io

from catdog import storage
from catdog.data import label_tables, layouts, sources
from catdog.data.layouts import Layout
from catdog.data.splits import Remark
from catdog.errors import CatdogError, UsageError


def read_layout(found: sources.Survey, source: str, named: str | None) -> tuple[Layout, list[Remark]]:
    """Decides where the labels of a source come from, and derives its layout.

    Args:
        found: its files.
        source: its URI, for messages.
        named: the CSV that `--labels` names, in the source or elsewhere; None for one that the source has, unless its
            paths name the classes.

    Returns:
        The layout, and remarks on what its labels were read from.

    Raises:
        UsageError: `named` is not there.
        CatdogError: the source is not a valid data set, or its labels contradict each other.
    """
    ids = sample_ids(found)
    if found.given:
        if named is not None:
            raise UsageError(f"--labels received {named!r}, but the Parquet files of {source} hold the labels")
        if loose := [path for path in found.images if path not in found.given]:
            raise CatdogError(
                f"{source} holds Parquet files with images, and {len(loose)} images beside them, e.g. {loose[0]}; "
                f"leave one kind out, with --ignore '*.parquet' or --ignore {loose[0]!r}"
            )
        given = label_tables.labels_of_rows(found.given, "the Parquet files")
        return layouts.detect_layout(found.images, source, given, ids), []
    if named is not None:
        table = _named_table(found, named)
        labels, told = label_tables.choose_labels({}, found.images, source, table)
        return layouts.detect_layout(found.images, source, labels, ids), told
    fault: CatdogError | None = None
    try:
        by_path = layouts.detect_layout(found.images, source, None, ids)
    except CatdogError as error:
        fault = error
    if fault is None and any(row.label is not None for row in by_path.rows.values()):
        return by_path, _compare_tables(by_path, found, source)
    labels, told = label_tables.choose_labels(found.tables, found.images, source)
    if labels is not None:
        return layouts.detect_layout(found.images, source, labels, ids), told
    if fault is not None:
        raise fault
    # No image has a label, and here may be why.
    return by_path, [dataclasses.replace(remark, warning=True) for remark in told]


def sample_ids(found: sources.Survey) -> set[str]:
    """Ids of a source's sample submission; none if it has none.

    Raises:
        CatdogError: it is no CSV.
    """
    if found.sample is None:
        return set()
    text = io.StringIO(found.sample.decode("utf-8-sig", "replace"), newline="")
    try:
        return {row[0] for row in list(csv.reader(text))[1:] if row}
    except csv.Error as error:
        raise CatdogError(
            f"the sample submission of the source is not a CSV ({error}); correct it, or leave it out with "
            "--ignore 'sample*.csv'"
        ) from error


def _named_table(found: sources.Survey, named: str) -> tuple[str, bytes]:
    """The table that `--labels` names: in the source, or a file elsewhere.

    Raises:
        UsageError: there is none, or one in each place that differs.
    """
    inner = label_tables.find_named(named, found.tables)
    outer = storage.read_bytes(named) if storage.kind(named) == "file" else None
    if inner is None and outer is None:
        some = f"; it has {', '.join(sorted(found.tables)[:5])}" if found.tables else ""
        raise UsageError(f"--labels received {named!r}, which is neither a CSV in SOURCE nor a file elsewhere{some}")
    if inner is not None and outer is not None and inner[1] != outer:
        raise UsageError(
            f"--labels received {named!r}, which is a file here and another one in SOURCE; give the path of one"
        )
    return inner if inner is not None else (named, outer or b"")


def _compare_tables(by_path: Layout, found: sources.Survey, source: str) -> list[Remark]:
    """Checks that no table of the source contradicts the labels in paths, which count."""
    try:
        labels, told = label_tables.choose_labels(found.tables, found.images, source)
    except CatdogError as error:
        return [Remark(f"Labels are those of folders and names, not of a table ({error})")]
    if labels is None:
        return told
    pairs = {
        (by_path.class_names[row.label], labels.class_names[label]): path
        for path, row in by_path.rows.items()
        if row.label is not None and (label := labels.rows.get(path, (None, None))[0]) is not None
    }
    same_names = set(by_path.class_names) == set(labels.class_names)
    firsts, seconds = {one for one, _ in pairs}, {other for _, other in pairs}
    if len(pairs) > max(len(firsts), len(seconds)) or (same_names and any(one != other for one, other in pairs)):
        (one, other), path = next((pair, path) for pair, path in pairs.items() if not same_names or pair[0] != pair[1])
        raise CatdogError(
            f"{source}: {path} is {one} by its path and {other} by {labels.origin}; say which counts, with --labels "
            f"{labels.origin.split(', ')[0]!r} or --ignore '*.csv'"
        )
    return [Remark(f"Labels are those of folders and names; {labels.origin} was not needed")]
