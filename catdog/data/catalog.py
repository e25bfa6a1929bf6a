"""The catalog: an Arrow table with one row for each image of a data set, without pixels.

`catdog data prepare` writes it once, as `catalog.parquet` in the data set's folder; later commands only read it, so the
split is a property of the data set. Files are named relative to that folder, so a data set can be moved or copied to a
bucket.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from catdog import storage, tables
from catdog.errors import CatdogError, UsageError, did_you_mean, first_line

FILE_NAME = "catalog.parquet"
# Kaggle's sample submission, with the ids that it expects; kept beside the catalog if the source had one.
SAMPLE_NAME = "sample_submission.csv"
SCHEMA_VERSION = 2
# Version 1 had no digests. Fingerprints do not depend on digests and are equal for both versions.
_READABLE, _FINGERPRINT_VERSION = (1, 2), 1
_PIECE = 65_536
# What the content's digest of a drawn data set begins with.
DRAWN = "drawn: "
# Environment variable: 1 accepts catalogs that name files anywhere, as a program may write them.
ALLOW_OUTSIDE = "CATDOG_ALLOW_OUTSIDE"
_OUTSIDE = r"^/|://|(^|/)\.\.(/|$)|\x00"
SPLITS = ("train", "valid", "test")
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("digest", pa.uint64()),
    ]
)


@dataclass(frozen=True)
class Catalog:
    """Rows of a data set, and the options that it was prepared with.

    Attributes:
        table: columns `key` (path relative to the set's root, unique), `id` (the row's id in a submission),
            `uri` (location of the file), `label` (0 or 1, null if unknown), `split` (train, valid or test) and
            `digest` (`digest_of` the file's bytes; null if it is empty, or unknown).
        class_names: names of labels 0 and 1.
        root: URI of the data set's folder.
        options: options that determined the split: `split_seed`, `valid_fraction`, `content_sha256`.
    """

    table: pa.Table
    class_names: tuple[str, str]
    root: str
    options: dict[str, object] = field(default_factory=dict)

    def split(self, name: str) -> pa.Table:
        """The rows of one split, in catalog order.

        Raises:
            CatdogError: the split is empty.
        """
        rows = self._rows(name)
        if not rows.num_rows:
            counts = ", ".join(f"{self.count(split)} {split}" for split in SPLITS)
            raise CatdogError(f"{self.root} has no {name} images (it has {counts}); expected at least one")
        return rows

    def _rows(self, name: str) -> pa.Table:
        at = pc.indices_nonzero(pc.equal(self.table["split"], name))
        if len(at) and at[-1].as_py() - at[0].as_py() + 1 == len(at):
            return self.table.slice(at[0].as_py(), len(at))  # a slice copies nothing
        return self.table.take(at)

    def count(self, split: str, label: int | None = None) -> int:
        """Number of rows of a split, or of its rows with one label."""
        chosen = pc.equal(self.table["split"], split)
        if label is not None:
            chosen = pc.and_(chosen, pc.fill_null(pc.equal(self.table["label"], label), False))
        return pc.sum(chosen).as_py() or 0

    def is_labelled(self, split: str) -> bool:
        """Returns whether a split is not empty and all its rows have labels."""
        rows = self._rows(split)
        return rows.num_rows > 0 and rows["label"].null_count == 0

    @property
    def is_drawn(self) -> bool:
        """Whether `catdog data synthesize` drew the images."""
        return str(self.options.get("content_sha256", "")).startswith(DRAWN)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over class names, all rows without their URIs, and the content of the prepared files."""
        digest = hashlib.sha256(json.dumps([_FINGERPRINT_VERSION, self.class_names]).encode())
        digest.update(str(self.options.get("content_sha256", "")).encode())
        for column in ("key", "id", "label", "split"):
            for piece in _pieces(self.table):
                digest.update("".join([f"{value}\0" for value in piece[column].to_pylist()]).encode())
        return digest.hexdigest()

    def write(self) -> None:
        """Writes `catalog.parquet` into the data set's folder, which makes the data set complete."""
        metadata = {
            "catdog": json.dumps(
                {"schema_version": SCHEMA_VERSION, "class_names": self.class_names, "options": self.options}
            )
        }
        relative = [
            pa.array([storage.relative(uri, self.root) for uri in piece["uri"].to_pylist()], pa.string())
            for piece in _pieces(self.table)
        ]
        table = self.table.set_column(2, SCHEMA.field("uri"), pa.chunked_array(relative, pa.string()))
        tables.write_table(storage.join(self.root, FILE_NAME), table.replace_schema_metadata(metadata))


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    """A table in pieces: a million Python strings take many times its memory, and an Arrow array has 2 GB at most."""
    return (table.slice(start, _PIECE) for start in range(0, table.num_rows, _PIECE))


def digest_of(data: bytes) -> int:
    """First eight bytes of a file's SHA-256 as an unsigned integer; identifies copies of an image."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def has_catalog(data: str) -> bool:
    """Returns whether a folder has a catalog."""
    return storage.kind(storage.join(data, FILE_NAME)) == "file"


def read_catalog(data: str) -> Catalog:
    """Reads and checks a prepared data set's catalog.

    Args:
        data: URI of the data set's folder.

    Returns:
        The catalog, with absolute URIs.

    Raises:
        UsageError: the data set does not exist.
        CatdogError: the catalog is damaged, has another version, or names a file outside of the data set's folder.
    """
    root = storage.absolute(data)
    path = storage.join(root, FILE_NAME)
    if storage.kind(path) != "file":
        raise UsageError(
            f"{root} is not a prepared data set: expected {FILE_NAME} in it; make one with "
            f"`catdog data prepare SOURCE {data}`"
            f"{did_you_mean(storage.name(root), storage.names_beside(root))}"
        )
    try:
        table = tables.read_table(path)
        header = json.loads(table.schema.metadata[b"catdog"])
        version, class_names, options = header["schema_version"], header["class_names"], header["options"]
        if not isinstance(class_names, list) or [type(name) for name in class_names] != [str, str]:
            raise ValueError(f"class names {class_names!r}, expected two")
        if not isinstance(options, dict):
            raise ValueError(f"options {options!r}, expected an object")
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise CatdogError(
            f"{path} is not a catalog that catdog wrote ({reason}); prepare the data set again"
        ) from error
    if version not in _READABLE:
        raise CatdogError(f"{path} has schema version {version}, expected {SCHEMA_VERSION}; prepare the data set again")
    table = table.replace_schema_metadata(None)
    if version == 1:
        table = table.append_column(SCHEMA.field("digest"), pa.nulls(table.num_rows, pa.uint64()))
    if not table.schema.equals(SCHEMA):
        raise CatdogError(f"{path} has columns {table.column_names}, expected {SCHEMA.names}; prepare it again")
    for column, known in (("label", pa.array([0, 1, None], pa.int8())), ("split", pa.array(SPLITS))):
        other = table[column].filter(pc.invert(pc.is_in(table[column], known)))
        if len(other):
            raise CatdogError(f"{path} has {column} {other[0].as_py()!r}, expected one of {known.to_pylist()}")
    _require_inside(table["uri"], root, path)
    before, _, after = storage.join(root, "\0").partition("\0")
    places: list[pa.Array] = []
    for piece in _pieces(table):
        uris = piece["uri"]
        is_absolute = pc.or_(pc.match_substring(uris, "://"), pc.starts_with(uris, "/"))
        places += pc.if_else(is_absolute, uris, pc.binary_join_element_wise(before, uris, after, "")).chunks
    table = table.set_column(2, SCHEMA.field("uri"), pa.chunked_array(places, pa.string()))
    return Catalog(table, (class_names[0], class_names[1]), root, options)


def _require_inside(uris: pa.ChunkedArray, root: str, path: str) -> None:
    """Checks that a catalog, which anybody may have made, names no other file, bucket or server."""
    if os.environ.get(ALLOW_OUTSIDE) == "1":
        return
    # In a bucket, what follows a "?" is options, which may name another server.
    outside = pc.match_substring_regex(uris, _OUTSIDE if storage.is_local(root) else rf"{_OUTSIDE}|\?")
    if pc.any(outside).as_py():
        example = uris.filter(outside)[0].as_py()
        raise CatdogError(
            f"{path} names {example!r}, which is not in the data set's folder; prepare the data set again, or set "
            f"{ALLOW_OUTSIDE}=1 if you trust whoever made it"
        )
