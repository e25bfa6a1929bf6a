"""Ctrl-C and SIGTERM: an immediate message on what is kept and how to continue, then an orderly end of the process.

Ray, its libraries and the command line install signal handlers of their own. Signals are therefore read from the wakeup
pipe, to which Python writes a byte for each signal before any handler runs; the handlers do not matter then.

This module imports little and late, because an interruption before it is loaded shows a traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

# Time for stopping Ray and closing files; after that the process is ended without cleanup.
GRACE_SECONDS = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_watch: _Watch | None = None
_advice: list[Callable[[], str]] = []
_clearing: list[Callable[[], object]] = []


def same_command() -> str:
    """The command line of this process, quoted for a shell."""
    import shlex

    return shlex.join(["catdog", *sys.argv[1:]])


@contextlib.contextmanager
def advising(advice: Callable[[], str]) -> Iterator[None]:
    """Sets the message for an interruption while the block runs.

    Args:
        advice: called on an interruption, in another thread; returns one or two lines on what is kept and what to do.
    """
    _advice.append(advice)
    try:
        yield
    except BaseException as error:
        if _watch is not None:
            _watch.catch_up(error)  # if a signal ends the block, the thread still needs this advice
        raise
    finally:
        _advice.pop()


@contextlib.contextmanager
def clearing(clear: Callable[[], object]) -> Iterator[None]:
    """Calls a function before the message of an interruption while the block runs: what is drawn must not cover it.

    Args:
        clear: called in another thread.
    """
    _clearing.append(clear)
    try:
        yield
    finally:
        _clearing.remove(clear)


def guard(command: Callable[[], object]) -> object:
    """Runs a command; on SIGINT or SIGTERM prints a message and exits with 128 plus the signal number.

    A second signal ends the process at once. Guards may be nested. Outside the main thread it only runs the command,
    since Python handles signals in the main thread.

    Args:
        command: function to run; interrupted by `KeyboardInterrupt` or by Ray's handlers.

    Returns:
        The result of the command.

    Raises:
        SystemExit: a signal arrived, even if the command ignored it.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():
        return command()
    outermost = _watch is None
    # Blocked during setup, so that signals are delivered to this thread and not to the watching one.
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
        # After an interruption it keeps watching, because Python's own shutdown may hang, too.
        if outermost and watch.received is None:
            watch.close()
            _watch = None


def end_at_once(message: str) -> None:
    """Ends a guarded command with a message and exit code 1, whatever its main thread hangs in.

    Without a guard it does nothing, because a library must not end the process of its caller.

    Args:
        message: one line.
    """
    if _watch is None:
        return
    for clear in _clearing[:]:
        with contextlib.suppress(Exception):
            clear()
    os.write(_watch.stderr, f"catdog: {message}\n".encode(errors="backslashreplace"))
    os._exit(1)


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restores the handlers of SIGINT and SIGTERM after the block; starting Ray replaces them, also in C++."""
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
    """A thread that watches for signals.

    Attributes:
        received: number of the first signal, or None.
        stderr: file descriptor of standard error.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        # A copy, because standard error is suppressed while Ray starts.
        self.stderr = os.dup(2)
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._caught_up = threading.Event()
        self._old_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._old_handler = signal.getsignal(signal.SIGTERM)
        if self._old_handler is signal.SIG_DFL:  # keep a handler that ignores the signal
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
        if "--debug" not in sys.argv:  # no tracebacks of interrupted threads and destructors
            sys.unraisablehook = lambda _: None
            threading.excepthook = lambda _: None
        end = threading.Timer(GRACE_SECONDS, os._exit, [128 + number])
        end.daemon = True
        end.start()
        for clear in _clearing[:]:
            with contextlib.suppress(Exception):
                clear()
        advice = _advice[-1]() if _advice else f"to start again:\n  {same_command()}"
        start = "\r\x1b[K" if os.isatty(self.stderr) else ""
        os.write(self.stderr, f"{start}catdog: interrupted; {advice}\n".encode(errors="backslashreplace"))

    def catch_up(self, error: BaseException | None = None) -> None:
        """Waits until all signals so far are processed; with --debug prints the traceback of the interruption."""
        self._caught_up.clear()
        os.write(self._write_end, b"\0")
        self._caught_up.wait(timeout=5)
        if self.received is not None and isinstance(error, KeyboardInterrupt) and "--debug" in sys.argv:
            import traceback

            os.write(self.stderr, "".join(traceback.format_exception(error)).encode(errors="backslashreplace"))

    def settle(self, error: BaseException | None = None) -> None:
        """Exits if a signal arrived so far.

        Raises:
            SystemExit: a signal arrived.
        """
        self.catch_up(error)
        if self.received is not None:
            # If a KeyboardInterrupt passed through an `exec` of source text, which dataclasses use, Python kills itself
            # with SIGINT at exit; another `exec` clears that.
            exec("")
            raise SystemExit(128 + self.received)

    def close(self) -> None:
        """Ends the thread and restores the old handler."""
        signal.set_wakeup_fd(self._old_fd)
        if self._old_handler is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(self._write_end)
        self._thread.join(timeout=5)
        os.close(self._read_end)
        os.close(self.stderr)
