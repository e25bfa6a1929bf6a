"""The Kaggle file: written, and checked as Kaggle would and more strictly."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catdog import spreadsheets, storage
from catdog.data import layouts
from catdog.data.catalog import SAMPLE_NAME, Catalog
from catdog.errors import CatdogError, UsageError
from catdog.reporting import faults, result_set

# Kaggle's log loss keeps probabilities this far from 0 and 1.
_KAGGLE_CLIP = 1e-15
# Twelve digits are written, of which none may round to 0 or 1.
_LEAST = 1e-12
_PIECE = 65_536


def write_submission(out: str, ids: pa.ChunkedArray, probabilities: np.ndarray) -> str:
    """Writes a submission: `id,label`, every test id once, in numeric order where ids are numbers.

    Args:
        out: URI of the CSV.
        ids: strings, N.
        probabilities: float64 inside (0, 1), N.

    Returns:
        The file's SHA-256, in hex.
    """
    order = np.arange(len(ids))
    if pc.all(pc.utf8_is_decimal(ids)).as_py():
        longest = pc.max(pc.utf8_length(ids)).as_py()
        numbers = ids.cast(pa.int64()).to_numpy() if longest < 19 else np.array([int(i) for i in ids.to_pylist()])
        order = np.argsort(numbers, kind="stable")
    digest = hashlib.sha256()
    with storage.writing(out) as stream:
        for text in _pieces(ids, probabilities, order):
            digest.update(text.encode())
            stream.write(text.encode())
    return digest.hexdigest()


def _pieces(ids: pa.ChunkedArray, probabilities: np.ndarray, order: np.ndarray) -> Iterator[str]:
    # Kaggle compares the ids, so nothing is escaped.
    yield spreadsheets.csv_text([faults.COLUMNS], escape=False)
    for start in range(0, len(order), _PIECE):
        piece = order[start : start + _PIECE]
        # Twelve digits: the last bits of a float do not show. None may round to 0 or 1, which can cost most.
        written = [f"{p:.12g}" for p in np.clip(probabilities[piece], _LEAST, 1 - _LEAST)]
        yield spreadsheets.csv_text(zip(ids.take(pa.array(piece)).to_pylist(), written, strict=True), escape=False)


@dataclass(frozen=True)
class Checked:
    """Result of checking a submission that has no error.

    Attributes:
        rows: number of rows, without the header.
        warnings: a line for each thing that Kaggle accepts but the sender may regret.
    """

    rows: int
    warnings: tuple[str, ...] = ()


def check_submission(path: str, data: Catalog) -> Checked:
    """Checks that every id is there once, every label is a probability, and the file is the one that `meta.json` names.

    The ids are those of the data set's `sample_submission.csv`, as that is what Kaggle expects, or else of its test
    split.

    Args:
        path: URI of the CSV.
        data: the catalog.

    Returns:
        Number of rows, and warnings.

    Raises:
        UsageError: there is no such file.
        CatdogError: Kaggle would refuse it, or accept it although it is wrong; says the row and the reason.
    """
    uri = storage.absolute(path)
    if storage.kind(uri) != "file":
        raise UsageError(f"FILE received {path!r}, which is not there; expected a submission such as results.csv")
    test = dict.fromkeys(data.split("test")["id"].to_pylist())
    warnings = _origin_warnings(uri, data)
    try:
        sample = _sample_ids(data)
    except (UnicodeDecodeError, csv.Error, LookupError) as error:
        sample = None
        warnings.append(
            f"{storage.join(data.root, SAMPLE_NAME)} is not a sample submission ({error}): it was not compared"
        )
    content = storage.read_bytes(uri)
    if fault := faults.in_file(content):
        raise CatdogError(f"{uri} {fault}")
    if content.startswith(codecs.BOM_UTF8):
        warnings.append("it begins with a byte order mark, which may be taken for a part of `id`: save it as UTF-8")
    seen, hard = _read_rows(uri, content, test if sample is None else sample | test, data.class_names)
    expected, difference = test, ""
    if sample is None:
        warnings += _gaps(list(test))
    elif sample.keys() != test.keys():
        expected = sample
        difference = (
            f"{data.root} and its {SAMPLE_NAME} differ: {_compare(sample, test, 'its test split', SAMPLE_NAME)}"
        )
    if seen.keys() != expected.keys():
        wrong = _compare(expected, seen, "it", "the test split" if sample is None else SAMPLE_NAME)
        cause = f"; {difference}; prepare the data set again, with every test image" if difference else ""
        raise CatdogError(f"{uri} has {len(seen)} rows, expected {len(expected)}: {wrong}{cause}")
    if difference:
        warnings.append(difference)
    if hard:
        cost = -math.log(_KAGGLE_CLIP)
        count, example = len(hard), f"row {seen[hard[0]]}, id {hard[0]}"
        warnings.append(
            f"{count} label{'s are' if count > 1 else ' is'} 0 or 1, or as good as that (e.g. {example}): each that is "
            f"wrong costs {cost:.1f} nats, and so adds {cost / len(seen):.2g} to the log loss of {len(seen)} rows; "
            "keep away from 0 and 1, by 0.001 for example"
        )
    return Checked(len(seen), tuple(warnings))


def _read_rows(
    uri: str, content: bytes, ids: Collection[str], class_names: tuple[str, str]
) -> tuple[dict[str, int], list[str]]:
    """Reads a submission: the row of each id, and the ids whose labels are as good as 0 or 1."""
    seen, hard = dict[str, int](), list[str]()
    number = 0
    try:
        for number, line in enumerate(_rows(content), start=1):
            where = f"{uri} row {number}"
            fault = faults.in_header(line) if number == 1 else faults.in_fields(line, ids)
            if fault is None and number > 1:
                fault = faults.in_id(line[0], ids, "the test split")
            if fault is not None:
                raise CatdogError(f"{where}: {fault}")
            if number == 1:
                continue
            name, text = line
            if name in seen:
                raise CatdogError(f"{where}: id {name} is there a second time (first in row {seen[name]})")
            seen[name] = number
            try:
                value = faults.read_label(text, class_names)
            except ValueError as error:
                raise CatdogError(f"{where}: id {name}: {error}") from None
            if min(value, 1 - value) < _KAGGLE_CLIP:
                hard.append(name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise CatdogError(f"{uri} is not a CSV file in UTF-8 (after row {number}: {error})") from error
    return seen, hard


def _rows(content: bytes) -> Iterator[list[str]]:
    # Bit by bit: a million rows as a list are many times the size of the file.
    return csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""), strict=True)


def _compare(expected: Collection[str], got: Collection[str], name: str, origin: str) -> str:
    """Says which ids are missing and which are too many, where they differ."""
    missing = [each for each in expected if each not in got]
    extra = [each for each in got if each not in expected]
    found = [
        f"lacks {len(missing)} id{'s' * (len(missing) > 1)} of {origin}, e.g. {missing[0]}" if missing else "",
        f"has {len(extra)} more, e.g. {extra[0]}" if extra else "",
    ]
    return f"{name} {', and '.join(filter(None, found))}"


def _sample_ids(data: Catalog) -> dict[str, None] | None:
    uri = storage.join(data.root, SAMPLE_NAME)
    if storage.kind(uri) != "file":
        return None
    header, *rows = [*_rows(storage.read_bytes(uri))] or [[]]
    names = [name.strip().lower() for name in header]
    column = names.index("id") if "id" in names else 0
    found = dict.fromkeys(row[column].strip() for row in rows if any(row))
    if not found:
        raise LookupError("it has no rows")
    return found


def _gaps(ids: list[str]) -> list[str]:
    missing = layouts.missing_numbers(ids)
    if not missing:
        return []
    many = len(missing) > 1
    return [
        f"{len(missing)} of the numbers up to {max(map(int, ids))} {'are no ids' if many else 'is no id'} of the test "
        f"split, e.g. {missing[0]}: Kaggle refuses the file if it expects {'them' if many else 'it'}"
    ]


def _origin_warnings(uri: str, data: Catalog) -> list[str]:
    meta = storage.name(result_set.sidecar(uri, "meta.json"))
    if "csv" not in result_set.read_digests(uri):
        there = "names no SHA-256 of it" if storage.exists(result_set.sidecar(uri, "meta.json")) else "is not there"
        return [f"nothing says what made {storage.name(uri)}: {meta} {there}"]
    warnings = [
        f"{meta} was written for {storage.name(gone)} too, which is gone" for gone in result_set.require_intact(uri)
    ]
    if result_set.read_meta(uri).get("catalog_fingerprint") != data.fingerprint:
        made_from = result_set.read_meta(uri).get("data")
        warnings.append(f"{meta} says that it was made from {made_from}, which differs from {data.root}")
    return warnings
