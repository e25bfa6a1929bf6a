"""Leases: a lock file that lets one process at a time work on a folder.

The file names the process, and its heartbeats change the time at which it was last written. A lease ends with its
process: on the same machine the process table shows that, on another machine the heartbeat stops. After a crash the
next start therefore takes over without manual cleanup. The age of a heartbeat is judged by the clock of the storage,
because those of the machines may differ.
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
# Long enough for slow buckets.
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
        beat: time at which the content was written, by the holder's clock, in seconds since 1970.
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
        if not self._is_held():
            folder = storage.parent(self.uri)
            raise CatdogError(
                f"{self.what}: another process took over {folder} while this one was suspended or cut off; nothing "
                "more was written"
            )

    def _is_held(self) -> bool:
        try:
            holder = _parse(storage.read_bytes(self.uri))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CatdogError(
                f"could not read {self.uri}: {error.strerror or error}; run the same command again"
            ) from error
        return holder is not None and holder.token == self.token

    @property
    def is_here(self) -> bool:
        """Whether the holder is, or was, a process of this machine, so that the process table tells if it is alive."""
        return self.space == _process_space()

    @property
    def is_alive(self) -> bool:
        """Whether the holder, a process of this machine, is alive."""
        with contextlib.suppress(psutil.Error):
            return abs(psutil.Process(self.pid).create_time() - self.process_started) < 1
        return False

    def beat_once(self) -> bool:
        """Shows that the holder is alive; returns False if another process took over."""
        if storage.is_local(self.uri):
            # A new content could replace that of a process which took over in this moment.
            if held := self._is_held():
                os.utime(storage.absolute(self.uri))
            return held
        content = storage.read_bytes(self.uri)
        found = _parse(content)
        held = found is not None and found.token == self.token
        return held and storage.replace_text(self.uri, content, self._text())

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
                if not lease.beat_once():
                    return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join(timeout=BEAT_SECONDS)
        # If the storage is out of reach, the lease ends with the process, and an error of the block is worth more.
        with contextlib.suppress(CatdogError, OSError):
            if lease._is_held():
                storage.delete_file(uri)


def holder(uri: str) -> Lease | None:
    """The lease in a file if its process may be alive; None otherwise."""
    found = _parse(_content(uri))
    if found is None or found.is_here:
        return found if found is not None and found.is_alive else None
    written = storage.modified(uri)
    # For a table the clocks of this machine and of the storage are near enough.
    return found if written is not None and time.time() - written < STALE_SECONDS else None


def require_free(uri: str) -> None:
    """Checks that no living process holds a lease, for one that only reads what a holder writes.

    Raises:
        CatdogError: one does; the message names it.
    """
    if (found := holder(uri)) is not None:
        raise CatdogError(_in_use(uri, found))


def _in_use(uri: str, holder: Lease) -> str:
    where = "on this machine" if holder.is_here else f"on {holder.host}"
    return (
        f"{storage.parent(uri)} is in use: {holder.what}, process {holder.pid} {where}; wait until it has ended, or "
        "end it"
    )


def _take(lease: Lease) -> None:
    if storage.create_text(lease.uri, lease._text()):
        return
    content = _content(lease.uri)
    holder = _parse(content)
    if holder is not None and (holder.is_alive if holder.is_here else (left := _seconds_left(lease)) > 0):
        rest = "" if holder.is_here else f" (if that process is dead, its lease expires within {left:.0f} s)"
        raise CatdogError(_in_use(lease.uri, holder) + rest)
    if not _replace(lease, content):
        raise CatdogError(
            f"{storage.parent(lease.uri)} has just been taken by another process; wait until it has ended"
        )


def _seconds_left(lease: Lease) -> float:
    """Seconds until the heartbeat in the file of a lease is too old, by the clock of the storage."""
    probe = storage.join(storage.parent(lease.uri), storage.temporary_name(storage.name(lease.uri)))
    storage.write_text(probe, "")
    try:
        now, written = storage.modified(probe), storage.modified(lease.uri)
    finally:
        storage.delete_file(probe)
    return 0.0 if now is None or written is None else max(0.0, written + STALE_SECONDS - now)


def _replace(lease: Lease, content: bytes | None) -> bool:
    """Replaces the lease of a dead holder; of several processes that find it dead, one succeeds."""
    if content is not None and not storage.is_local(lease.uri):
        return storage.replace_text(lease.uri, content, lease._text())
    if content is None:
        return storage.create_text(lease.uri, lease._text())
    # At every moment there is a file of the old lease or of the new one, which shows that work was begun here.
    path = Path(storage.absolute(lease.uri))
    aside = path.with_name(storage.temporary_name(path.name))
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _content(str(aside)) != content:
            aside.rename(path)  # another process was faster, and this is its new lease
    is_taken = storage.create_text(lease.uri, lease._text())
    aside.unlink(missing_ok=True)
    return is_taken


def _content(uri: str) -> bytes | None:
    """The bytes of a lease's file; None if it is absent or unreadable."""
    try:
        return storage.read_bytes(uri)
    except OSError:
        return None


def _parse(content: bytes | None) -> Lease | None:
    """The lease that bytes describe; None if they describe none."""
    try:
        return Lease(**json.loads(content or b""))
    except (ValueError, TypeError):
        return None


def _process_space() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"
