"""The Kaggle file: writing it, checking it, sending it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catdog import storage
from catdog.catalog import Catalog
from catdog.errors import CatdogError, UsageError

COLUMNS = ("id", "label")
_PIECE = 65_536
COMPETITION = "dogs-vs-cats-redux-kernels-edition"


def sidecar(out: str, ending: str) -> str:
    """The URI of something that belongs to a CSV and shares its stem: `results.csv` → `results.ENDING`."""
    return storage.join(storage.parent(out), f"{storage.name(out).removesuffix('.csv')}.{ending}")


def write(out: str, ids: pa.ChunkedArray, probabilities: np.ndarray) -> None:
    """Writes a submission: `id,label`, every test id once, in numeric order where ids are numbers.

    Args:
        out: URI of the CSV.
        ids: strings, N.
        probabilities: float64 inside (0, 1), N.
    """
    order = np.arange(len(ids))
    if pc.all(pc.utf8_is_decimal(ids)).as_py():
        longest = pc.max(pc.utf8_length(ids)).as_py()
        numbers = ids.cast(pa.int64()).to_numpy() if longest < 19 else np.array([int(i) for i in ids.to_pylist()])
        order = np.argsort(numbers, kind="stable")
    with storage.writing(out) as stream:
        stream.write(_csv([COLUMNS]).encode())
        for start in range(0, len(order), _PIECE):
            piece = order[start : start + _PIECE]
            # Twelve digits: the clip of 1e-6 survives on both sides, and the last bits of a float do not show.
            written = [f"{probability:.12g}" for probability in probabilities[piece]]
            stream.write(_csv(zip(ids.take(pa.array(piece)).to_pylist(), written, strict=True)).encode())


def write_rejected(out: str, tables: dict[str, pa.Table]) -> None:
    """Names every image that could not be read, and why: `split,id,key,reason`, perhaps with no rows.

    Args:
        out: URI of the CSV.
        tables: by split, columns id, key and detail of the unreadable images.
    """
    rows = [
        (split, row["id"], row["key"], row["detail"])
        for split, table in tables.items()
        for row in table.select(["id", "key", "detail"]).to_pylist()
    ]
    storage.write_text(out, _csv([("split", "id", "key", "reason"), *rows]))


def check(path: str, data: Catalog) -> int:
    """Checks a submission against the test split it is for.

    Args:
        path: URI of the CSV.
        data: the catalog.

    Returns:
        How many rows it has.

    Raises:
        UsageError: there is no such file.
        CatdogError: it would be refused, or worse, accepted and wrong; says the row and the reason.
    """
    uri = storage.absolute(path)
    if storage.kind(uri) != "file":
        raise UsageError(f"FILE received {path!r}, which is not there; expected a submission such as results.csv")
    expected = data.split("test")["id"].to_pylist()
    try:
        lines = list(csv.reader(io.StringIO(storage.read_bytes(uri).decode("utf-8-sig")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CatdogError(f"{uri} is not a CSV file: {error}") from error
    header = tuple(lines[0]) if lines else ()
    if header != COLUMNS:
        missing = [name for name in COLUMNS if name not in header]
        extra = [name for name in header if name not in COLUMNS]
        what = (
            f"missing {', '.join(missing)}" if missing else f"extra {', '.join(extra)}" if extra else "in another order"
        )
        raise CatdogError(f"{uri} row 1: columns {','.join(header) or 'none'} ({what}), expected id,label")
    wanted, seen = set(expected), dict[str, int]()
    for number, line in enumerate(lines[1:], start=2):
        _check_row(f"{uri} row {number}", line, wanted, seen, number)
    if len(seen) != len(wanted):
        lost = [name for name in expected if name not in seen]
        raise CatdogError(
            f"{uri} has {len(seen)} rows, expected {len(wanted)}: {len(lost)} ids are missing, e.g. {lost[0]}"
        )
    return len(seen)


def _check_row(where: str, line: list[str], wanted: set[str], seen: dict[str, int], number: int) -> None:
    if len(line) != len(COLUMNS):
        raise CatdogError(f"{where}: {len(line)} fields, expected 2 (id,label)")
    name, text = line
    if name not in wanted:
        raise CatdogError(f"{where}: id {name!r} is not an id of the test split")
    if name in seen:
        raise CatdogError(f"{where}: id {name} is there a second time (first in row {seen[name]})")
    seen[name] = number
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise CatdogError(f"{where}: label {text!r} of id {name} is not a number, expected a probability in [0, 1]")
    if not 0 <= value <= 1:
        raise CatdogError(f"{where}: label {text} of id {name} is outside [0, 1]")


def origin(path: str) -> str:
    """The data set that a submission's `meta.json` says it was made from.

    Raises:
        UsageError: there is no such file.
    """
    uri = sidecar(storage.absolute(path), "meta.json")
    try:
        return json.loads(storage.read_bytes(uri))["data"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"FILE received {path!r} without a readable {uri}; give its data set with --data DIR"
        ) from error


def submit(path: str, message: str, competition: str = COMPETITION) -> str:
    """Sends a submission with Kaggle's own client.

    Args:
        path: the CSV, on this machine.
        message: what Kaggle shows beside it.
        competition: its name in Kaggle's URL.

    Returns:
        What Kaggle answered.

    Raises:
        CatdogError: no client, no credentials, or Kaggle refused or did not say that it has it.
    """
    site = f"https://www.kaggle.com/c/{competition}"
    place = f"the file is {path}, and {site}/submit takes it by hand"
    printed = io.StringIO()
    try:
        # Without credentials the client prints a page and leaves the process, already while it is imported.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.authenticate()
    except ImportError as error:
        raise CatdogError(f"the kaggle client is not installed: `pip install kaggle`; {place}") from error
    except (SystemExit, Exception) as error:
        if hasattr(error, "request"):  # of the library `requests`: a token is there, and Kaggle was asked about it
            raise CatdogError(f"could not ask Kaggle about the credentials ({_line(error)}); {place}") from error
        reason = "" if isinstance(error, SystemExit) else f" ({_line(error)})"
        raise CatdogError(
            f"no Kaggle credentials{reason}: run `kaggle auth login`, or make a token on your account's settings page "
            f"and set KAGGLE_API_TOKEN; {place}"
        ) from error
    try:
        with contextlib.redirect_stdout(printed):
            answer = api.competition_submit(path, message, competition, quiet=True)
    except Exception as error:  # the client raises its own, requests' and urllib3's
        raise CatdogError(f"Kaggle did not take the submission ({_line(error)}); {place}") from error
    # After a failed upload the client returns this text, or an answer with it, and prints why.
    text = answer if isinstance(answer, str) else str(getattr(answer, "message", "") or "")
    if isinstance(answer, str) or text.strip() == "Could not submit to competition":
        why = " ".join(printed.getvalue().split())
        raise CatdogError(f"Kaggle did not take the submission ({text}{': ' + why if why else ''}); {place}")
    reference = getattr(answer, "ref", None)
    if not reference and not text.startswith("Successfully submitted"):
        raise CatdogError(
            f"Kaggle did not say whether it took the submission (it answered {text or 'nothing'!r}); look at "
            f"{site}/submissions before you send it again; {place}"
        )
    return text + (f" (submission {reference})" if reference else "")


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _csv(rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
