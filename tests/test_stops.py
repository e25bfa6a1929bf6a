"""Programs that die, fail or are interrupted at their file-system calls: a rerun ends as if nothing had been.

`make stress` stops every call in every way; this is a sample of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import stops

from catdog.data.catalog import Catalog


@pytest.fixture(scope="module")
def benches(drawn: Catalog, untrained: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[stops.Bench]]:
    with stops.without_ray():
        yield list(stops.make_benches(drawn, untrained, tmp_path_factory.mktemp("stops"), labelled=False))


def test_a_rerun_ends_as_if_nothing_had_been(benches: list[stops.Bench]) -> None:
    for seed in range(2 * len(benches)):
        benches[seed % len(benches)].disturb_at_random(seed)


def test_what_a_kill_left_while_a_lease_was_taken_is_in_nobodys_way(benches: list[stops.Bench]) -> None:
    for bench in benches:
        if bench.place.folder is not None and not bench.operation.start:
            for at in range(8):
                bench.disturb([stops.Fault(at, "after")])


def test_ctrl_c_as_a_data_set_is_complete_leaves_it_complete(benches: list[stops.Bench]) -> None:
    for bench in benches:
        if bench.operation.name in ("preparing", "packing"):
            for at in range(bench.calls - 14, bench.calls):
                bench.disturb([stops.Fault(at, "interrupt")])
