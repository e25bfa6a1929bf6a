"""Parquet files with a column of images, as Hugging Face publishes data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from catdog import tables
from catdog.data import formats
from catdog.errors import CatdogError, first_line

# Columns of bytes that hold images if they have such a name; a struct of bytes and path is one by its shape.
_IMAGE_NAMES = ("image", "img", "image_bytes", "bytes", "picture", "photo", "jpg", "jpeg", "png", "pixels", "content")
_LABEL_NAMES = ("label", "labels", "class", "target", "category", "y")
_BATCH_ROWS = 64
# Also names and text that are no UTF-8.
_BROKEN = (pa.ArrowException, OSError, ValueError)
_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2", "HEIF": ".heic"}


class ImageRow(NamedTuple):
    """An image in a row of a Parquet file.

    Attributes:
        number: of the row, from 0.
        data: the image's bytes; empty if there are none.
        suffix: for its file name.
        label: name of its class, or None.
        split: what a column `split` says, in lower case, or "".
        held: False if the row only names a file that is elsewhere.
    """

    number: int
    data: bytes
    suffix: str
    label: str | None
    split: str
    held: bool


def is_parquet(path: str) -> bool:
    """Returns whether a file is a Parquet file by its name."""
    return PurePosixPath(path.partition("?")[0]).suffix.lower() in (".parquet", ".pq")


def read_rows(stream: BinaryIO, name: str) -> Iterator[ImageRow] | None:
    """Reads the images of a Parquet file and their labels, a few rows at a time.

    Args:
        stream: the file, open for reading, seekable.
        name: its name, for messages.

    Returns:
        Its rows, in order; None if no column holds images.

    Raises:
        CatdogError: the file is damaged, or two columns could hold the images or the labels; also while rows are read.
    """
    try:
        file = pq.ParquetFile(stream)
        tables.require_whole_groups(file.metadata)
        return _open_rows(file, name)
    except _BROKEN as error:
        raise CatdogError(
            f"{name} is not a Parquet file, or damaged ({first_line(error)}); download it again"
        ) from error


def _open_rows(file: pq.ParquetFile, name: str) -> Iterator[ImageRow] | None:
    schema = file.schema_arrow
    image = _only([each.name for each in schema if _holds_images(each)], f"{name}: columns", "images")
    if image is None:
        return None
    named = [each.name for each in schema if each.name.lower() in _LABEL_NAMES]
    label = _only(named, f"{name}: columns", "labels")
    if label is not None and not _is_plain(schema.field(label).type):
        raise CatdogError(f"{name}: column {label} holds {schema.field(label).type}; expected one label for each image")
    return _rows(file, name, image, label, _class_names(schema, label) if label else [])


def _rows(file: pq.ParquetFile, name: str, image: str, label: str | None, classes: list[str]) -> Iterator[ImageRow]:
    number = 0
    split = next((each.name for each in file.schema_arrow if each.name.lower() == "split"), None)
    try:
        for batch in file.iter_batches(_BATCH_ROWS, columns=[each for each in (image, label, split) if each]):
            labels, splits = (
                batch.column(each).to_pylist() if each else [None] * batch.num_rows for each in (label, split)
            )
            for value, text, part in zip(batch.column(image).to_pylist(), labels, splits, strict=True):
                fields = value if isinstance(value, dict) else {"bytes": value}
                data, path = fields.get("bytes") or b"", fields.get("path") or ""
                held = bool(data) or not path
                yield ImageRow(
                    number,
                    data,
                    _suffix(data, path),
                    _label(text, classes, name, number),
                    str(part or "").lower(),
                    held,
                )
                number += 1
    except _BROKEN as error:
        raise CatdogError(f"{name} is damaged after row {number} ({first_line(error)}); download it again") from error


def _holds_images(field: pa.Field) -> bool:
    kind = field.type
    if pa.types.is_struct(kind):
        inner = [kind.field(at) for at in range(kind.num_fields)]
        return any(each.name == "bytes" and _is_binary(each.type) for each in inner)
    return _is_binary(kind) and field.name.lower() in _IMAGE_NAMES


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_plain(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    )  # fmt: skip


def _only(columns: list[str], where: str, what: str) -> str | None:
    if len(columns) > 1:
        raise CatdogError(f"{where} {columns[0]} and {columns[1]} could both hold the {what}; expected one such column")
    return columns[0] if columns else None


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    """Names of the classes by their numbers, from the metadata that Hugging Face's `datasets` writes; or none."""
    try:
        features: dict[str, Any] = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    if isinstance(names, dict):  # {"0": "cat", "1": "dog"}, as in a data set's card
        names = [names[number] for number in sorted(names, key=int)]
    return [str(each) for each in names]


def _label(value: Any, classes: list[str], name: str, row: int) -> str | None:
    # A test split without labels has -1 in every row.
    if value is None or (classes and value == -1):
        return None
    if not classes or isinstance(value, str):
        return str(value)
    if value not in range(len(classes)):
        raise CatdogError(
            f"{name} row {row}: label {value}, but the classes are {', '.join(classes)}; expected one of them"
        )
    return classes[int(value)]


def _suffix(data: bytes, path: str) -> str:
    """The suffix of the file that held an image; a row without readable bytes still counts as one image."""
    own = PurePosixPath(path).suffix.lower()
    if own in formats.SUFFIXES:
        return own
    kind = formats.sniff(data[: formats.HEAD_BYTES]) or "JPEG"
    return _SUFFIXES.get(kind, f".{kind.lower()}")
