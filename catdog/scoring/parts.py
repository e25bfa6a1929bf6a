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
from catdog.choices import EngineName
from catdog.data import images
from catdog.errors import CatdogError
from catdog.inference.predictor import Predictions

PART_ROWS = 512
# Where so many parts or more would be left, each has twice the rows, and so on, up to eight times. A larger part would
# lose too much work with its process.
_MOST_LEFT, _MOST_GROWTH = 2048, 8
# Of a part's decoded pixels, which a task that reads ahead of a GPU holds, in bytes.
_MOST_DECODED = 256 << 20
# The last parts of a split are smaller, so that no actor ends long before another.
_TAIL_PARTS, _TAIL_SHARE = 4, 4
# Parts that are read at the same time: a bucket takes some hundredths of a second for each.
READERS = 16

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
        stop: the row after its last.
        split_rows: all rows of the split, of the catalog.
        uri: of the file.
    """

    split: str
    start: int
    stop: int
    split_rows: pa.Table
    uri: str

    @property
    def count(self) -> int:
        """Number of its rows."""
        return self.stop - self.start

    @property
    def rows(self) -> pa.Table:
        """The range, of the catalog; cut when it is wanted, since thousands of such tables would take more than it."""
        return self.split_rows.slice(self.start, self.count)


def most_growth(engine: EngineName, sizes: Sequence[int]) -> int:
    """How many times `PART_ROWS` a part may have: a power of two.

    Args:
        engine: what predicts; ONNX Runtime runs on CPUs only, where nothing is decoded ahead.
        sizes: that each image is decoded to, in pixels.
    """
    growth, held = 1, PART_ROWS * sum(size * size * 3 for size in sizes)
    while growth < _MOST_GROWTH and (engine == "onnx" or 2 * growth * held <= _MOST_DECODED):
        growth *= 2
    return growth


def cut_split(
    split: str, rows: pa.Table, batch_size: int, origin: Sequence[str], folder: str, growth: int = 1
) -> list[Part]:
    """Cuts a split into parts.

    Args:
        split: its name.
        rows: of the catalog.
        batch_size: images that are predicted together.
        origin: everything that the parts' numbers follow from, but for the split and their ranges.
        folder: URI of the folder that the files are in.
        growth: how many times `PART_ROWS` a part of a large split may have, from `most_growth`.

    Returns:
        The parts, in catalog order.
    """
    mark = hashlib.sha256("\0".join([*origin, split]).encode()).hexdigest()[:16]
    parts = []
    for start, stop in ranges(rows.num_rows, batch_size, growth):
        name = f"{split}-{start:08d}-{stop:08d}-{mark}.parquet"
        parts.append(Part(split, start, stop, rows, storage.join(folder, name)))
    return parts


def ranges(count: int, batch_size: int, growth: int = 1) -> Iterator[tuple[int, int]]:
    """The ranges of a split of so many rows, none of which is less than a batch if it can be.

    They depend on nothing else, so that a larger cluster can go on with the parts of a smaller one. The fewer rows are
    left, the fewer a part has: many actors end at about the same time.
    """
    tail = max(0, count // PART_ROWS - _TAIL_PARTS) * PART_ROWS
    start = 0
    while start < count:
        size = max(batch_size, PART_ROWS // _TAIL_SHARE)
        if start < tail:
            size = PART_ROWS
            while size < growth * PART_ROWS and count - start >= _MOST_LEFT * size:
                size *= 2
        stop = min(count, start + size)
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
