"""Packing many small files into a few Parquet shards, which object stores and network disks read faster.

A packed data set works like any other: its catalog has the same rows and the same fingerprint. Its URIs name rows of
shards (`SHARD.parquet#ROW`), which `catdog.storage` reads like files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from catdog import storage
from catdog.data import catalog, datasets
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.events import EventHandler, Progress

SHARD_ROWS = 32 * storage.PACKED_GROUP
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("size", pa.int64()),
        pa.field("bytes", pa.binary()),
    ]
)
_READERS = 16


def pack_dataset(data: str, dest: str, on_event: EventHandler | None = None) -> tuple[Catalog, int]:
    """Writes the images of a data set, byte for byte, into shards, and a catalog for them.

    The operation may be repeated. A missing file remains an unreadable image in the packed data set.

    Args:
        data: URI of a prepared data set.
        dest: URI of the folder to create.
        on_event: told of `Progress`.

    Returns:
        The packed data set's catalog, with the same fingerprint, and the number of missing files.

    Raises:
        UsageError: the data set does not exist, or `dest` is its folder.
        CatdogError: `dest` has other content, an existing file could not be read, or a shard could not be written.
    """
    source, root = catalog.read_catalog(data), storage.absolute(dest)
    if root == source.root:
        raise UsageError(f"DATA and DEST are the same folder ({root}); give another DEST")
    if catalog.has_catalog(root):
        previous = catalog.read_catalog(root)
        if previous.fingerprint != source.fingerprint:
            raise CatdogError(f"DEST {root} holds another data set; give a new or empty folder")
        return previous, _count_absent(root)
    uris, absent = [], 0

    def tell(before: int, done: int) -> None:
        if on_event is not None:
            on_event(Progress("packing", before + done, source.table.num_rows))

    with datasets.creating_dataset(root, ["shards", catalog.SAMPLE_NAME], "`catdog data pack`") as held:
        for number, start in enumerate(range(0, source.table.num_rows, SHARD_ROWS)):
            rows = source.table.slice(start, SHARD_ROWS)
            shard = storage.join(root, "shards", f"images-{number:05d}.parquet")
            absent += _write_shard(shard, rows, functools.partial(tell, start))
            uris += [storage.packed(shard, row) for row in range(rows.num_rows)]
        sample = storage.join(source.root, catalog.SAMPLE_NAME)
        if storage.kind(sample) == "file":
            storage.write_bytes(storage.join(root, catalog.SAMPLE_NAME), storage.read_bytes(sample))
        table = source.table.set_column(2, catalog.SCHEMA.field("uri"), pa.array(uris, pa.string()))
        packed = dataclasses.replace(source, table=table, root=root)
        held.require_held()
        packed.write()
    return packed, absent


def _count_absent(root: str) -> int:
    """Number of files that were missing when an existing data set was packed."""
    folder = storage.join(root, "shards")
    absent = 0
    for name in storage.list_names(folder):
        filesystem, path = storage.resolve(storage.join(folder, name))
        absent += pq.read_table(path, filesystem=filesystem, columns=["size"])["size"].null_count
    return absent


def _write_shard(shard: str, rows: pa.Table, on_done: Callable[[int], None]) -> int:
    """Writes a shard, uncompressed because images are compressed; returns the number of missing files.

    `on_done` gets the number of rows that are written.
    """
    absent = 0
    with (
        ThreadPoolExecutor(_READERS) as pool,
        storage.writing(shard) as stream,
        pq.ParquetWriter(stream, SCHEMA, compression="none", use_dictionary=["split"]) as writer,
    ):
        for start in range(0, rows.num_rows, storage.PACKED_GROUP):
            group = rows.slice(start, storage.PACKED_GROUP)
            files = list(pool.map(_read, group["uri"].to_pylist()))
            absent += files.count(None)
            columns = {name: group[name].combine_chunks() for name in ("key", "id", "split", "label")}
            sizes = [None if data is None else len(data) for data in files]
            writer.write_table(pa.table(columns | {"size": sizes, "bytes": files}, schema=SCHEMA))
            on_done(start + group.num_rows)
    return absent


def _read(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError, storage.NotPackedError):
        return None
    except OSError as error:
        # The error may be temporary; packing without the file would lose the image permanently.
        raise CatdogError(f"could not read {uri}: {error.strerror or error}; run the same command again") from error
