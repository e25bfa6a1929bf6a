"""Near-duplicates: all of them, as every pair compared would find, within memory that placeholders do not exhaust."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from catdog.experiments import duplicates
from catdog.experiments.duplicates import near_duplicates

# Earlier images that one is paired with at most.
MOST = 10


def all_pairs(hashes: np.ndarray, distance: int) -> list[list[int]]:
    """Every pair compared, bit by bit; of each later row the nearest earlier ones, the first of equally near ones."""
    words = [int(each) for each in hashes]
    found = []
    for later, word in enumerate(words):
        near = sorted((bin(word ^ other).count("1"), earlier) for earlier, other in enumerate(words[:later]))
        found += [[bits, earlier, later] for bits, earlier in near[:MOST] if bits <= distance]
    return [[earlier, later, bits] for bits, earlier, later in sorted(found)]


def planted(seed: int, groups: int, most: int) -> np.ndarray:
    """Groups of hashes that differ from the first of their group in up to eight bits, or are equal to it; shuffled."""
    random = np.random.default_rng(seed)
    hashes = []
    for first in random.integers(0, 2**64, groups, dtype=np.uint64):
        for _ in range(random.integers(1, most + 1)):
            flipped = random.choice(64, random.integers(0, 9), replace=False).astype(np.uint64)
            change = np.bitwise_xor.reduce(np.uint64(1) << flipped, initial=np.uint64(0))
            hashes.append(first ^ change * np.uint64(random.integers(0, 2)))
    return random.permutation(np.array(hashes, np.uint64))


@pytest.mark.parametrize("distance", [0, 1, 4, 7, 16])
@pytest.mark.parametrize(("groups", "most"), [(60, 5), (4, 60), (1, 200), (200, 1)])
def test_all_pairs_are_found(groups: int, most: int, distance: int) -> None:
    hashes = planted(groups + distance, groups, most)
    expected = all_pairs(hashes, distance)
    assert near_duplicates(hashes, distance).tolist() == expected
    if most <= MOST + 1:  # then it is every pair that there is
        near = np.bitwise_count(hashes[:, None] ^ hashes) <= distance
        assert len(expected) == (near.sum() - len(hashes)) // 2


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
@pytest.mark.parametrize("agreeing", [2, 3, 4])
def test_all_pairs_are_found_by_the_masks_of_many_images(
    agreeing: int, distance: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Millions of images are compared where several bands agree; here few are, as if sorting cost nothing."""
    monkeypatch.setattr(duplicates, "_SORT_COST", 0)
    monkeypatch.setattr(duplicates, "_MOST_AGREEING", agreeing)
    hashes = planted(distance, 60, 5)
    assert near_duplicates(hashes, distance).tolist() == all_pairs(hashes, distance)


def test_few_images_have_few_pairs() -> None:
    assert near_duplicates(np.empty(0, np.uint64), 4).shape == (0, 3)
    assert near_duplicates(np.array([7], np.uint64), 4).shape == (0, 3)
    assert near_duplicates(np.array([7, 7], np.uint64), 4).tolist() == [[0, 1, 0]]
    assert near_duplicates(np.array([0, 0xFF, 1, 0xFE], np.uint64), 1).tolist() == [[0, 2, 1], [1, 3, 1]]


def test_thousands_of_placeholders_take_little_memory() -> None:
    """Once 4,000 of them took 2.1 GB, as every pair was held; here are 20,000, and others almost equal to them."""
    random = np.random.default_rng(0)
    flipped = np.uint64(1) << random.integers(0, 64, (3_000, 3)).astype(np.uint64)
    hashes = np.concatenate([np.zeros(20_000, np.uint64), np.bitwise_xor.reduce(flipped, axis=1)])
    tracemalloc.start()
    try:
        pairs = near_duplicates(hashes, 4)
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most_bytes < 2_000 * len(hashes)
    assert len(pairs) == 10 * 22_990 + 45
    assert np.bincount(pairs[:, 1]).max() == MOST
