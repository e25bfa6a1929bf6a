"""Leases: a lock file that lets one process at a time work on a folder.

The file names the process and the time of its last heartbeat. A lease ends with its process: on the same machine the
process table shows that, on another machine the heartbeat stops. After a crash the next start therefore takes over
without manual cleanup.
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
# Long enough for clock differences of some seconds between machines, and for slow buckets.
STALE_SECONDS = 60.0


@dataclass
class Lease:
    """A held lease.

    Attributes:
        uri: URI of the lease file.
        what: the operation in progress, in a few words.
        token: random name by which the holder recognizes its own lease.
        host: name of the machine.
        space: identifies the PID namespace: one boot of one machine, or a container on it.
        pid: process id.
        process_started: start time of the process, in seconds since 1970; tells it from a later process with the same
            id.
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
        """Checks that this process still holds the lease; to be called before a write that depends on it.

        Raises:
            CatdogError: another process took over, because there was no heartbeat for `STALE_SECONDS`.
        """
        holder = _read(self.uri)
        if holder is None or holder.token != self.token:
            raise CatdogError(
                f"{self.what}: another process took over {storage.parent(self.uri)} while this one was suspended; "
                "nothing more was written"
            )

    @property
    def seconds_left(self) -> float:
        """Seconds for which the holder may still be alive; 0 if it is known to be dead."""
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
        uri: URI of the lease file.
        what: the operation in progress, in a few words, for the message that another process shows.
        patience: seconds to wait for another holder to end.

    Yields:
        The lease.

    Raises:
        CatdogError: a living process holds the lease; the message names it.
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
            with contextlib.suppress(CatdogError, OSError):  # the next heartbeat may succeed
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


def holder(uri: str) -> Lease | None:
    """The lease in a file if its process may be alive; None otherwise."""
    found = _read(uri)
    return found if found is not None and found.seconds_left else None


def _take(lease: Lease) -> None:
    if storage.create_text(lease.uri, lease._text()):
        return
    holder = _read(lease.uri)
    if holder is not None and (left := holder.seconds_left):
        here = holder.space == _process_space()
        where = "on this machine" if here else f"on {holder.host}"
        rest = "" if here else f" (if that process is dead, its lease expires within {left:.0f} s)"
        raise CatdogError(
            f"{storage.parent(lease.uri)} is in use: {holder.what}, process {holder.pid} {where}; wait until it has "
            f"ended, or end it{rest}"
        )
    # Several processes may find that the holder is dead; renaming lets exactly one of them remove the file.
    if storage.is_local(lease.uri):
        path = Path(storage.absolute(lease.uri))
        aside = path.with_name(f"{path.name}.{lease.token}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            moved = _read(str(aside))
            if moved is not None and (holder is None or moved.token != holder.token):
                aside.rename(path)  # another process was faster, and this is its new lease
            else:
                aside.unlink()
    else:
        storage.delete_file(lease.uri)
    if not storage.create_text(lease.uri, lease._text()):
        raise CatdogError(
            f"{storage.parent(lease.uri)} has just been taken by another process; wait until it has ended"
        )


def _read(uri: str) -> Lease | None:
    """The lease in a file; None if the file is absent or unreadable."""
    try:
        return Lease(**json.loads(storage.read_bytes(uri)))
    except (OSError, ValueError, TypeError):
        return None


def _process_space() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"
