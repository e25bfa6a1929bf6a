"""Ctrl-C and SIGTERM: what is kept and which command goes on is said at once, and the process ends in order, or soon.

Ray, its libraries and the command line each put handlers of their own in place. So the signals are noticed before any
handler, by the byte that Python writes to a pipe for each, and it does not matter what the handlers make of them.

Little is imported here, and late: until it is, an interruption is a traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

# What stops Ray and closes files has this long; a process that is still there then ends as it is.
GRACE_SECONDS = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_watch: _Watch | None = None
_advice: list[Callable[[], str]] = []


def same_command() -> str:
    """The command that this process runs, quoted for a shell."""
    import shlex

    return shlex.join(["catdog", *sys.argv[1:]])


@contextlib.contextmanager
def advising(advice: Callable[[], str]) -> Iterator[None]:
    """While the block runs, an interruption says this.

    Args:
        advice: called when it happens, in another thread; what is kept and what to do, a line or two.
    """
    _advice.append(advice)
    try:
        yield
    except BaseException as error:
        if _watch is not None:
            _watch.catch_up(error)  # if it is the signal that ends the block, its thread is still to ask
        raise
    finally:
        _advice.pop()


def guard(command: Callable[[], object]) -> object:
    """Runs a command; if SIGINT or SIGTERM comes, says so, and ends the process with 128 and the signal's number.

    A second signal ends the process at once. One guard inside another is no harm. Threads but the first have no guard,
    since Python takes signals in the first only.

    Args:
        command: is interrupted by `KeyboardInterrupt`, or by what Ray's handlers do.

    Returns:
        What the command returns.

    Raises:
        SystemExit: a signal came, however the command took it.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():
        return command()
    outermost = _watch is None
    # What comes meanwhile waits, and is not for the watching thread to take.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS if outermost else ())
    watch = _watch = _watch or _Watch()
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        result = command()
    except BaseException as error:
        watch.settle(error)
        raise
    else:
        watch.settle()
        return result
    finally:
        # After an interruption it goes on watching: what Python does at its end may hang, too.
        if outermost and watch.received is None:
            watch.close()
            _watch = None


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Puts back the handlers of SIGINT and SIGTERM that the block replaces, as starting Ray does in C++, too."""
    main = threading.current_thread() is threading.main_thread()
    before = [(number, signal.getsignal(number)) for number in _SIGNALS] if main else []
    try:
        yield
    finally:
        for number, handler in before:
            if handler is not None:
                signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Watch:
    """A thread that reads which signals come.

    Attributes:
        received: the first one's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        # Ray's start hides standard error for a while.
        self._stderr = os.dup(2)
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._caught_up = threading.Event()
        self._old_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._old_handler = signal.getsignal(signal.SIGTERM)
        if self._old_handler is signal.SIG_DFL:  # one that ignores it, such as nohup's for another signal, stays
            signal.signal(signal.SIGTERM, _interrupt)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._read_end, 64):
            for number in data:
                if number == 0:
                    self._caught_up.set()
                elif number in _SIGNALS:
                    self._take(number)

    def _take(self, number: int) -> None:
        if self.received is not None:
            os._exit(128 + self.received)
        self.received = number
        if "--debug" not in sys.argv:  # what is cut short has nothing to say for itself
            sys.unraisablehook = lambda _: None
            threading.excepthook = lambda _: None
        end = threading.Timer(GRACE_SECONDS, os._exit, [128 + number])
        end.daemon = True
        end.start()
        advice = _advice[-1]() if _advice else f"to start again:\n  {same_command()}"
        start = "\r\x1b[K" if os.isatty(self._stderr) else ""
        os.write(self._stderr, f"{start}catdog: interrupted; {advice}\n".encode(errors="backslashreplace"))

    def catch_up(self, error: BaseException | None = None) -> None:
        """Waits until every signal that came so far is taken; with --debug shows where it hit."""
        self._caught_up.clear()
        os.write(self._write_end, b"\0")
        self._caught_up.wait(timeout=5)
        if self.received is not None and isinstance(error, KeyboardInterrupt) and "--debug" in sys.argv:
            import traceback

            os.write(self._stderr, "".join(traceback.format_exception(error)).encode(errors="backslashreplace"))

    def settle(self, error: BaseException | None = None) -> None:
        """Ends the process in order, if a signal came so far.

        Raises:
            SystemExit: one came.
        """
        self.catch_up(error)
        if self.received is not None:
            # Python notes a KeyboardInterrupt that passes through an `exec` of a text, such as a dataclass has, and
            # would in the end kill itself with SIGINT; the next `exec` makes it forget.
            exec("")
            raise SystemExit(128 + self.received)

    def close(self) -> None:
        """Ends the thread and puts the old handler back."""
        signal.set_wakeup_fd(self._old_fd)
        if self._old_handler is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(self._write_end)
        self._thread.join(timeout=5)
        os.close(self._read_end)
        os.close(self._stderr)
