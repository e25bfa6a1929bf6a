"""Errors shown to users. A message is one line: what was received, what was expected, what to do."""

import difflib
from collections.abc import Iterable


class CatdogError(Exception):
    """A failure that the message explains; the command line prints it and exits with 1.

    Args:
        message: made one line, as it may hold names and text of files.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class UsageError(CatdogError):
    """An invalid request (an option, a path, a combination of them); the command line exits with 2."""

    exit_code = 2


def unknown(option: str, received: str, known: Iterable[str]) -> UsageError:
    """The error for a name that nothing has.

    Args:
        option: that it was given to.
        received: the name.
        known: all names there are.
    """
    names = list(known)
    return UsageError(
        f"{option} received {received!r}, expected one of {', '.join(names)}{did_you_mean(received, names)}"
    )


def did_you_mean(received: str, known: Iterable[str]) -> str:
    """The end of a message: "; did you mean NAME?" with the name that is closest to the one received, or nothing."""
    names = list(known)
    close = difflib.get_close_matches(received, names, n=1) if received not in names else []
    return f"; did you mean {close[0]}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
