"""Where training's images are while it runs: decoded or encoded in Ray's shared memory, or in their files.

A Ray Data job reads and decodes each image once before the workers start, so that all stores know which images are
readable, and none of those can harm a worker later. What it keeps of an image is the store's: its pixels, its bytes, or
where it is. Every store gives the same pixels for a row. What lay on a node that is gone is read again from the files.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from catdog import cluster, resources, stall, storage
from catdog.choices import StoreName
from catdog.data import images, isolation
from catdog.errors import CatdogError
from catdog.events import EventHandler, Progress
from catdog.training import orders

_BLOCK_ROWS = 256
# Of a node's shared memory, that images may take.
_SHARE = 0.9
# Files that are read to estimate the size of all, and what is added to the estimate.
_SAMPLE, _MARGIN = 64, 1.15
# Groups of a packed data set that are kept: those of a window of the block shuffle, and of the one that a batch at its
# end begins.
_GROUPS = 2 * orders.WINDOW
# Groups that are read at the same time.
_READERS = 8
_FAILED = "decoding the images failed: {cause}"
# Seconds between looks for blocks of which no node has a copy, and looks after which they are lost. One that Ray had
# written to a disk may be read from there, unless that was the lost node's.
_LOOK_SECONDS, _LOOKS, _SPILLED_LOOKS = 2.0, 2, 15


class StoreChoice(NamedTuple):
    """A store, and why it was chosen.

    Attributes:
        name: of the store.
        why: for people, with the sizes.
        held: bytes of shared memory that it needs on each node.
    """

    name: StoreName
    why: str
    held: int = 0


def choose_store(asked: StoreName | None, uris: pa.ChunkedArray, size: int) -> StoreChoice:
    """Chooses the fastest store that every node has room for.

    Args:
        asked: the store that the user wants, or None.
        uris: string, N: of the files of all images of the run.
        size: S, in pixels.

    Raises:
        CatdogError: there is no room for the one that was asked for; says how much is needed and there.
    """
    decoded, there = len(uris) * size * size * 3, resources.object_store_bytes()
    most = _SHARE * there
    if asked == "files":
        return StoreChoice("files", "read again in each epoch, as asked for")
    if asked != "encoded" and decoded <= most:
        why = f"decoded, {_gigabytes(decoded)} of {_gigabytes(there)} of shared memory a node"
        return StoreChoice("decoded", why, decoded)
    too_large = f"decoded they need {_gigabytes(decoded)} of shared memory, and the smallest node has "
    if asked == "decoded":
        raise CatdogError(
            f"--store decoded received, but {too_large}{_gigabytes(there)}; leave it out, use a smaller --image-size, "
            "or start Ray with a larger --object-store-memory"
        )
    encoded = _encoded_bytes(uris)
    if encoded <= most:
        why = "as asked for" if asked else f"{too_large}{_gigabytes(there)}"
        return StoreChoice("encoded", f"encoded, {_gigabytes(encoded)} of shared memory a node ({why})", encoded)
    if asked:
        raise CatdogError(
            f"--store encoded received, but the files need {_gigabytes(encoded)} of shared memory, and the smallest "
            f"node has {_gigabytes(there)}; leave it out, or start Ray with a larger --object-store-memory"
        )
    return StoreChoice(
        "files", f"read again in each epoch ({too_large}{_gigabytes(there)}; encoded {_gigabytes(encoded)})"
    )


def room(count: int, size: int) -> int:
    """How many times every node can hold so many decoded images of a size."""
    return int(_SHARE * resources.object_store_bytes() / max(1, count * size * size * 3))


def _encoded_bytes(uris: pa.ChunkedArray) -> int:
    """Estimates the size of all files from a few."""
    chosen = uris.take(pa.array(np.linspace(0, len(uris) - 1, min(_SAMPLE, len(uris))).astype(int))).to_pylist()
    sizes = [len(data) for data in images.fetch_all(chosen) if isinstance(data, bytes)]
    return int(_MARGIN * len(uris) * np.mean(sizes)) if sizes else 0


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


class LoadedImages(NamedTuple):
    """A split's images in Ray's shared memory, spread over the cluster's nodes.

    Attributes:
        blocks: references to tables with the columns row (0 to N-1), status, detail, and pixels (S·S·3 bytes, uint8
            RGB), data (the file) or uri. They live as long as the references are held.
        rows: a reference to a table with the columns row and uri, which is on the driver's node.
        size: S, in pixels.
        store: the store that the blocks are for.
    """

    blocks: list[ray.ObjectRef]
    rows: ray.ObjectRef
    size: int
    store: StoreName


def load_images(
    splits: dict[str, pa.Table], size: int, store: StoreName, on_event: EventHandler
) -> dict[str, LoadedImages]:
    """Reads and decodes splits on all CPUs, and keeps what a store needs in Ray's shared memory.

    Args:
        splits: the rows of each, N, column uri.
        size: S, in pixels.
        store: where the images are to be.
        on_event: told of `Progress`.

    Returns:
        The images of each split.

    Raises:
        CatdogError: a task failed for another reason than an image.
    """
    done, total = 0, sum(rows.num_rows for rows in splits.values())
    found: dict[str, LoadedImages] = {}
    load = functools.partial(_load_block, size=size, store=store)
    on_event(Progress("decoding", 0, total))
    for split, rows in splits.items():
        numbered = pa.table({"row": range(rows.num_rows), "uri": rows["uri"]})
        dataset = ray.data.from_arrow(_in_blocks(numbered)).map_batches(load, batch_format="pyarrow", batch_size=None)
        found[split] = LoadedImages([], ray.put(numbered), size, store)
        with cluster.ray_errors(_FAILED):
            # As `materialize`, which says nothing until all is done.
            for bundle in dataset.iter_internal_ref_bundles():
                found[split].blocks.extend(bundle.block_refs)
                done += bundle.num_rows() or 0
                on_event(Progress("decoding", done, total))
    return found


def _in_blocks(rows: pa.Table) -> list[pa.Table]:
    return [rows.slice(start, _BLOCK_ROWS) for start in range(0, rows.num_rows, _BLOCK_ROWS)]


def _load_block(block: pa.Table, size: int, store: StoreName) -> pa.Table:
    rows, uris = block["row"], block["uri"].to_pylist()
    pixels = {size: np.empty((len(uris), size, size, 3), np.uint8)}
    with isolation.surviving_decoder(f"decoding images {rows[0]}-{rows[-1]}", [size]) as decode:
        files = list(images.fetch_all(uris))
        _, statuses, details = decode(files, pixels)
    kept: pa.Array | pa.ChunkedArray
    if store == "decoded":
        name = "pixels"
        kept = pa.Array.from_buffers(pa.binary(size * size * 3), len(uris), [None, pa.py_buffer(pixels[size])])
    elif store == "encoded":
        pairs = zip(files, statuses, strict=True)
        name, kept = "data", pa.array([None if status == "unreadable" else data for data, status in pairs], pa.binary())
    else:
        name, kept = "uri", block["uri"]
    return pa.table({"row": rows, name: kept, "status": statuses, "detail": details})


def find_blocks(loaded: LoadedImages, cpus: int, on_event: Callable[[Progress], None]) -> list[ray.ObjectRef]:
    """Waits until a split's blocks are on this node, and decodes those again that lay on nodes that are gone.

    Ray decodes them again by itself, as soon as a CPU is free. While a run's workers wait for that, none may ever be.

    Args:
        loaded: the split.
        cpus: how many tasks may decode at a time.
        on_event: told of `Progress` where something is decoded again.

    Returns:
        References to blocks with every row.

    Raises:
        CatdogError: a task failed for another reason than an image.
    """
    kept = _blocks_in_reach(loaded.blocks)
    if len(kept) == len(loaded.blocks):
        return kept
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    load = ray.remote(_load_block).options(
        num_cpus=0,  # those of the worker that waits
        max_retries=isolation.MOST_DEATHS,
        scheduling_strategy=here,
    )
    with cluster.ray_errors(_FAILED):
        known = [table["row"].to_numpy() for table in ray.get(kept)]
        rows = ray.get(loaded.rows)
        lost = rows.filter(~np.isin(rows["row"].to_numpy(), np.concatenate([np.empty(0, np.int64), *known])))
        made: list[ray.ObjectRef] = []
        running: list[ray.ObjectRef] = []
        done = 0
        on_event(Progress("decoding", done, lost.num_rows))
        for block in _in_blocks(lost):
            if len(running) == cpus:
                ready, running = ray.wait(running)
                done += sum(table.num_rows for table in ray.get(ready))
                on_event(Progress("decoding", done, lost.num_rows))
            made.append(load.remote(block, loaded.size, loaded.store))
            running.append(made[-1])
        ray.get(running)
    on_event(Progress("decoding", lost.num_rows, lost.num_rows))
    return kept + made


def _blocks_in_reach(blocks: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """Fetches blocks to this node; returns those that are there."""
    waiting, lost = blocks, set[ray.ObjectRef]()
    looks = Counter[ray.ObjectRef]()  # in a row, that found no copy of a block on any node
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_LOOK_SECONDS)
        if ready:
            stall.beat()
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for block, place in ray.experimental.get_object_locations(waiting).items():
            looks[block] = 0 if alive & set(place["node_ids"]) else looks[block] + 1
            if looks[block] >= (_SPILLED_LOOKS if place["did_spill"] else _LOOKS):
                lost.add(block)
        waiting = [block for block in waiting if block not in lost]
    return [block for block in blocks if block not in lost]


class ImageStore(ABC):
    """A split's images by row, spread over blocks.

    Attributes:
        where: int64, N×2: block and place in it of each row, -1 where the image is unreadable.
        rejected: row and reason of each unreadable image.
    """

    def __init__(self, where: np.ndarray, rejected: list[tuple[int, str]]) -> None:
        self.where = where
        self.rejected = rejected

    @property
    def readable(self) -> np.ndarray:
        """The rows that have an image, in order."""
        return np.flatnonzero(self.where[:, 0] >= 0)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Gathers images by row: uint8, len(rows)×S×S×3."""
        return np.stack(list(self.images(rows)))

    @abstractmethod
    def images(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Gives images by row, uint8 S×S×3 each."""


class DecodedStore(ImageStore):
    """Images in shared memory, which are read from there without a copy."""

    def __init__(self, blocks: list[np.ndarray], where: np.ndarray, rejected: list[tuple[int, str]]) -> None:
        """Takes blocks, uint8 arrays n×S×S×3."""
        super().__init__(where, rejected)
        self._blocks = blocks

    def images(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Gives images by row, uint8 S×S×3 each, without a copy."""
        return (self._blocks[block][place] for block, place in self.where[rows])


class EncodedStore(ImageStore):
    """Files in shared memory, which are decoded whenever they are wanted."""

    def __init__(self, blocks: list[pa.Array], where: np.ndarray, rejected: list[tuple[int, str]], size: int) -> None:
        """Takes blocks, binary arrays of files, and the size to decode to."""
        super().__init__(where, rejected)
        self._blocks, self._size = blocks, size

    def images(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Gives images by row, uint8 S×S×3 each."""
        for block, place in self.where[rows]:
            yield images.decode_image(self._blocks[block][int(place)].as_py(), self._size).pixels


class FileStore(ImageStore):
    """Files where they are, which are read and decoded whenever they are wanted."""

    def __init__(self, blocks: list[pa.Array], where: np.ndarray, rejected: list[tuple[int, str]], size: int) -> None:
        """Takes blocks, arrays of URIs, and the size to decode to."""
        super().__init__(where, rejected)
        self._blocks, self._size = blocks, size
        first = blocks[0][0].as_py()
        self._readers = None
        if storage.is_packed(first):
            storage.keep_groups(_GROUPS)
            self._readers = None if storage.is_local(first) else ThreadPoolExecutor(_READERS)

    def images(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Gives images by row, uint8 S×S×3 each.

        Raises:
            CatdogError: a file that could be read at the start of the run cannot be read any more.
        """
        uris = [self._blocks[block][int(place)].as_py() for block, place in self.where[rows]]
        for uri, data in zip(uris, self._fetch(uris), strict=True):
            decoded = data if isinstance(data, str) else images.decode_image(data, self._size)
            why = decoded if isinstance(decoded, str) else decoded.detail * (decoded.status == "unreadable")
            if isinstance(decoded, str) or why:
                raise CatdogError(f"{uri} could be read when the run began, and cannot any more: {why}")
            yield decoded.pixels

    def _fetch(self, uris: list[str]) -> Iterator[bytes | str]:
        if self._readers is None:
            yield from images.fetch_all(uris)
            return
        for start in range(0, len(uris), _GROUPS):  # of no more groups than are kept, each read once, several at a time
            some = uris[start : start + _GROUPS]
            list(self._readers.map(images.fetch, {storage.packed_group(uri): uri for uri in some}.values()))
            yield from map(images.fetch, some)


def open_store(blocks: list[ray.ObjectRef], rows: int, size: int) -> ImageStore:
    """Opens a split's blocks in this process.

    Args:
        blocks: references, of `LoadedImages` or `find_blocks`.
        rows: N, how many rows the split has.
        size: S, in pixels.
    """
    opened: list[Any] = []
    rejected: list[tuple[int, str]] = []
    where = np.full((rows, 2), -1, np.int64)
    kept = "pixels"
    for table in ray.get(blocks):
        for batch in table.to_batches():
            kept = batch.schema.names[1]
            row = batch.column("row").to_numpy()
            readable = np.array(batch.column("status").to_pylist()) != "unreadable"
            where[row[readable], 0] = len(opened)
            where[row[readable], 1] = np.flatnonzero(readable)
            rejected += [(int(row[at]), batch.column("detail")[int(at)].as_py()) for at in np.flatnonzero(~readable)]
            column = batch.column(kept)
            opened.append(_pixels(column, size) if kept == "pixels" else column)
    rejected.sort()
    if kept == "pixels":
        return DecodedStore(opened, where, rejected)
    images.use_one_thread()
    return (EncodedStore if kept == "data" else FileStore)(opened, where, rejected, size)


def _pixels(column: pa.Array, size: int) -> np.ndarray:
    pixels = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, size, size, 3)
    return pixels[column.offset : column.offset + len(column)]
