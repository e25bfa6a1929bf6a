"""Near-duplicates of images, found by their perceptual hashes."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import ray
import ray.data

from catdog import cluster
from catdog.data import isolation
from catdog.data.catalog import Catalog

_HASH_SIZE, _BITS = 32, 64
_BLOCK_ROWS = 256
# Earlier images that one is paired with: of thousands of equal placeholders, all pairs would be millions.
_MOST_EARLIER = 10


def perceptual_hashes(data: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """Computes the perceptual hashes of all images, in a Ray Data job on the current cluster.

    Args:
        data: the catalog.

    Returns:
        Hashes, uint64, M; and their catalog rows, int, M. Unreadable images are left out.

    Raises:
        CatdogError: a task failed.
    """
    uris = data.table["uri"].combine_chunks()
    blocks = [
        pa.table(
            {"row": np.arange(start, min(start + _BLOCK_ROWS, len(uris))), "uri": uris[start : start + _BLOCK_ROWS]}
        )
        for start in range(0, len(uris), _BLOCK_ROWS)
    ]
    with cluster.ray_errors("hashing the images failed: {cause}"):
        done = ray.data.from_arrow(blocks).map_batches(_hash_block, batch_format="pyarrow", batch_size=None)
        table = pa.concat_tables(ray.get(done.to_arrow_refs())).sort_by("row")
    return table["hash"].to_numpy(), table["row"].to_numpy()


def _hash_block(block: pa.Table) -> pa.Table:
    import imagehash
    from PIL import Image

    pixels, statuses, _ = isolation.read_batch(block["uri"].to_pylist(), [_HASH_SIZE], "hashing images")
    rows, hashes = [], []
    for at, row in enumerate(block["row"].to_pylist()):
        if statuses[at] != "unreadable":
            bits = imagehash.phash(Image.fromarray(pixels[_HASH_SIZE][at])).hash.ravel()
            rows.append(row)
            hashes.append(int.from_bytes(np.packbits(bits).tobytes(), "big"))
    return pa.table({"row": pa.array(rows, pa.int64()), "hash": pa.array(hashes, pa.uint64())})


def near_duplicates(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Finds pairs of hashes that differ in few bits, by multi-index hashing (Norouzi, Punjani and Fleet, 2012).

    Each hash is paired with the 10 nearest earlier ones at most, of equally near ones with the first. So there are all
    pairs of up to 11 images that are alike, at most 10·N pairs whatever the hashes are, and the memory that is used
    beside them is less than 2 kB a hash.

    Args:
        hashes: uint64, N.
        distance: the most bits in which a pair may differ, less than 64.

    Returns:
        int64, P×3: earlier row, later row and number of different bits of each pair, the nearest first.
    """
    order = np.argsort(hashes, kind="stable")
    starts = np.r_[True, np.diff(hashes[order]) != 0] if len(hashes) else np.empty(0, bool)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    is_late = np.arange(len(order)) - first >= _MOST_EARLIER
    # The nearest earlier ones of the eleventh and further copies are the first ten, so these need not be looked for.
    copies = [np.stack([order[first[is_late] + at], order[is_late], 0 * first[is_late]]) for at in range(_MOST_EARLIER)]
    rows = np.sort(order[~is_late])
    found = [_search(hashes[rows], distance), *copies]
    found[0][:2] = rows[found[0][:2]]
    earlier, later, bits = np.concatenate(found, axis=1)
    return np.stack([earlier, later, bits], axis=1)[np.lexsort((later, earlier, bits))]


def _search(hashes: np.ndarray, distance: int) -> np.ndarray:
    """The pairs of `near_duplicates`, 3×P, in time that grows with the pairs that agree in one of `distance` + 1 bands.

    Hashes that differ in so many bits agree in at least one band.
    """
    edges = [band * _BITS // (distance + 1) for band in range(distance + 2)]
    masks = [np.uint64((1 << stop) - (1 << start)) for start, stop in itertools.pairwise(edges)]
    held, count = [np.empty((3, 0), np.int64)], 0
    for band, mask in enumerate(masks):
        order = np.argsort(hashes & mask, kind="stable")
        sorted_, values = hashes[order], hashes[order] & mask
        # The k-th step compares each hash with the k-th after it, as long as these agree in the band.
        at = np.arange(len(order))
        for step in itertools.count(1):
            at = at[: np.searchsorted(at, len(order) - step)]
            at = at[values[at] == values[at + step]]
            if not len(at):
                break
            differing = sorted_[at] ^ sorted_[at + step]
            bits = np.bitwise_count(differing)
            near = bits <= distance
            for other in masks[:band]:  # found there already
                near &= (differing & other) != 0
            if not near.any():
                continue
            chosen = at[near]
            held.append(np.stack([order[chosen], order[chosen + step], bits[near]]).astype(np.int64))
            count += len(chosen)
            if count > 2 * _MOST_EARLIER * len(hashes):
                held = [_nearest(np.concatenate(held, axis=1))]
                count = held[0].shape[1]
    return _nearest(np.concatenate(held, axis=1))


def _nearest(pairs: np.ndarray) -> np.ndarray:
    """Pairs, 3×P, without those of a later row that has enough nearer ones."""
    earlier, later, bits = pairs
    order = np.lexsort((earlier, bits, later))
    place = np.arange(len(order))
    starts = np.r_[True, np.diff(later[order]) != 0][: len(order)]
    rank = place - np.maximum.accumulate(np.where(starts, place, 0))
    return pairs[:, order[rank < _MOST_EARLIER]]
