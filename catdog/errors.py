"""Errors shown to users. A message is one line: what was received, what was expected, what to do."""


class CatdogError(Exception):
    """A failure that the message explains; the command line prints it and exits with 1."""

    exit_code = 1


class UsageError(CatdogError):
    """An invalid request (an option, a path, a combination of them); the command line exits with 2."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
