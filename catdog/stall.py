"""Jobs without progress: after a limit they end with one line, whatever it is that they wait for.

Progress is an event other than waiting, or a beat: what works for long without an event calls `beat` every now and
then, in whichever process of the job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from catdog import interruption
from catdog.errors import CatdogError
from catdog.events import Event, EventHandler, RunWritten, Waiting, describe_event

DEFAULT_SECONDS = 900.0
# After everything of a run is written, its processes have only to end.
_ENDING_SECONDS = 60.0
_BEAT_SECONDS = 5.0
_NAMESPACE = b"catdog"
# Nobody else uses it; SIGINT would be taken for Ctrl-C.
_SIGNAL = signal.SIGUSR1

_beaten = 0.0


def beat() -> None:
    """Tells the process that watches this job that it is alive; where none does, does nothing."""
    global _beaten
    now = time.monotonic()
    if now - _beaten < _BEAT_SECONDS or "ray" not in sys.modules:
        return
    _beaten = now
    from ray.experimental import internal_kv

    if internal_kv._internal_kv_initialized():
        with contextlib.suppress(Exception):  # a beat is not worth a job
            internal_kv._internal_kv_put(_key(), f"{os.getpid()} {time.time()}", namespace=_NAMESPACE)


def _key() -> str:
    import ray

    return f"beat {ray.get_runtime_context().get_job_id()}"


class Watch:
    """Watches the progress of what the main thread does.

    Attributes:
        last: the last event.
        error: what the block is ended with, or None.
    """

    def __init__(self, on_event: EventHandler, limit: float, advice: str) -> None:
        """Starts the clock; `watching` has the meaning of the arguments."""
        self.last: Event | None = None
        self.error: CatdogError | None = None
        self.over = threading.Event()
        self._on_event, self._limit, self._advice = on_event, limit, advice
        self._idle = 0.0
        self._beat: bytes | None = None

    def event(self, event: Event) -> None:
        """Hands an event on, and takes note of it."""
        # Who waits within a limit of its own is not stuck.
        if not isinstance(event, Waiting) or event.limit is not None:
            self._idle = 0.0
        self.last = event
        self._on_event(event)

    def watch(self) -> None:
        """Interrupts the main thread once the limit is reached, and ends the command if that does not help."""
        tick = min(5.0, self._limit / 10)
        before = time.monotonic()
        while not self.over.wait(tick):
            now = time.monotonic()
            # A process that was suspended, such as by Ctrl-Z, has not been waiting.
            self._idle += min(now - before, 2 * tick)
            self._look_for_beat()
            before = now
            limit = min(self._limit, _ENDING_SECONDS) if isinstance(self.last, RunWritten) else self._limit
            if self._idle >= limit:
                break
        else:
            return
        self.error = CatdogError(self._message())
        end = time.monotonic() + interruption.GRACE_SECONDS
        while time.monotonic() < end:
            # More than once, because a library may take it for something else.
            signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            if self.over.wait(1):
                return
        interruption.end_at_once(str(self.error))

    def _look_for_beat(self) -> None:
        if "ray" not in sys.modules:
            return
        from ray.experimental import internal_kv

        if not internal_kv._internal_kv_initialized():  # asking would start a cluster
            return
        with contextlib.suppress(Exception):  # of a cluster that is gone
            found = internal_kv._internal_kv_get(_key(), namespace=_NAMESPACE)
            if found != self._beat:
                self._beat, self._idle = found, 0.0

    def _message(self) -> str:
        if isinstance(self.last, Waiting):
            return f"gave up after {_text(self._limit)} (--stall-timeout): {self.last.why}; {self._advice}"
        after = f" after {describe_event(self.last)}" if self.last is not None else ""
        return (
            f"no progress for {_text(self._limit)}{after} (--stall-timeout): a process may hang or its node be gone; "
            f"{self._advice}"
        )


@contextlib.contextmanager
def watching(on_event: EventHandler, limit: float, advice: str) -> Iterator[Watch]:
    """Ends a block with an error when there was no progress for too long.

    The block runs in the main thread; another thread's is left to whoever watches that.

    Args:
        on_event: told of each event.
        limit: seconds; 0 is no limit.
        advice: what is kept and what to do, for the message.

    Yields:
        The watch, whose `event` is to be called instead of `on_event`.

    Raises:
        CatdogError: there was no progress for so long.
    """
    watch = Watch(on_event, limit, advice)
    if not limit or threading.current_thread() is not threading.main_thread():
        yield watch
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if not watch.over.is_set():
            raise KeyboardInterrupt  # which Ray's own waiting ends with, whatever a handler raises

    before = signal.signal(_SIGNAL, interrupt)
    thread = threading.Thread(target=watch.watch, daemon=True)
    thread.start()
    try:
        yield watch
    except BaseException as error:
        watch.over.set()
        if watch.error is not None:
            raise watch.error from error
        raise
    finally:
        watch.over.set()
        thread.join(timeout=5)
        signal.signal(_SIGNAL, before)


def _text(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:g} min"
