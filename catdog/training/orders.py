"""The orders of training images: which ones make up the batches of an epoch, from seed, epoch and keys alone."""

from __future__ import annotations

import numpy as np

from catdog import rng, storage

# Blocks whose images are shuffled together.
WINDOW = 16


def full_shuffle(hashes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Shuffles all images.

    Args:
        hashes: uint64, N: of the images' keys.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        int64, N: places in `hashes`.
    """
    return np.argsort(_random(hashes, seed, epoch), kind="stable")


def block_shuffle(hashes: np.ndarray, labels: np.ndarray, blocks: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Shuffles blocks of images, and the images of every `WINDOW` blocks together, so that few blocks are read at once.

    Data sets are often sorted by class, so the blocks of each class are spread evenly over the epoch: otherwise a
    window could have few images of one class.

    Args:
        hashes: uint64, N: of the images' keys.
        labels: int, N: 0 or 1.
        blocks: int64, N: the block that each image is in.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        int64, N: places in `hashes`.
    """
    _, first, block, sizes = np.unique(blocks, return_index=True, return_inverse=True, return_counts=True)
    random = rng.uniform(2 * seed + rng.Stream.BLOCK_ORDER, epoch, hashes[first], 2)
    # The class of most of its images.
    kind = np.bincount(block, labels) * 2 > sizes
    place = np.empty(len(first))
    for one in (False, True):
        mine = np.flatnonzero(kind == one)
        mine = mine[np.argsort(random[mine, 0], kind="stable")]
        place[mine] = (np.arange(len(mine)) + random[mine, 1]) / max(1, len(mine))
    window = np.empty(len(first), np.int64)
    window[np.argsort(place, kind="stable")] = np.arange(len(first)) // WINDOW
    return np.lexsort((_random(hashes, seed, epoch), window[block]))


def _random(hashes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    return rng.uniform(2 * seed + rng.Stream.ORDER, epoch, hashes, 1)[:, 0]


def block_of(rows: np.ndarray) -> np.ndarray:
    """The blocks of catalog rows, int64, N: those rows that a packed data set keeps together."""
    return rows // storage.PACKED_GROUP
