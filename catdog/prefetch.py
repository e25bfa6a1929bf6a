"""Prefetching: the next items are made ready in threads while the current one is used."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Iterator[Result]:
    """Maps a function over items, ahead of what is asked for, by one item a thread.

    Args:
        function: called in each thread for one item at a time; for the first ones before anything is asked for.
        items: what it is called with.
        threads: so many results are in memory at most, and the current one.

    Returns:
        The function's results, in the items' order. Where one would have come that the function raised an exception
        for, the exception is raised.
    """
    left = iter(items)
    pool = ThreadPoolExecutor(threads)
    ahead: deque[Future[Result]] = deque(pool.submit(function, item) for item in itertools.islice(left, threads))

    def results() -> Iterator[Result]:
        with pool:
            while ahead:
                current = ahead.popleft().result()
                ahead.extend(pool.submit(function, item) for item in itertools.islice(left, 1))
                yield current

    return results()
