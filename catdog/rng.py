"""Random numbers that depend only on seed, epoch and key, not on timing, order or the number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

import numpy as np
import pyarrow as pa

# Catalog keys: as a column, in which millions take a fifth of the memory.
Keys: TypeAlias = Sequence[str] | pa.ChunkedArray
_PIECE = 65_536


class Stream(IntEnum):
    """Purposes that random numbers are drawn for; the streams of one seed are independent of each other."""

    ORDER = 0
    AUGMENTATION = 1
    HEAD_HELD_OUT = 2
    CROSS_FIT = 3
    FOLD = 4
    CHOICE = 5
    JUDGED = 6
    MIXUP = 2**33
    BLOCK_ORDER = 2**34


def key_hash(keys: Keys) -> np.ndarray:
    """Stable 64-bit hashes of keys, the source of an epoch's order and of augmentation.

    Args:
        keys: N catalog keys.

    Returns:
        uint64, N (FNV-1a over the UTF-8 bytes, from the FNV reference by Fowler, Noll and Vo).
    """
    hashes = np.full(len(keys), 0xCBF29CE484222325, np.uint64)
    for start in range(0, len(keys), _PIECE):
        _hash_piece(keys[start : start + _PIECE], hashes[start : start + _PIECE])
    return hashes


def _hash_piece(keys: Keys, hashes: np.ndarray) -> None:
    """Turns the hashes of no bytes into those of keys; byte by byte, of all keys at once."""
    column = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else pa.array(keys, pa.string())
    ends = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    lengths = np.diff(ends)
    text = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    longest = np.argsort(-lengths, kind="stable")
    starts, found = ends[:-1][longest], hashes[longest]
    left = np.searchsorted(-lengths[longest], -np.arange(lengths.max()), side="left")
    for at, count in enumerate(left):  # so many keys have a byte there
        found[:count] = (found[:count] ^ text[starts[:count] + at]) * np.uint64(0x100000001B3)
    hashes[longest] = found


def uniform(seed: int, epoch: int, hashes: np.ndarray, draws: int) -> np.ndarray:
    """Uniform random numbers that depend only on seed, epoch and key.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        hashes: uint64, N, from `key_hash`.
        draws: D, the number of draws for each key.

    Returns:
        float64 in [0, 1), N×D (SplitMix64: Steele, Lea and Flood, 2014).
    """
    with np.errstate(over="ignore"):
        start = _mix(_mix(np.array([seed], np.uint64) + np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(epoch))
        counters = np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(_mix(hashes ^ start)[:, None] + counters[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
