"""What is prefetched comes in order, one a thread ahead and no more, and fails where it would have come."""

from __future__ import annotations

import threading

import pytest

from catdog.prefetch import prefetch


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_results_come_in_order_and_at_most_one_a_thread_ahead(count: int, threads: int) -> None:
    begun: list[int] = []

    def square(number: int) -> int:
        begun.append(number)
        return number * number

    found = []
    for result in prefetch(square, range(count), threads):
        found.append(result)
        assert len(begun) <= len(found) + threads
    assert found == [number * number for number in range(count)]


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=30)
    assert list(prefetch(lambda _: together.wait() >= 0, range(6), 3)) == [True] * 6


def test_an_error_comes_after_the_results_before_it() -> None:
    results = prefetch(lambda number: 6 // number, [3, 2, 0, 1])
    assert (next(results), next(results)) == (2, 3)
    with pytest.raises(ZeroDivisionError):
        next(results)
