"""Orders of training images: every image once, from seed, epoch and key alone, and few blocks at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from catdog import rng
from catdog.training import orders

# As of a catalog: the first class, then the second, in blocks of 128 rows.
COUNT = 10_000
HASHES = rng.key_hash([f"train/{number}.jpg" for number in range(COUNT)])
LABELS = (np.arange(COUNT) >= 6_000).astype(np.int64)
BLOCKS = orders.block_of(np.arange(COUNT))


def block_shuffle(seed: int, epoch: int) -> np.ndarray:
    return orders.block_shuffle(HASHES, LABELS, BLOCKS, seed, epoch)


def fnv_1a(key: str) -> int:
    value = 14695981039346656037
    for byte in key.encode():
        value = (value ^ byte) * 1099511628211 % 2**64
    return value


def test_keys_are_hashed_by_fnv_1a_as_a_list_and_as_a_column() -> None:
    keys = ["", "a", "foobar", "train/köter.jpg", "猫/" * 90, *(f"train/{number}.jpg" for number in range(70_000))]
    hashes = rng.key_hash(keys)
    assert hashes[[0, 1, 2]].tolist() == [0xCBF29CE484222325, 0xAF63DC4C8601EC8C, 0x85944171F73967E8]  # published
    checked = [*range(5), 40_000, 65_535, 65_536, 70_004]
    assert hashes[checked].tolist() == [fnv_1a(keys[at]) for at in checked]
    column = pa.chunked_array([keys[:3], keys[3:40_000], keys[40_000:]])
    assert (rng.key_hash(column) == hashes).all()
    assert (rng.key_hash(column[7:1_000]) == hashes[7:1_000]).all()
    assert len(rng.key_hash([])) == 0


def test_every_image_comes_once_in_an_order_of_its_own_seed_and_epoch() -> None:
    drawn = [block_shuffle(0, 0), block_shuffle(0, 1), block_shuffle(1, 0), orders.full_shuffle(HASHES, 0, 0)]
    for order in drawn:
        assert (np.sort(order) == np.arange(COUNT)).all()
    assert len({tuple(order) for order in drawn}) == len(drawn)
    assert (block_shuffle(0, 0) == drawn[0]).all()


def test_the_full_shuffle_is_in_the_order_of_random_numbers() -> None:
    drawn = rng.uniform(2 * 7, 3, HASHES, 1)[:, 0]
    assert (orders.full_shuffle(HASHES, 7, 3) == np.argsort(drawn)).all()


@pytest.mark.parametrize("epoch", range(3))
def test_few_blocks_are_open_at_a_time_and_both_classes_are_in_them(epoch: int) -> None:
    order = block_shuffle(5, epoch)
    at = np.arange(COUNT)
    first, last = np.full(BLOCKS.max() + 1, COUNT), np.zeros(BLOCKS.max() + 1, int)
    np.minimum.at(first, BLOCKS[order], at)
    np.maximum.at(last, BLOCKS[order], at)
    open_at_once = [int(((first <= moment) & (last >= moment)).sum()) for moment in range(0, COUNT, 64)]
    assert max(open_at_once) <= orders.WINDOW
    # Within a window both classes have nearly their shares, and batches vary as if drawn from all images.
    batches = LABELS[order][: COUNT // 500 * 500].reshape(-1, 500).mean(axis=1)
    assert abs(batches - LABELS.mean()).max() < 0.16
    # A window is a shuffle of its blocks' images, not one block after the other.
    assert len(set(BLOCKS[order][:64])) >= 10


def test_an_image_that_is_left_out_moves_no_block() -> None:
    whole, kept = block_shuffle(0, 0), np.flatnonzero(np.arange(COUNT) % 128 != 5)
    fewer = kept[orders.block_shuffle(HASHES[kept], LABELS[kept], BLOCKS[kept], 0, 0)]
    assert (fewer == whole[np.isin(whole, kept)]).all()


def test_a_single_block_or_class_is_shuffled_too() -> None:
    for count in (1, 5, 300):
        order = orders.block_shuffle(HASHES[:count], LABELS[:count], BLOCKS[:count], 0, 0)
        assert (np.sort(order) == np.arange(count)).all()
