"""How images are dealt into folds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from catdog import rng
from catdog.data.catalog import SCHEMA, Catalog
from catdog.experiments import cross_validation


def made_of(digests: list[int | None], labels: list[int]) -> Catalog:
    count = len(labels)
    columns = {
        "key": [f"{number}.jpg" for number in range(count)],
        "id": [str(number) for number in range(count)],
        "uri": [f"/nowhere/{number}.jpg" for number in range(count)],
        "label": labels,
        "split": ["train" if number % 7 else "valid" for number in range(count)],
        "digest": digests,
    }
    return Catalog(pa.table(columns, schema=SCHEMA), ("cat", "dog"), "/nowhere")


def test_copies_lie_in_one_fold_and_folds_stay_stratified() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 600).tolist()
    # Pairs, a few large groups, some with both labels, and images without a digest.
    digests: list[int | None] = [
        int(number) for number in np.concatenate([np.arange(400) // 2, random.integers(0, 9, 100)])
    ]
    digests += [None] * 100
    fold = cross_validation.assign_folds(made_of(digests, labels), 5, 0)
    folds_of: dict[int, set[int]] = {}
    for digest, where in zip(digests, fold, strict=True):
        if digest is not None:
            folds_of.setdefault(digest, set()).add(int(where))
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert len({int(each) for each in fold[500:]}) == 5
    for label in (0, 1):
        sizes = Counter(fold[np.array(labels) == label])
        assert max(sizes.values()) - min(sizes.values()) <= 3


def test_without_copies_folds_are_what_they_were() -> None:
    labels = [int(number % 3 == 0) for number in range(300)]
    digests: list[int | None] = list(range(300))
    fold = cross_validation.assign_folds(made_of(digests, labels), 7, 3)
    # Dealt in turn, in the order of a hash.
    drawn = rng.uniform(3, 4, rng.key_hash([f"{number}.jpg" for number in range(300)]), 1)[:, 0]
    for label in (0, 1):
        mine = np.flatnonzero(np.array(labels) == label)
        assert (fold[mine[np.argsort(drawn[mine], kind="stable")]] == np.arange(len(mine)) % 7).all()
    assert (cross_validation.assign_folds(made_of([None] * 300, labels), 7, 3) == fold).all()
