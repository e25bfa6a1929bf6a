"""All-gather and all-reduce between the workers' processes, over connections that only holders of a key can open.

TensorFlow's own collectives listen on every interface for as long as training lasts, and obey whoever connects. Here a
worker listens on its node's address only until the others have come, and each has to prove that it knows the key.
"""

from __future__ import annotations

import contextlib
import hmac
import itertools
import secrets
import socket
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from catdog.errors import CatdogError

_NONCE = 32
_HELLO = struct.Struct(f"!i{_NONCE}s")  # rank, and what the other is to sign
# Whoever connects and says nothing must not keep the others waiting.
_HELLO_SECONDS = 5.0


def free_listener(host: str) -> socket.socket:
    """Listens on a free port of one address.

    Args:
        host: an IPv4 or IPv6 address of this machine.
    """
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


class Collectives:
    """One process's connections to all others, each of which calls the same methods in the same order."""

    def __init__(
        self, rank: int, addresses: list[tuple[str, int]], listener: socket.socket, key: bytes, seconds: float = 60.0
    ) -> None:
        """Connects to every other process, then stops listening.

        Args:
            rank: of this process.
            addresses: host and port on which each process listens, by rank.
            listener: this process's; it is closed.
            key: a secret that all processes were given.
            seconds: how long to wait for the others.

        Raises:
            CatdogError: one of them was not reached in time.
        """
        self.rank, self.size = rank, len(addresses)
        self._peers: dict[int, socket.socket] = {}
        end = time.monotonic() + seconds
        try:
            for other in range(rank):
                self._peers[other] = _call(addresses[other], rank, other, key, end)
            while len(self._peers) < self.size - 1:
                self._accept(listener, key, end)
        except OSError as error:
            missing = [f"{addresses[other][0]}:{addresses[other][1]}" for other in self._missing()]
            self.close()
            raise CatdogError(
                f"worker {rank} could not connect to worker {' and '.join(map(str, self._missing()))} at "
                f"{', '.join(missing)} ({error}); the cluster's nodes must reach each other on every port"
            ) from error
        finally:
            listener.close()
        # Sending must not wait for receiving, or two workers with full buffers wait for each other for ever.
        self._senders = ThreadPoolExecutor(max(1, self.size - 1), thread_name_prefix="send")

    def all_gather(self, value: np.ndarray) -> np.ndarray:
        """Every process's array.

        Args:
            value: of one shape and dtype in all processes.

        Returns:
            The number of processes × the shape of `value`, by rank.

        Raises:
            OSError: another process is gone.
        """
        gathered = np.empty((self.size, value.size), value.dtype)
        gathered[self.rank] = value.reshape(-1)
        sent = [self._send(other, gathered[self.rank]) for other in self._peers]
        for other in self._peers:
            self._receive(other, gathered[other])
        _finish(sent)
        return gathered.reshape(self.size, *value.shape)

    def all_reduce(self, value: np.ndarray) -> np.ndarray:
        """The sum of every process's array, added in the order of ranks, so that its bits do not depend on timing.

        Each process adds up one part of the array and sends the sum to the others: no process sends or receives more
        than twice the array, however many there are.

        Args:
            value: floats, N, of one length and dtype in all processes.

        Returns:
            N, the same in all processes.

        Raises:
            OSError: another process is gone.
        """
        total = np.empty_like(value)
        bounds = np.linspace(0, len(value), self.size + 1).astype(int)
        parts = [slice(start, end) for start, end in itertools.pairwise(bounds)]
        sent = [self._send(other, value[parts[other]]) for other in self._peers]
        mine = np.empty((self.size, parts[self.rank].stop - parts[self.rank].start), value.dtype)
        mine[self.rank] = value[parts[self.rank]]
        for other in self._peers:
            self._receive(other, mine[other])
        own = total[parts[self.rank]]
        own[:] = mine[0]
        for part in mine[1:]:
            own += part
        _finish(sent)
        sent = [self._send(other, own) for other in self._peers]
        for other in self._peers:
            self._receive(other, total[parts[other]])
        _finish(sent)
        return total

    def close(self) -> None:
        """Ends the connections."""
        for peer in self._peers.values():
            peer.close()

    def _missing(self) -> list[int]:
        return [other for other in range(self.size) if other != self.rank and other not in self._peers]

    def _accept(self, listener: socket.socket, key: bytes, end: float) -> None:
        """Takes one connection, if who made it is one of the processes."""
        listener.settimeout(_rest(end))
        peer, _ = listener.accept()
        # A stranger, or a process that gave up: the right one may still come.
        with contextlib.suppress(OSError):
            other = _shake_hands(peer, self.rank, key, min(end, time.monotonic() + _HELLO_SECONDS))
            if other in self._missing():
                self._peers[other] = _open_channel(peer)
                return
        peer.close()

    def _send(self, other: int, value: np.ndarray) -> Future[None]:
        return self._senders.submit(self._peers[other].sendall, np.ascontiguousarray(value).view(np.uint8).data)

    def _receive(self, other: int, into: np.ndarray) -> None:
        rest = into.view(np.uint8).data
        while rest:
            count = self._peers[other].recv_into(rest)
            if not count:
                raise ConnectionResetError(f"worker {other} is gone")
            rest = rest[count:]


def _call(address: tuple[str, int], rank: int, other: int, key: bytes, end: float) -> socket.socket:
    """Connects to a process that listens already."""
    peer = socket.create_connection(address, _rest(end))
    try:
        if _shake_hands(peer, rank, key, end) != other:
            raise ConnectionRefusedError("another worker answered")
    except OSError:
        peer.close()
        raise
    return _open_channel(peer)


def _shake_hands(peer: socket.socket, rank: int, key: bytes, end: float) -> int:
    """Proves to the other side that this one knows the key, and has it prove the same; returns its rank.

    Each side signs the other's random number together with both ranks, so that no answer fits another question.

    Raises:
        OSError: the other side does not know the key, or did not answer in time.
    """
    nonce = secrets.token_bytes(_NONCE)
    peer.settimeout(_rest(end))
    peer.sendall(_HELLO.pack(rank, nonce))
    other, theirs = _HELLO.unpack(_read(peer, _HELLO.size, end))
    mine, expected = _sign(key, rank, other, theirs), _sign(key, other, rank, nonce)
    peer.sendall(mine)
    if not hmac.compare_digest(_read(peer, len(expected), end), expected):
        raise PermissionError("whoever connected does not know the key")
    return other


def _sign(key: bytes, signer: int, reader: int, nonce: bytes) -> bytes:
    return hmac.digest(key, struct.pack("!ii", signer, reader) + nonce, "sha256")


def _read(peer: socket.socket, count: int, end: float) -> bytes:
    data = b""
    while len(data) < count:
        peer.settimeout(_rest(end))
        more = peer.recv(count - len(data))
        if not more:
            raise ConnectionResetError("the other side closed the connection")
        data += more
    return data


def _rest(end: float) -> float:
    """The seconds that are left.

    Raises:
        TimeoutError: none are.
    """
    if (rest := end - time.monotonic()) <= 0:
        raise TimeoutError("timed out")
    return rest


def _open_channel(peer: socket.socket) -> socket.socket:
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A node that vanished without a word is noticed within a minute or so.
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    return peer


def _finish(sent: list[Future[None]]) -> None:
    wait(sent)
    for each in sent:
        each.result()
