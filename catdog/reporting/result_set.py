"""The result set: a CSV and the files that share its stem, vouched for by the digests in its `meta.json`.

    results.csv            the submission, where the test split was scored
    results.report.json    the report, where a split with labels was scored
    results.report.html    the same for people, with pictures
    results.rejected.csv   the images that could not be read
    results.meta.json      what made them, and the SHA-256 of each
    results.parts/         the predictions, in Parquet

`meta.json` is written last: while it is not, or is another run's, the set is not intact.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

import pyarrow as pa

from catdog import spreadsheets, storage
from catdog.errors import CatdogError, UsageError

REJECTED_COLUMNS = ("split", "id", "key", "reason")
_PIECE = 65_536


def sidecar(out: str, ending: str) -> str:
    """URI of a file or folder that shares a CSV's stem: `results.csv` → `results.ENDING`."""
    return storage.join(storage.parent(out), f"{storage.name(out).removesuffix('.csv')}.{ending}")


def write_sidecar(out: str, ending: str, text: str) -> str:
    """Writes a text file that shares a CSV's stem, and returns its SHA-256 in hex."""
    storage.write_text(sidecar(out, ending), text)
    return hashlib.sha256(text.encode()).hexdigest()


def write_meta(out: str, meta: dict[str, Any]) -> None:
    """Writes the `meta.json` of a CSV: the last file of a set, as it vouches for the others."""
    write_sidecar(out, "meta.json", json.dumps(meta, indent=2, allow_nan=False) + "\n")


def write_rejected(out: str, tables: dict[str, pa.Table]) -> str:
    """Writes the list of images that could not be read, and why: `split,id,key,reason`, perhaps with no rows.

    Args:
        out: URI of the submission that the list belongs to.
        tables: by split, columns id, key and detail of the unreadable images.

    Returns:
        The file's SHA-256, in hex.
    """
    # Bit by bit: where a disk is not mounted, it is every image.
    rows = (
        (split, row["id"], row["key"], row["detail"])
        for split, table in tables.items()
        for batch in table.select(["id", "key", "detail"]).to_batches(_PIECE)
        for row in batch.to_pylist()
    )
    return write_sidecar(out, "rejected.csv", spreadsheets.csv_text(itertools.chain([REJECTED_COLUMNS], rows)))


def read_meta(out: str) -> dict[str, Any]:
    """Content of the `meta.json` of a CSV; empty where there is none, or a damaged one.

    Raises:
        CatdogError: it could not be read.
    """
    try:
        found = json.loads(storage.read_if_there(sidecar(out, "meta.json")) or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_digests(out: str) -> dict[str, str]:
    """SHA-256 (hex) of each file that the `meta.json` of a CSV was written for, by what follows the stem."""
    found = read_meta(out).get("sha256")
    return found if isinstance(found, dict) else {}


def is_intact(out: str, ending: str) -> bool:
    """Tells whether a file of the set is there and is the one that `meta.json` was written for."""
    uri = sidecar(out, ending)
    return storage.exists(uri) and read_digests(out).get(ending) == hashlib.sha256(storage.read_bytes(uri)).hexdigest()


def require_intact(out: str) -> list[str]:
    """Compares a CSV and the other files of its set with the digests in `meta.json`.

    Args:
        out: URI of the CSV.

    Returns:
        The URIs of the files that `meta.json` names and that are not there.

    Raises:
        CatdogError: a file is of another run, or was changed.
    """
    absent = []
    for ending in read_digests(out):
        uri = sidecar(out, ending)
        if not storage.exists(uri):
            absent.append(uri)
        elif not is_intact(out, ending):
            raise CatdogError(
                f"{uri} is not the file that {storage.name(sidecar(out, 'meta.json'))} was written for: another run "
                "wrote it, or one was killed before it was done, or it was changed; run the same `catdog score` again "
                "(or copy a CSV that you changed to another name)"
            )
    return absent


def read_origin(path: str) -> str:
    """Reads from a submission's `meta.json` which data set it was made from.

    Args:
        path: of the CSV, as the user gave it.

    Returns:
        The data set's URI.

    Raises:
        UsageError: there is none that can be read, or it names no data set.
    """
    out = storage.absolute(path)
    data = read_meta(out).get("data")
    if not isinstance(data, str):
        meta = sidecar(out, "meta.json")
        raise UsageError(f"FILE received {path!r} without a readable {meta}; give its data set with --data DIR")
    return data
