"""Provenance: which images a model was trained on, and which it was chosen or calibrated on, known by their bytes.

Keys name an image in one data set only; the same photo may lie in another under another name, in another split. The
digests of its bytes (`catalog.digest_of`) are the same everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catdog import tables

SCHEMA = pa.schema([pa.field("digest", pa.uint64(), nullable=False), pa.field("split", pa.string(), nullable=False)])
_NONE = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Provenance:
    """The images that made a model.

    Attributes:
        train: digests of those it was trained on, uint64, ascending.
        valid: digests of those that its epoch was chosen on, and its temperature and clip fitted to; likewise.
        known: these are all. False for a model or a data set from before there were digests.
    """

    train: np.ndarray = field(default_factory=lambda: _NONE)
    valid: np.ndarray = field(default_factory=lambda: _NONE)
    known: bool = False

    @classmethod
    def of(cls, train: pa.Table, valid: pa.Table) -> Provenance:
        """Takes the digests of catalog rows."""
        found = [np.unique(rows["digest"].drop_null().to_numpy()) for rows in (train, valid)]
        return cls(found[0], found[1], known=len(found[0]) > 0)

    @classmethod
    def union(cls, several: Sequence[Provenance]) -> Provenance:
        """Images of a model that is made of several; known where the images of each are known."""
        train, valid = (
            functools.reduce(np.union1d, [getattr(one, split) for one in several], _NONE)
            for split in ("train", "valid")
        )
        return cls(train, valid, known=all(one.known for one in several))

    def trained_on(self, digests: pa.ChunkedArray) -> np.ndarray:
        """Tells of each digest, which may be null, whether it is of a training image: bool, N."""
        return among(digests, self.train)

    def chosen_on(self, digests: pa.ChunkedArray) -> np.ndarray:
        """Tells of each digest, which may be null, whether it is of a validation image: bool, N."""
        return among(digests, self.valid)

    def to_bytes(self) -> bytes:
        """Writes a Parquet file of `SCHEMA`."""
        splits = ["train"] * len(self.train) + ["valid"] * len(self.valid)
        table = pa.table([pa.array(np.concatenate([self.train, self.valid])), pa.array(splits, pa.string())], SCHEMA)
        return tables.table_to_bytes(table)

    @classmethod
    def from_bytes(cls, data: bytes, known: bool) -> Provenance:
        """Reads what `to_bytes` wrote.

        Raises:
            pyarrow.ArrowInvalid: it is something else.
        """
        table = tables.table_from_bytes(data)
        if not table.schema.equals(SCHEMA):
            raise pa.ArrowInvalid(f"columns {table.schema.names}, expected {SCHEMA.names}")
        train, valid = (table["digest"].filter(pc.equal(table["split"], split)) for split in ("train", "valid"))
        return cls(train.to_numpy(), valid.to_numpy(), known)


def among(digests: pa.ChunkedArray, those: np.ndarray) -> np.ndarray:
    """Tells of each digest whether it is one of those; a null is none of them: bool, N."""
    known = digests.is_valid().to_numpy()
    return known & np.isin(digests.fill_null(0).to_numpy(), those)
