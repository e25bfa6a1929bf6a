"""Prefetching: the next item is made ready in a thread while the current one is used."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Maps a function over items, one ahead of what is asked for, so that at most two results are in memory.

    Args:
        function: called in a thread, for one item at a time; for the first one before anything is asked for.
        items: what it is called with.

    Returns:
        The function's results, in the items' order. Where one would have come that the function raised an exception
        for, the exception is raised.
    """
    left = iter(items)
    thread = ThreadPoolExecutor(1)
    ahead: deque[Future[Result]] = deque(thread.submit(function, item) for item in itertools.islice(left, 1))

    def results() -> Iterator[Result]:
        with thread:
            while ahead:
                current = ahead.popleft().result()
                ahead.extend(thread.submit(function, item) for item in itertools.islice(left, 1))
                yield current

    return results()
