"""The two errors people see: each message is one line that says what was received, what was expected, what to do."""


class CatdogError(Exception):
    """Something failed that the message explains; the command line prints it and exits with 1."""

    exit_code = 1


class UsageError(CatdogError):
    """The request itself is wrong (an option, a path, a combination); the command line exits with 2."""

    exit_code = 2
