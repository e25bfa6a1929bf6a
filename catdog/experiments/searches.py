"""Searches: named grids of training options. To add one, add an entry to `SEARCHES`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from catdog.errors import unknown


@dataclass(frozen=True)
class Search:
    """A named search.

    Attributes:
        name: value of `--search`.
        summary: one line of description.
        base: fields of `TrainConfig` for every trial.
        grid: fields of `TrainConfig`, with the values of each; all combinations are tried.
    """

    name: str
    summary: str
    base: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)


SEARCHES = {
    search.name: search
    for search in (
        Search(
            "gray-grid",
            "the grid of a TensorBoard tutorial: convolutions, their width, dense layers; 27 runs on grey pixels",
            {"recipe": "gray-cnn"},
            {"conv_layers": [1, 2, 3], "units": [32, 64, 128], "dense_layers": [0, 1, 2]},
        ),
    )
}


def get_search(name: str) -> Search:
    """Finds a search by its name.

    Raises:
        UsageError: unknown name.
    """
    if name not in SEARCHES:
        raise unknown("--search", name, SEARCHES)
    return SEARCHES[name]
