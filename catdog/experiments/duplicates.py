"""Near-duplicates of images, found by their perceptual hashes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyarrow as pa
import ray
import ray.data

from catdog import cluster
from catdog.data import isolation
from catdog.data.catalog import Catalog

_HASH_SIZE, _BITS = 32, 64
# Images of a task: more where there would be too many tasks for one driver.
_BLOCK_ROWS, _MOST_BLOCK_ROWS, _MANY_BLOCKS = 256, 4096, 8192
# Of a mask, to sort by it, as comparisons of a pair for each hash; and the most bands of a mask.
_SORT_COST, _MOST_AGREEING = 30, 4
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
    uris = data.table["uri"]
    rows = min(max(_BLOCK_ROWS, len(uris) // _MANY_BLOCKS), _MOST_BLOCK_ROWS)
    blocks = [
        pa.table({"row": np.arange(start, min(start + rows, len(uris))), "uri": uris[start : start + rows]})
        for start in range(0, len(uris), rows)
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
    """The pairs of `near_duplicates`, 3×P, in time that grows with the pairs that agree in the bits of one mask."""
    masks = _masks(len(hashes), distance)
    held, count = [np.empty((3, 0), np.int64)], 0
    for number, mask in enumerate(masks):
        order = np.argsort(hashes & mask, kind="stable")
        sorted_, values = hashes[order], hashes[order] & mask
        # The k-th step compares each hash with the k-th after it, as long as these agree in the mask.
        at = np.arange(len(order))
        for step in itertools.count(1):
            at = at[: np.searchsorted(at, len(order) - step)]
            at = at[values[at] == values[at + step]]
            if not len(at):
                break
            bits = np.bitwise_count(sorted_[at] ^ sorted_[at + step])
            near = bits <= distance
            chosen, bits = at[near], bits[near]
            differing = sorted_[chosen] ^ sorted_[chosen + step]
            for other in masks[:number]:  # found there already
                new = (differing & other) != 0
                chosen, bits, differing = chosen[new], bits[new], differing[new]
            if not len(chosen):
                continue
            held.append(np.stack([order[chosen], order[chosen + step], bits]).astype(np.int64))
            count += len(chosen)
            if count > 2 * _MOST_EARLIER * len(hashes):
                held = [_nearest(np.concatenate(held, axis=1))]
                count = held[0].shape[1]
    return _nearest(np.concatenate(held, axis=1))


def _masks(count: int, distance: int) -> list[np.uint64]:
    """Sets of bits such that two hashes which differ in `distance` bits or fewer agree in all bits of one set.

    Of `distance` + k bands, such hashes agree in k at least. A mask is k of the bands: with a greater k there are more
    masks, each of which costs a sort, but fewer hashes agree in one by chance. So the best k grows with the hashes.
    """

    def cost(agreeing: int) -> float:
        bands = distance + agreeing
        by_chance = count * count / 2 / 2.0 ** (_BITS * agreeing / bands)
        return math.comb(bands, agreeing) * (by_chance + _SORT_COST * count)

    agreeing = min(range(1, _MOST_AGREEING + 1), key=cost)
    agreeing = min(agreeing, _BITS - distance)
    edges = [band * _BITS // (distance + agreeing) for band in range(distance + agreeing + 1)]
    bands = [(1 << stop) - (1 << start) for start, stop in itertools.pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in itertools.combinations(bands, agreeing)]


def _nearest(pairs: np.ndarray) -> np.ndarray:
    """Pairs, 3×P, without those of a later row that has enough nearer ones."""
    earlier, later, bits = pairs
    order = np.lexsort((earlier, bits, later))
    place = np.arange(len(order))
    starts = np.r_[True, np.diff(later[order]) != 0][: len(order)]
    rank = place - np.maximum.accumulate(np.where(starts, place, 0))
    return pairs[:, order[rank < _MOST_EARLIER]]
