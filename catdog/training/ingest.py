"""Training's images: a Ray Data job decodes each once into shared memory; every worker takes its batches from there.

Which images make up a global batch, and how each is augmented, follows from seed, epoch and key; each worker takes
every `world`-th image of it. So one worker or four compute the same steps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.data

from catdog import cluster, resources, rng
from catdog.data import isolation
from catdog.errors import CatdogError
from catdog.events import EventHandler, Progress
from catdog.prefetch import prefetch
from catdog.training import augmentation
from catdog.training.config import ResolvedConfig
from catdog.training.request import Augmentation

_BLOCK_ROWS = 256


def require_memory(count: int, size: int) -> None:
    """Makes sure that every node can hold all decoded images.

    Args:
        count: images.
        size: S, in pixels.

    Raises:
        CatdogError: they do not fit; says how much is needed and there.
    """
    if not room(count, size):
        needed, there = count * size * size * 3, resources.object_store_bytes()
        raise CatdogError(
            f"the decoded images need {needed / 1e9:.1f} GB of Ray's shared memory on each node, and the smallest has "
            f"{there / 1e9:.1f} GB; use a smaller --image-size, or start Ray with a larger --object-store-memory"
        )


def room(count: int, size: int) -> int:
    """How many times every node can hold so many decoded images."""
    return int(0.9 * resources.object_store_bytes() / max(1, count * size * size * 3))


def decode(splits: dict[str, pa.Table], size: int, on_event: EventHandler) -> dict[str, list[ray.ObjectRef]]:
    """Decodes splits into Ray's shared memory, on all CPUs.

    Args:
        splits: the rows of each, N, column uri.
        size: S, in pixels.
        on_event: told of `Progress`.

    Returns:
        Blocks of each split, with the columns row (0 to N-1), pixels (S·S·3 bytes, uint8 RGB), status and detail. They
        live as long as their references are held.

    Raises:
        CatdogError: a task failed for another reason than an image.
    """
    done, total = 0, sum(rows.num_rows for rows in splits.values())
    found: dict[str, list[ray.ObjectRef]] = {}
    decode = functools.partial(_decode_block, size=size)
    on_event(Progress("decoding", 0, total))
    for split, rows in splits.items():
        blocks = [
            pa.table({"row": range(start, start + part.num_rows), "uri": part["uri"]})
            for start in range(0, rows.num_rows, _BLOCK_ROWS)
            if (part := rows.slice(start, _BLOCK_ROWS))
        ]
        dataset = ray.data.from_arrow(blocks).map_batches(decode, batch_format="pyarrow", batch_size=None)
        found[split] = []
        with cluster.ray_errors("decoding the images failed: {cause}"):
            # As `materialize`, which says nothing until all is done.
            for bundle in dataset.iter_internal_ref_bundles():
                found[split] += bundle.block_refs
                done += bundle.num_rows() or 0
                on_event(Progress("decoding", done, total))
    return found


def _decode_block(block: pa.Table, size: int) -> pa.Table:
    rows = block["row"]
    what = f"decoding images {rows[0]}-{rows[-1]}"
    pixels, statuses, details = isolation.read_batch(block["uri"].to_pylist(), [size], what)
    column = pa.Array.from_buffers(pa.binary(size * size * 3), block.num_rows, [None, pa.py_buffer(pixels[size])])
    return pa.table({"row": rows, "pixels": column, "status": statuses, "detail": details})


@dataclass
class Pixels:
    """A split's decoded images, spread over blocks of Ray's shared memory, and read from there without a copy.

    Attributes:
        blocks: uint8 arrays n×S×S×3.
        where: int, N×2: block and place in it of each row, -1 where the image is unreadable.
        rejected: row and reason of each unreadable image.
    """

    blocks: list[np.ndarray]
    where: np.ndarray
    rejected: list[tuple[int, str]]

    @classmethod
    def fetch(cls, refs: list[ray.ObjectRef], rows: int, size: int) -> Pixels:
        """Maps the blocks that `decode` made into this process.

        Args:
            refs: of the blocks.
            rows: N, how many rows the split has.
            size: S, in pixels.
        """
        blocks: list[np.ndarray] = []
        rejected: list[tuple[int, str]] = []
        where = np.full((rows, 2), -1, np.int64)
        for table in ray.get(refs):
            for batch in table.to_batches():
                buffer = batch.column("pixels").buffers()[1]
                start = batch.column("pixels").offset
                array = np.frombuffer(buffer, np.uint8).reshape(-1, size, size, 3)[start : start + batch.num_rows]
                row = batch.column("row").to_numpy()
                readable = np.array(batch.column("status").to_pylist()) != "unreadable"
                where[row[readable], 0] = len(blocks)
                where[row[readable], 1] = np.flatnonzero(readable)
                rejected += [
                    (int(row[at]), batch.column("detail")[int(at)].as_py()) for at in np.flatnonzero(~readable)
                ]
                blocks.append(array)
        return cls(blocks, where, sorted(rejected))

    def images(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Images by row, uint8 S×S×3 each, without a copy."""
        return (self.blocks[block][place] for block, place in self.where[rows])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Gathers images by row: uint8, len(rows)×S×S×3."""
        return np.stack(list(self.images(rows)))

    @property
    def readable(self) -> np.ndarray:
        """The rows that have pixels, in order."""
        return np.flatnonzero(self.where[:, 0] >= 0)


@dataclass
class Batches:
    """One worker's share of every global batch.

    Attributes:
        config: its seed, batch size, augmentation and what else changes images.
        pixels: of the training images.
        labels: int64, N, 0 or 1.
        hashes: uint64, N: of the images' keys, which all that is drawn for an image follows from.
        rank: of this worker.
        world: how many workers there are.
    """

    config: ResolvedConfig
    pixels: Pixels
    labels: np.ndarray
    hashes: np.ndarray
    rank: int
    world: int

    @property
    def size(self) -> int:
        """Images in a global batch: fewer than asked for where there are not so many."""
        return min(self.config.data.batch_size, len(self.pixels.readable))

    @property
    def steps(self) -> int:
        """Global batches in an epoch; images left over wait for the next one's order."""
        return len(self.pixels.readable) // self.size

    def epoch(self, epoch: int) -> Iterator[list[np.ndarray]]:
        """Gathers an epoch's batches, each while the one before is trained on.

        Args:
            epoch: counted from 0.

        Yields:
            Of this worker's n images: augmented uint8 pixels n×T×T×3, where T is the size to train at, float32 labels
            n, float32 weights of their losses n, and float32 shares in MixUp n. With MixUp the images to mix in, and
            all that goes with them, follow in a second half.
        """
        config, seed, size, steps = self.config, self.config.run.seed, self.size, self.steps
        rows, labels = self.pixels.readable, self.labels.astype(np.float32)
        random = rng.uniform(2 * seed + rng.Stream.ORDER, epoch, self.hashes[rows], 1)[:, 0]
        order = rows[np.argsort(random, kind="stable")]
        random = rng.uniform(2 * seed + rng.Stream.AUGMENTATION, epoch, self.hashes, augmentation.DRAWS)
        changes = augmentation.draw_changes(random, config.augmentation, config.model.image_size, config.train_size)
        shares = np.ones(len(labels), np.float32)
        if config.data.mixup:
            from scipy import stats

            drawn = rng.uniform(rng.Stream.MIXUP + seed, epoch, self.hashes, 1)[:, 0]
            shares = stats.beta.ppf(drawn, config.data.mixup, config.data.mixup).astype(np.float32)
        weights = np.ones(len(labels), np.float32)
        if config.data.balance:
            weights = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean())).astype(np.float32)

        def share(step: int) -> list[np.ndarray]:
            batch = order[step * size : (step + 1) * size]
            mine = batch[self.rank :: self.world]
            if config.data.mixup:
                mine = np.concatenate([mine, np.roll(batch, 1)[self.rank :: self.world]])
            return [self._augmented(mine, changes[mine]), labels[mine], weights[mine], shares[mine]]

        yield from prefetch(share, range(steps))

    def _augmented(self, rows: np.ndarray, changes: np.ndarray) -> np.ndarray:
        config, size = self.config, self.config.train_size
        if config.augmentation == Augmentation() and size == config.model.image_size:
            return self.pixels.take(rows)
        out = np.empty((len(rows), size, size, 3), np.uint8)
        for image, change, place in zip(self.pixels.images(rows), changes, out, strict=True):
            augmentation.apply_change(image, change, config.augmentation, place)
        return out
