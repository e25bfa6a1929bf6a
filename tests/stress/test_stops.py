"""Every file-system call of what writes, stopped in every way; then random faults in one life after another."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import stops

from catdog.data.catalog import Catalog

SEED, TRIES = int(os.environ.get("SEED", "0")), int(os.environ.get("TRIES", "2000"))


@pytest.fixture(scope="module")
def benches(drawn: Catalog, untrained: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[stops.Bench]]:
    with stops.without_ray():
        yield list(stops.make_benches(drawn, untrained, tmp_path_factory.mktemp("stops")))


def test_a_stop_at_any_call_loses_nothing(benches: list[stops.Bench]) -> None:
    for bench in benches:
        started = time.perf_counter()
        done = bench.disturb_everywhere()
        print(f"{bench.operation.name} in {bench.place.uri}: {bench.calls} calls, {done} stops, "
              f"{time.perf_counter() - started:.1f} s")  # fmt: skip


def test_neither_do_faults_in_one_life_after_another(benches: list[stops.Bench]) -> None:
    for seed in range(SEED, SEED + TRIES):
        benches[seed % len(benches)].disturb_at_random(seed)
