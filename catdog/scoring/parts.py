"""Parts: the ranges that a split is cut into, and the file that each one's predictions are in.

A part is a fixed range of a split, predicted by one actor call in batches of one shape and named after its range and
everything its numbers follow from. So it does not matter which actor made it, when, or how often, and whatever parts
are already there need not be made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from catdog import storage, tables
from catdog.data import images
from catdog.errors import CatdogError
from catdog.inference.predictor import Predictions

PART_ROWS = 512
# The last parts of a split are smaller, so that no actor ends long before another.
_TAIL_PARTS, _TAIL_SHARE = 4, 4

PART_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("logit", pa.float32()),
        pa.field("probability", pa.float64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Part:
    """A range of a split, and the file its predictions are in.

    Attributes:
        split: its name.
        start: the range's first row in the split.
        rows: the range, of the catalog.
        uri: of the file.
    """

    split: str
    start: int
    rows: pa.Table
    uri: str


def cut_split(split: str, rows: pa.Table, batch_size: int, origin: Sequence[str], folder: str) -> list[Part]:
    """Cuts a split into parts.

    Args:
        split: its name.
        rows: of the catalog.
        batch_size: images that are predicted together.
        origin: everything that the parts' numbers follow from, but for the split and their ranges.
        folder: URI of the folder that the files are in.

    Returns:
        The parts, in catalog order.
    """
    mark = hashlib.sha256("\0".join([*origin, split]).encode()).hexdigest()[:16]
    parts = []
    for start, stop in _ranges(rows.num_rows, batch_size):
        name = f"{split}-{start:08d}-{stop:08d}-{mark}.parquet"
        parts.append(Part(split, start, rows.slice(start, stop - start), storage.join(folder, name)))
    return parts


def _ranges(count: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """The ranges of a split of so many rows, none of which is less than a batch if it can be."""
    tail = max(0, count // PART_ROWS - _TAIL_PARTS) * PART_ROWS
    start = 0
    while start < count:
        stop = min(count, start + (PART_ROWS if start < tail else max(batch_size, PART_ROWS // _TAIL_SHARE)))
        yield start, stop
        start = stop


def write_part(uri: str, rows: pa.Table, predictions: Predictions) -> None:
    """Writes a part's file.

    Args:
        uri: of the file.
        rows: columns key, id and label, N rows.
        predictions: of these N images.
    """
    columns = {
        "key": rows["key"],
        "id": rows["id"],
        "label": rows["label"],
        "logit": pa.array(predictions.logits, pa.float32(), mask=predictions.unreadable),
        "probability": predictions.probabilities,
        "status": predictions.statuses,
        "detail": predictions.details,
    }
    tables.write_table(uri, pa.Table.from_pydict(columns, schema=PART_SCHEMA))


def read_part(uri: str) -> pa.Table:
    """Reads a part's file: the columns of `PART_SCHEMA`.

    Raises:
        OSError: it is absent, or cannot be read.
        pyarrow.ArrowInvalid: it is damaged.
    """
    return _parse(storage.read_bytes(uri))


def is_whole(part: Part) -> bool:
    """Tells whether a part is there and undamaged.

    Raises:
        CatdogError: it could not be read.
    """
    return _table(part) is not None


def is_complete(part: Part) -> bool:
    """Tells whether a part need not be made again: it is whole, and misses no file that may be there by now."""
    try:
        table = _table(part)
    except CatdogError:
        return False
    return table is not None and not pc.any(pc.starts_with(table["detail"], images.NOT_READ)).as_py()


def _table(part: Part) -> pa.Table | None:
    data = storage.read_if_there(part.uri)
    if data is None:
        return None
    try:
        table = _parse(data)
        return table if table["key"].equals(part.rows["key"]) else None
    except (pa.ArrowException, OSError, KeyError, ValueError):  # a cast has errors of its own
        return None


def _parse(data: bytes) -> pa.Table:
    return tables.table_from_bytes(data, PART_SCHEMA.names).cast(PART_SCHEMA)
