"""What scoring's actors are given: the rows of their parts, of pieces of the catalog, in Ray's shared memory."""

from __future__ import annotations

import numpy as np
import pytest
import ray

from catdog.data.catalog import Catalog
from catdog.scoring import actor


@pytest.mark.parametrize("piece", [1, 5, 7, 24, 100])
def test_a_range_of_shared_rows_is_that_of_the_split(
    drawn: Catalog, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "_SHARED_ROWS", piece)
    monkeypatch.setattr(ray, "put", lambda rows: rows)  # no cluster is needed to see what is put
    monkeypatch.setattr(ray, "get", lambda rows: rows)
    shared = actor.share_rows(drawn, ["valid", "test"])
    assert max(rows.num_rows for rows in shared["test"]) <= piece
    random = np.random.default_rng(piece)
    for split in shared:
        rows = drawn.split(split).select(["key", "id", "uri", "label"])
        for start in range(len(rows)):
            stop = int(random.integers(start, len(rows))) + 1
            assert actor.shared_range(shared, split, start, stop).equals(rows.slice(start, stop - start))
