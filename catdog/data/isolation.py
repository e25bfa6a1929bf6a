"""Decoding of images that may crash, spin or eat memory: within limits, or in a process that may die instead.

Native decoders can be stopped only with their process. An image that exceeds a limit of `decode_batch` therefore ends
the process; whoever starts the next one decodes the same images with an `IsolatedDecoder`, which finds the culprits.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil

from catdog import restarts, stall
from catdog.data import images
from catdog.data.images import Batch
from catdog.errors import CatdogError

# Of one image. The largest that are decoded take 5 to 10 s of a core, as JPEG 2000 about 30 s, and up to 5.3 GB. Time
# of the CPU is limited more strictly, because on a busy machine it takes long to get.
MOST_CPU_SECONDS, MOST_SECONDS = 60.0, 300.0
MOST_BYTES = 6 * 2**30

# Of what is available, that an isolated decoder may use: at more, Ray would kill the actor instead.
_SHARE = 0.8
# Until the process is ready; on a busy machine its imports take long.
_START_SECONDS = 120.0

# The arguments and the result of `images.decode_batch`.
Decode = Callable[[Iterable[bytes | str], dict[int, np.ndarray]], Batch]
# How often a call may end its process before it is given up: at first because of an image, later of something else.
MOST_DEATHS = 4

_TIMED_OUT = (signal.SIGPROF, signal.SIGALRM)
_CRASHED = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS)
_NOT_STARTED = "could not start a process to decode images in isolation"
_CHILD = "import sys; from catdog.data import isolation; isolation.serve(int(sys.argv[1]), *map(int, sys.argv[2:]))"


@contextlib.contextmanager
def surviving_decoder(what: str, sizes: list[int]) -> Iterator[Decode]:
    """What decodes images in a call that Ray repeats if its process dies; to be used in the thread of the call.

    It is the fast way at first, and isolation once a process died in this call.

    Args:
        what: the call does, for the message: "part 0-512 of test".
        sizes: of the images, in pixels.

    Yields:
        A function like `images.decode_batch`.

    Raises:
        CatdogError: the call ended too many processes; isolation did not help, so no image is to blame.
    """
    import ray

    # How often Ray sent this call before; calls that only waited for an actor or a node that was lost count as well.
    if not ray._private.worker.global_worker.core_worker.get_current_task_attempt_number():
        yield decode_batch
        return
    begun = restarts.count_start(f"isolated {ray.get_runtime_context().get_task_id()}")
    if begun >= MOST_DEATHS - 1:
        raise CatdogError(
            f"{what} killed its process {begun + 1} times, though the images were decoded in isolation; is there "
            "enough memory?"
        )
    with IsolatedDecoder(sizes) as decoder:
        yield decoder.decode_batch


def read_batch(uris: list[str], sizes: list[int], what: str) -> Batch:
    """Reads and decodes files like `images.read_batch`, in a call that Ray repeats if its process dies.

    Args:
        uris: N files.
        sizes: of the images, in pixels.
        what: as for `surviving_decoder`.
    """
    with surviving_decoder(what, sizes) as decode:
        pixels = {size: np.empty((len(uris), size, size, 3), np.uint8) for size in sizes}
        return decode(images.fetch_all(uris), pixels)


def decode_batch(files: Iterable[bytes | str], pixels: dict[int, np.ndarray]) -> Batch:
    """Decodes files like `images.decode_batch`, but an image that exceeds a limit of time kills this process.

    An image that exceeds the limit of memory is unreadable. Process-wide timers (ITIMER_REAL, ITIMER_PROF) are used.

    Args:
        files, pixels: as for `images.decode_batch`.
    """
    with _limited_memory(MOST_BYTES):
        try:
            return images.decode_batch(_timed(files), pixels)
        finally:
            _set_timers(0, 0)


def _timed(files: Iterable[bytes | str]) -> Iterator[bytes | str]:
    """Starts the timers anew when the next file is asked for, which is when the last one is decoded."""
    for data in files:
        stall.beat()
        _set_timers(MOST_CPU_SECONDS, MOST_SECONDS)
        yield data


def _set_timers(cpu_seconds: float, seconds: float) -> None:
    """Has the kernel kill this process after so many seconds, whatever it does then; 0 is never.

    Nobody handles the signals, so no interpreter needs to run; a decoder may hold its lock.
    """
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)


@contextlib.contextmanager
def _limited_memory(most: float) -> Iterator[None]:
    """Makes allocations fail in a block that would make this process grow by more than so many bytes."""
    try:
        # The sixth field of proc_pid_statm(5): private writable pages, which RLIMIT_DATA counts.
        used = int(Path("/proc/self/statm").read_bytes().split()[5]) * resource.getpagesize()
    except OSError:  # not Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (soft, hard, used + int(most)) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class IsolatedDecoder:
    """Decodes images one by one in a process of its own, which is replaced when an image has killed it.

    The pixels are those of `images.decode_batch`, to the last bit.

    Args:
        sizes: of the images, in pixels.
        seconds: the most for one image.

    Example:
        with IsolatedDecoder([192]) as decoder:
            batch = decoder.decode_batch(files, {192: np.empty((len(files), 192, 192, 3), np.uint8)})
    """

    def __init__(self, sizes: list[int], seconds: float = 2 * MOST_SECONDS) -> None:
        self._sizes = sizes
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def start(self) -> None:
        """Starts the process, which the first image would otherwise wait for.

        Raises:
            CatdogError: it cannot be started.
        """
        self._started()

    def decode_batch(self, files: Iterable[bytes | str], pixels: dict[int, np.ndarray]) -> Batch:
        """Decodes files like `images.decode_batch`; an image that kills its process is unreadable.

        Args:
            files: as for `images.decode_batch`.
            pixels: likewise, for the sizes of this decoder.

        Raises:
            CatdogError: the process cannot be started.
        """
        statuses: list[images.Status] = []
        details: list[str] = []
        for at, data in enumerate(files):
            stall.beat()
            row = {size: array[at : at + 1] for size, array in pixels.items()}
            # What could not be read is no danger.
            found = images.decode_batch([data], row) if isinstance(data, str) else self._decode(data, row)
            statuses += found.statuses
            details += found.details
        for array in pixels.values():
            array[len(statuses) :] = 0
        return Batch(pixels, statuses, details)

    def _decode(self, data: bytes, row: dict[int, np.ndarray]) -> Batch:
        for last in (False, True):
            try:
                return self._ask(data, row)
            except TimeoutError:
                self._end(patience=0)
                reason = _timed_out(self._seconds)
                break
            except (EOFError, OSError, ValueError):
                code = self._end()
                reason = _reason(code)
            # The kernel, for want of memory, or a person may have killed it: then the image is not to blame at once.
            if last or -code in (*_TIMED_OUT, *_CRASHED):
                break
        for array in row.values():
            array[:] = 0
        return Batch(row, ["unreadable"], [reason])

    def _ask(self, data: bytes, row: dict[int, np.ndarray]) -> Batch:
        """Lets the process decode one image.

        Raises:
            TimeoutError: it is late.
            EOFError, OSError, ValueError: it died, or its answer is no answer.
        """
        pipe = self._started()
        pipe.send_bytes(data)
        if not pipe.poll(self._seconds):
            raise TimeoutError
        status, detail = json.loads(pipe.recv_bytes())
        for size in self._sizes:
            row[size][0] = np.frombuffer(pipe.recv_bytes(), np.uint8).reshape(size, size, 3)
        return Batch(row, [status], [detail])

    def _started(self) -> Connection:
        if self._pipe is not None:
            return self._pipe
        ours, theirs = Pipe()
        with theirs:
            words = [sys.executable, "-P", "-c", _CHILD, *map(str, (theirs.fileno(), *self._sizes))]
            path = {"PYTHONPATH": os.pathsep.join(sys.path)}
            nowhere = subprocess.DEVNULL
            try:
                self._process = subprocess.Popen(
                    words, stdin=nowhere, stdout=nowhere, stderr=nowhere, pass_fds=[theirs.fileno()],
                    env=os.environ | path,
                )  # fmt: skip
            except OSError as error:
                ours.close()
                raise CatdogError(f"{_NOT_STARTED} ({error.strerror})") from error
        self._pipe = ours
        try:
            if ours.poll(_START_SECONDS) and ours.recv_bytes() == b"ready":
                return ours
            reason = f"not ready after {_START_SECONDS:g} s"
            self._process.kill()
            self._end()
        except (EOFError, OSError):
            reason = f"exit code {self._end()}"
        raise CatdogError(f"{_NOT_STARTED} ({reason})")

    def _end(self, patience: float = 5.0) -> int:
        """Ends the process; returns its exit code, or the negative number of the signal that ended it.

        Args:
            patience: seconds until it is killed; with its pipe closed it ends by itself, unless it is busy.
        """
        if self._pipe is None or self._process is None:
            return 0
        self._pipe.close()
        try:
            code = self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = -signal.SIGALRM
        self._pipe = self._process = None
        return code


def _reason(code: int) -> str:
    """Why an image is unreadable whose process ended with this exit code."""
    if -code in _TIMED_OUT:
        return _timed_out(MOST_CPU_SECONDS if -code == signal.SIGPROF else MOST_SECONDS)
    return images.TOO_MUCH_MEMORY if code == -signal.SIGKILL else "crashed while decoding"


def _timed_out(seconds: float) -> str:
    return f"timed out while decoding ({seconds:g} s)"


def serve(pipe: int, *sizes: int) -> None:
    """Decodes what comes through a pipe, in the process of an `IsolatedDecoder`, until the pipe is closed.

    Args:
        pipe: file descriptor of a `Connection`.
        sizes: of the images, in pixels.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in _TIMED_OUT:
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # where memory runs out, the kernel is to end this process, and not the actor
        Path("/proc/self/oom_score_adj").write_text("1000")
    pixels = {size: np.empty((1, size, size, 3), np.uint8) for size in sizes}
    with Connection(pipe) as connection:
        connection.send_bytes(b"ready")
        while True:
            try:
                data = connection.recv_bytes()
            except (EOFError, OSError):
                return
            with _limited_memory(_SHARE * psutil.virtual_memory().available):
                found = decode_batch([data], pixels)
            connection.send_bytes(json.dumps([found.statuses[0], found.details[0]]).encode())
            for array in found.pixels.values():
                connection.send_bytes(array.tobytes())
