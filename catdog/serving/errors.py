"""Refusals: an error of a request, as a status code and one line."""

from __future__ import annotations

from starlette.responses import JSONResponse


class RefusedError(Exception):
    """A request that is not answered; the message says what was received and what to do.

    Attributes:
        status: the HTTP status code.
        line: the message.
    """

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status
        self.line = line


def refusal(status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer to a refused request; it asks to try again later where that can help.

    Args:
        status: the HTTP status code.
        line: what was received, and what to do.
        headers: further headers.
    """
    again = {"Retry-After": "1"} if status in (429, 503) else {}
    return JSONResponse({"error": " ".join(line.split())}, status, again | (headers or {}))
