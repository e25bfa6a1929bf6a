"""One part of a scored split: what an actor makes of a range of the catalog, and how the files it leaves are merged.

A part is a fixed range of a split, predicted by one actor call in batches of one shape, and its file is named after the
range and everything its numbers follow from (`catdog.scoring.score`).
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from catdog import storage
from catdog.data import images
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError
from catdog.evaluation import metrics
from catdog.evaluation.calibration import Applied
from catdog.inference import bundle, engines
from catdog.inference.bundle import ModelBundle
from catdog.resources import EngineName

# By split, what `share` put.
Rows = dict[str, ray.ObjectRef]

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


def is_whole(part: Part) -> bool:
    """Tells whether a part is there and undamaged."""
    return _table(part) is not None


def is_complete(part: Part) -> bool:
    """Tells whether a part need not be made again: it is whole, and misses no file that may be there by now."""
    table = _table(part)
    return table is not None and not pc.any(pc.starts_with(table["detail"], images.NOT_READ)).as_py()


def _table(part: Part) -> pa.Table | None:
    if storage.kind(part.uri) != "file":
        return None
    try:
        table = read(part.uri)
        return table if table["key"].equals(part.rows["key"]) else None
    except (pa.ArrowInvalid, OSError, KeyError):
        return None


def read(uri: str) -> pa.Table:
    """Reads one part's file."""
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri)), schema=PART_SCHEMA)


def share(data: Catalog, splits: Iterable[str]) -> Rows:
    """Puts what actors need of each split's rows into Ray's shared memory: columns key, id, uri and label."""
    return {split: ray.put(data.split(split).select(["key", "id", "uri", "label"])) for split in splits}


def block_of(part: Part) -> pa.Table:
    """What an actor is given of a part: one row that says which it is."""
    stop = part.start + part.rows.num_rows
    return pa.table({"split": [part.split], "start": [part.start], "stop": [stop], "uri": [part.uri]})


def read_ahead(block: pa.Table, rows: Rows, sizes: list[int]) -> pa.Table:
    """Decodes a part on behalf of an actor elsewhere, which then gets it as one row."""
    (row,) = block.to_pylist()
    uris = ray.get(rows[row["split"]])["uri"][row["start"] : row["stop"]].to_pylist()
    decoded = pickle.dumps(images.read_batch(uris, sizes), protocol=5)
    return block.append_column("decoded", pa.array([decoded], pa.large_binary()))


class PartScorer:
    """An actor that loads the models once and then turns ranges of the catalog into parts."""

    def __init__(
        self, models: list[str], rows: Rows, engine: EngineName, batch_size: int, threads: int, gpu: bool
    ) -> None:
        if engine == "tensorflow":
            engines.set_up(threads, gpu)
        images.use_one_thread()
        self._bundles = [ModelBundle.load(model, engine, threads) for model in models]
        self._info = bundle.merge_infos([loaded.info for loaded in self._bundles])
        self._sizes = sorted({loaded.info.image_size for loaded in self._bundles})
        self._batch_size = batch_size
        # One for all batches: fresh memory for each made half of an actor's page faults.
        self._pixels = {size: np.empty((batch_size, size, size, 3), np.uint8) for size in self._sizes}
        self._rows = {split: ray.get(ref) for split, ref in rows.items()}

    def __call__(self, block: pa.Table) -> pa.Table:
        """Scores one part.

        Args:
            block: what `block_of` or `read_ahead` made.

        Returns:
            One row about it: node, images, seconds, and by the node's clock when it ended, in seconds since 1970.
        """
        started = time.perf_counter()
        split, start, stop, uri = (block[name][0].as_py() for name in ("split", "start", "stop", "uri"))
        rows = self._rows[split].slice(start, stop - start)
        if "decoded" in block.column_names:
            batches = self._slices(pickle.loads(block["decoded"][0].as_buffer()))
        else:
            batches = self._batches(rows["uri"].to_pylist())
        logits: list[np.ndarray] = []
        statuses: list[str] = []
        details: list[str] = []
        for batch in batches:
            each = [loaded.logits(batch.pixels[loaded.info.image_size]) for loaded in self._bundles]
            logits.append(np.mean(each, axis=0)[: len(batch.statuses)])
            statuses += batch.statuses
            details += batch.details
        unreadable = np.array([status == "unreadable" for status in statuses])
        plain = np.concatenate(logits)
        calibrated = metrics.calibrated(plain, self._info.temperature, self._info.clip)
        part = pa.Table.from_pydict(
            {
                "key": rows["key"],
                "id": rows["id"],
                "label": rows["label"],
                "logit": pa.array(plain, pa.float32(), mask=unreadable),
                "probability": np.where(unreadable, self._info.prior, calibrated),
                "status": statuses,
                "detail": details,
            },
            schema=PART_SCHEMA,
        )
        sink = pa.BufferOutputStream()
        pq.write_table(part, sink, compression="zstd")
        storage.write_bytes(uri, sink.getvalue().to_pybytes())
        node = ray.get_runtime_context().get_node_id()
        seconds = time.perf_counter() - started
        return pa.table({"node": [node], "images": [rows.num_rows], "seconds": [seconds], "ended": [time.time()]})

    # Batches have one shape, padded with zeros: what another shape computes may differ in its last bits.

    def _batches(self, uris: list[str]) -> Iterator[images.Batch]:
        """Reads the files of one batch ahead, in a thread, so that the model need not wait.

        They are decoded in the model's own thread: another one would take turns with it on the same core, and each
        would find the core's cache full of the other's. A batch is good until the next one.
        """
        groups = [uris[start : start + self._batch_size] for start in range(0, len(uris), self._batch_size)]
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(list, images.fetch_all(groups[0]))
            for number in range(len(groups)):
                files = following.result()
                if number + 1 < len(groups):
                    following = ahead.submit(list, images.fetch_all(groups[number + 1]))
                yield images.decode_batch(files, self._pixels)

    def _slices(self, decoded: images.Batch) -> Iterator[images.Batch]:
        """Cuts a part that is decoded already into batches."""
        count = len(decoded.statuses)
        for start in range(0, count, self._batch_size):
            cut = slice(start, start + self._batch_size)
            padding = ((0, max(0, start + self._batch_size - count)), (0, 0), (0, 0), (0, 0))
            pixels = {size: np.pad(array[cut], padding) for size, array in decoded.pixels.items()}
            yield images.Batch(pixels, decoded.statuses[cut], decoded.details[cut])


@dataclass
class Merged:
    """The parts of a split, put together.

    Attributes:
        counts: images by status.
        unreadable: id, key and detail of those that could not be read.
        probabilities: float64, in catalog order; in a file, as nobody needs them all at once.
        judged: key, label, logit, probability, status and digest of each image, of a split with labels.
    """

    counts: dict[str, int]
    unreadable: pa.Table
    probabilities: np.ndarray
    judged: pa.Table | None


def merge(parts: list[Part], data: Catalog, refitted: Applied | None = None) -> Merged:
    """Puts the finished parts of one split together, reading one at a time.

    Args:
        parts: all of the split's, in catalog order.
        data: the catalog.
        refitted: a temperature and a clip other than those that the parts' probabilities have.

    Raises:
        CatdogError: a part is gone.
    """
    labelled = data.is_labelled(parts[0].split)
    statuses: Counter[str] = Counter()
    unreadable, judged = [], []
    with tempfile.TemporaryFile() as file:
        probabilities = np.memmap(file, np.float64, shape=(sum(part.rows.num_rows for part in parts),))
    at = 0
    for part in parts:
        try:
            table = read(part.uri)
        except OSError as error:
            raise CatdogError(
                f"the part {part.uri} is not there any more; --out must be on storage that every node sees, and be of "
                "one run at a time"
            ) from error
        if refitted is not None:
            table = _recalibrated(table, refitted)
        statuses.update(table["status"].to_pylist())
        unreadable.append(table.filter(pc.equal(table["status"], "unreadable")).select(["id", "key", "detail"]))
        probabilities[at : at + table.num_rows] = table["probability"].to_numpy()
        at += table.num_rows
        if labelled:
            known = table.select(["key", "label", "logit", "probability", "status"])
            judged.append(known.append_column("digest", part.rows["digest"]))
    counts = {status: statuses[status] for status in ("ok", "recovered", "unreadable")}
    return Merged(counts, pa.concat_tables(unreadable), probabilities, pa.concat_tables(judged) if labelled else None)


def _recalibrated(table: pa.Table, applied: Applied) -> pa.Table:
    """A part with probabilities of another temperature and clip; an unreadable image keeps the prior."""
    logits = table["logit"].fill_null(0.0).to_numpy()
    anew = pa.array(metrics.calibrated(logits, applied.temperature, applied.clip))
    at = PART_SCHEMA.get_field_index("probability")
    chosen = pc.if_else(table["logit"].is_valid(), anew, table["probability"])
    return table.set_column(at, PART_SCHEMA.field("probability"), chosen)
