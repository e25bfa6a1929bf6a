"""The guard before the app: hosts, concurrency, body size and time of requests, and headers of every answer.

It works on ASGI's messages, so that a body that is too long is refused while it arrives, not when it is in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Collection

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catdog.serving.config import Limits
from catdog.serving.errors import RefusedError, refusal
from catdog.serving.metrics import Metrics

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
# The paths whose requests cost a prediction.
_WORK = "/v1/"
# What is read of a body whose request is answered already.
_DRAINED_BYTES, _DRAINED_SECONDS = 100_000_000, 5.0


class Guard:
    """An ASGI app around another one."""

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Collection[str] | None, metrics: Metrics) -> None:
        """Puts a guard before an app.

        Args:
            app: that answers.
            limits: of requests.
            hosts: names that requests may use for this server; None is any. A page of another site whose name leads to
                this machine (DNS rebinding) could otherwise read what only people at this machine may see.
            metrics: what is counted.
        """
        self._app = app
        self._limits = limits
        self._hosts = hosts
        self._metrics = metrics
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        body = _Body(scope, receive, self._limits.bytes)
        answer = _Answer(send, body)
        work = scope["path"].startswith(_WORK)
        try:
            await self._answer(scope, body, answer, work)
        finally:
            self._metrics.answered(scope, answer.status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, body: _Body, answer: _Answer, work: bool) -> None:
        request = Request(scope)
        host = request.headers.get("host", "")
        # Not `request.url.hostname`, which is this server's own address if the header is malformed.
        if self._hosts is not None and re.sub(r":\d*$", "", host).strip("[]").lower() not in self._hosts:
            line = f"received the host {host!r}; expected {' or '.join(sorted(self._hosts))}"
            await answer.refuse(scope, 400, line)
        elif not work:
            await self._app(scope, body, answer)
        elif self._working >= self._limits.requests:
            line = f"{self._working} requests are being answered, and more are not accepted; try again in a second"
            await answer.refuse(scope, 429, line)
        elif (length := request.headers.get("content-length", "")).isdecimal() and int(length) > self._limits.bytes:
            await answer.refuse(scope, 413, body.too_long(int(length)))
        else:
            self._working += 1
            self._metrics.working.set(self._working)
            try:
                await self._work(scope, body, answer)
            finally:
                self._working -= 1
                self._metrics.working.set(self._working)

    async def _work(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._app(scope, body, answer)
        except TimeoutError:
            if answer.started:
                raise
            if body.complete:
                await answer.refuse(scope, 504, f"there was no answer within {self._limits.seconds:g} s; try again")
            else:
                body.complete = True  # it is not waited for any longer
                line = f"the request did not arrive within {self._limits.seconds:g} s; send a smaller picture"
                await answer.refuse(scope, 408, line)


class _Body:
    """The messages of a request's body, which are counted.

    Attributes:
        complete: whether all of it has arrived.
    """

    def __init__(self, scope: Scope, receive: Receive, most: int) -> None:
        names = {name for name, _ in scope["headers"]}
        self.complete = not names & {b"content-length", b"transfer-encoding"}
        self._receive = receive
        self._most = most
        self._received = 0

    async def __call__(self) -> Message:
        message = await self._next()
        if self._received > self._most:
            raise RefusedError(413, self.too_long(None))
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        return message

    def too_long(self, length: int | None) -> str:
        """The message about a body of so many bytes, or of an unknown number."""
        received = f"{length / 1e6:,.1f} MB" if length else "more"
        return f"received {received}, expected at most {self._most / 1e6:g} MB; send a smaller picture, or fewer"

    async def drain(self) -> None:
        """Reads what is left, within limits, so that the client reads the answer, not an error of its connection."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAINED_SECONDS):
                while not self.complete and self._received < _DRAINED_BYTES:
                    await self._next()


class _Answer:
    """The messages of an answer, which get this server's headers.

    Attributes:
        started: whether the client has received its first one.
        status: the HTTP status code; 499 without an answer, as nginx counts clients that have gone.
    """

    def __init__(self, send: Send, body: _Body) -> None:
        self.started = False
        self.status = 499
        self._send = send
        self._body = body

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._body.drain()
            self.started = True
            self.status = message["status"]
            given = {name.lower() for name, _ in message.get("headers", [])}
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            own += [(b"cache-control", b"no-store")] if b"cache-control" not in given else []
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await self._send(message)

    async def refuse(self, scope: Scope, status: int, line: str) -> None:
        """Answers with an error."""
        await refusal(status, line)(scope, self._body, self)
