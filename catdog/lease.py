"""Leases: a file that says which process works on a folder, so that no second one does at the same time.

The file holds the process and the time of its last heartbeat. A lease ends with its process: on the same machine that
can be seen, elsewhere the heartbeat stops. So whatever was killed, the next start takes over, and needs no hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from catdog import storage
from catdog.errors import CatdogError

BEAT_SECONDS = 10.0
# Clocks of machines that share storage may differ by some seconds, and a bucket may be slow.
STALE_SECONDS = 60.0


@dataclass
class Lease:
    """A held lease.

    Attributes:
        uri: of its file.
        what: what is being done, in a few words.
        token: a random name, by which the holder knows its own lease.
        host: name of the machine.
        space: what process ids mean something in: one boot of one machine, or a container on it.
        pid: of the process.
        process_started: by the machine's clock, in seconds since 1970; a number may be used again by another process.
        beat: time of the last heartbeat, in seconds since 1970.
    """

    uri: str
    what: str
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    host: str = field(default_factory=socket.gethostname)
    space: str = field(default_factory=lambda: _process_space())
    pid: int = field(default_factory=os.getpid)
    process_started: float = field(default_factory=lambda: psutil.Process().create_time())
    beat: float = field(default_factory=time.time)

    def require_held(self) -> None:
        """Makes sure that the lease is still this process's, before something is written that depends on it.

        Raises:
            CatdogError: another process took it over, because no heartbeat came for `STALE_SECONDS`.
        """
        holder = _read(self.uri)
        if holder is None or holder.token != self.token:
            raise CatdogError(
                f"{self.what}: another process took {storage.parent(self.uri)} over while this one stood still; "
                "nothing more was written"
            )

    @property
    def seconds_left(self) -> float:
        """How long the holder may still be alive: 0 where it is certainly not."""
        if self.space == _process_space():
            with contextlib.suppress(psutil.Error):
                if abs(psutil.Process(self.pid).create_time() - self.process_started) < 1:
                    return STALE_SECONDS
            return 0.0
        return max(0.0, self.beat + STALE_SECONDS - time.time())

    def _text(self) -> str:
        return json.dumps(asdict(self) | {"beat": time.time()}, indent=2) + "\n"


@contextlib.contextmanager
def hold(uri: str, what: str, patience: float = 0.0) -> Iterator[Lease]:
    """Holds a lease while the block runs.

    Args:
        uri: of the lease's file.
        what: what is being done, in a few words, for the message that another process gets.
        patience: how long to wait for another holder to end, in seconds.

    Yields:
        The lease.

    Raises:
        CatdogError: a living process holds it; says which.
    """
    lease = Lease(uri, what)
    end = time.monotonic() + patience
    while True:
        try:
            _take(lease)
            break
        except CatdogError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.5)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with contextlib.suppress(CatdogError, OSError):  # a heartbeat that is missed may come the next time
                holder = _read(uri)
                if holder is None or holder.token != lease.token:
                    return
                storage.write_text(uri, lease._text())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join(timeout=BEAT_SECONDS)
        holder = _read(uri)
        if holder is not None and holder.token == lease.token:
            storage.delete_file(uri)


def _take(lease: Lease) -> None:
    if storage.create_text(lease.uri, lease._text()):
        return
    holder = _read(lease.uri)
    if holder is not None and (left := holder.seconds_left):
        here = holder.space == _process_space()
        where = "on this machine" if here else f"on {holder.host}"
        rest = "" if here else f" (a process that died holds on for {left:.0f} s at most)"
        raise CatdogError(
            f"{storage.parent(lease.uri)} is in use: {holder.what}, process {holder.pid} {where}; wait until it has "
            f"ended, or end it{rest}"
        )
    # Of several that find a dead holder, one moves its file away.
    if storage.is_local(lease.uri):
        path = Path(storage.absolute(lease.uri))
        aside = path.with_name(f"{path.name}.{lease.token}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            moved = _read(str(aside))
            if moved is not None and (holder is None or moved.token != holder.token):
                aside.rename(path)  # somebody else was first, and this is theirs
            else:
                aside.unlink()
    else:
        storage.delete_file(lease.uri)
    if not storage.create_text(lease.uri, lease._text()):
        raise CatdogError(
            f"{storage.parent(lease.uri)} has just been taken by another process; wait until it has ended"
        )


def _read(uri: str) -> Lease | None:
    """The lease in a file; None where there is none, or none that can be read."""
    try:
        return Lease(**json.loads(storage.read_bytes(uri)))
    except (OSError, ValueError, TypeError):
        return None


def _process_space() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"
