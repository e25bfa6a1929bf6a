"""Errors shown to users. A message is one line: what was received, what was expected, what to do."""


class CatdogError(Exception):
    """A failure that the message explains; the command line prints it and exits with 1."""

    exit_code = 1


class UsageError(CatdogError):
    """An invalid request (an option, a path, a combination of them); the command line exits with 2."""

    exit_code = 2
