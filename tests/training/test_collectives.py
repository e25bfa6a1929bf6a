"""Collectives between processes: the right sums, strangers kept out, and nothing that listens afterwards."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import numpy as np
import pytest

from catdog.errors import CatdogError
from catdog.training import collectives
from catdog.training.collectives import Collectives, free_listener

KEY = b"k" * 32


def connected(count: int, keys: list[bytes] | None = None, seconds: float = 20.0) -> list[Any]:
    """What each of several threads gets: its collectives, or its error."""
    listeners = [free_listener("127.0.0.1") for _ in range(count)]
    addresses = [listener.getsockname()[:2] for listener in listeners]
    found: list[Any] = [None] * count

    def connect(rank: int) -> None:
        try:
            found[rank] = Collectives(rank, addresses, listeners[rank], (keys or [KEY] * count)[rank], seconds)
        except CatdogError as error:
            found[rank] = error

    threads = [threading.Thread(target=connect, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def together(groups: list[Collectives], work: Any) -> list[Any]:
    found: list[Any] = [None] * len(groups)

    def run(group: Collectives) -> None:
        try:
            found[group.rank] = work(group)
        except OSError as error:
            found[group.rank] = error

    threads = [threading.Thread(target=run, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sums_are_those_of_numpy_in_the_order_of_ranks(count: int) -> None:
    groups = connected(count)
    # More than the buffers of connections hold; lengths that the count does not divide; fewer numbers than workers.
    for length in (4_000_001 if count == 2 else 100_003, 7, 1, 0):
        values = np.random.default_rng(length).normal(size=(count, length)).astype(np.float32)
        expected = values[0].copy()
        for value in values[1:]:
            expected += value
        for total in together(groups, lambda group, values=values: group.all_reduce(values[group.rank])):
            assert total.tobytes() == expected.tobytes()
        for every in together(groups, lambda group, values=values: group.all_gather(values[group.rank])):
            assert every.tobytes() == values.tobytes()
    for group in groups:
        group.close()


def test_a_worker_that_is_gone_is_an_error_and_no_wait() -> None:
    first, second = connected(2)
    second.close()
    with pytest.raises(OSError, match="worker 1 is gone|reset|[Bb]roken"):
        first.all_reduce(np.zeros(1_000_000, np.float32))


def test_strangers_are_refused_and_the_right_workers_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """One says nothing, one hangs up, one speaks another protocol, one knows another key."""
    monkeypatch.setattr(collectives, "_HELLO_SECONDS", 0.5)
    listeners = [free_listener("127.0.0.1") for _ in range(2)]
    addresses = [listener.getsockname()[:2] for listener in listeners]
    silent = socket.create_connection(addresses[0])
    socket.create_connection(addresses[0]).close()
    chatty = socket.create_connection(addresses[0])
    chatty.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"x" * 100)
    wrong = threading.Thread(target=lambda: _expect_error(addresses))
    wrong.start()
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(Collectives(0, addresses, listeners[0], KEY)))
    first.start()
    wrong.join()
    second = Collectives(1, addresses, listeners[1], KEY)
    first.join()
    totals = together([found[0], second], lambda group: group.all_reduce(np.full(3, group.rank + 1.0)))
    assert [total.tolist() for total in totals] == [[3.0] * 3] * 2
    # Training may last for days; nobody is listened to meanwhile.
    for address in addresses:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 1)
    silent.close()
    chatty.close()


def _expect_error(addresses: list[tuple[str, int]]) -> None:
    with pytest.raises(CatdogError, match="worker 1 could not connect to worker 0 at 127.0.0.1:"):
        Collectives(1, addresses, free_listener("127.0.0.1"), b"another key")


def test_a_worker_that_never_comes_is_named() -> None:
    listener = free_listener("127.0.0.1")
    address = listener.getsockname()[:2]
    started = time.monotonic()
    with pytest.raises(CatdogError, match=r"worker 0 could not connect to worker 1 at 127.0.0.1:1 \(timed out\)"):
        Collectives(0, [address, ("127.0.0.1", 1)], listener, KEY, seconds=0.3)
    assert time.monotonic() - started < 5
