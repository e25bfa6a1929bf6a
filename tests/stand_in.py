"""A local server in place of Kaggle, Microsoft and fast.ai: it speaks what their clients ask, and fails on demand.

Kaggle's requests are those of its client 2.2 (`kagglesdk`): JSON by POST to /v1/SERVICE/NAME, the file itself by PUT.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclasses.dataclass
class File:
    """A file on the server.

    Attributes:
        content: its bytes.
        etag: its entity tag; "" for none.
        drop_after: bytes after which the connection is cut, one for each of the next answers; then whole answers.
        knows_ranges: False if it ignores `Range`.
        obeys_if_range: False if it sends a range of whatever version it has.
        answers: status codes of the next answers, before any bytes.
        kind: its content type.
        after: called after each answer, to change the file for example.
    """

    content: bytes
    etag: str = '"one"'
    drop_after: list[int] = dataclasses.field(default_factory=list)
    knows_ranges: bool = True
    obeys_if_range: bool = True
    answers: list[int] = dataclasses.field(default_factory=list)
    kind: str = "application/octet-stream"
    after: Callable[[File], None] | None = None


@dataclasses.dataclass
class StandIn:
    """The server and what it has seen.

    Attributes:
        url: its address.
        files: by path.
        requests: every request: name of the call or path, and its JSON or its `Range`.
        uploads: bytes of every upload.
        submissions: as `ListSubmissions` answers, the newest first.
        scores: what the newest submission is updated with, one entry for each time that Kaggle is asked.
        faults: status code and message by name of the call.
        user: whom the token belongs to; "" for an unknown token.
    """

    url: str = ""
    files: dict[str, File] = dataclasses.field(default_factory=dict)
    requests: list[tuple[str, Any]] = dataclasses.field(default_factory=list)
    uploads: list[bytes] = dataclasses.field(default_factory=list)
    submissions: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    scores: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    faults: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    user: str = "somebody"

    def calls(self, name: str) -> list[Any]:
        """What was asked of one call or path."""
        return [body for called, body in self.requests if called == name]

    def answer(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Kaggle's answer to a call."""
        match name:
            case "IntrospectToken":
                return {"active": bool(self.user), "username": self.user}
            case "StartSubmissionUpload":
                return {"token": "blob", "createUrl": f"{self.url}/upload"}
            case "CreateSubmission":
                entry = {"ref": 4711 + len(self.submissions), "status": "PENDING"}
                names = [each["fileName"] for called, each in self.requests if called == "StartSubmissionUpload"]
                entry |= {"fileName": names[-1], "description": body.get("submissionDescription", "")}
                self.submissions.insert(0, entry)
                return {"message": f"Successfully submitted to {body['competitionName']}", "ref": entry["ref"]}
            case "ListSubmissions":
                if self.submissions and self.scores:
                    self.submissions[0] |= self.scores.pop(0)
                return {"submissions": self.submissions}
        raise AssertionError(name)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        name = self.path.rsplit("/", 1)[-1]
        self.stand_in.requests.append((name, body))
        if name in self.stand_in.faults:
            code, message = self.stand_in.faults[name]
            self._json({"code": code, "message": message}, code)
        elif name == "DownloadDataFiles":
            self.send_response(302)
            self.send_header("Location", f"{self.stand_in.url}/{body['competitionName']}.zip?signature=x")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._json(self.stand_in.answer(name, body))

    def do_PUT(self) -> None:
        length = self.headers.get("Content-Length")
        data = self.rfile.read(int(length)) if length else b"".join(self._chunks())
        self.stand_in.uploads.append(data)
        code, message = self.stand_in.faults.get("upload", (200, ""))
        self._json({"message": message}, code)

    def do_GET(self) -> None:
        path = self.path.split("?")[0].lstrip("/")
        file = self.stand_in.files.get(path)
        self.stand_in.requests.append((path, self.headers.get("Range")))
        if file is None:
            self.send_error(404)
            return
        if file.answers:
            self.send_response(file.answers.pop(0))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, start = file.content, 0
        wanted = self.headers.get("Range")
        fits = self.headers.get("If-Range") in (None, file.etag) or not file.obeys_if_range
        if wanted and file.knows_ranges and fits:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if file.knows_ranges:
            self.send_header("Accept-Ranges", "bytes")
        if file.etag:
            self.send_header("ETag", file.etag)
        self.send_header("Content-Type", file.kind)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = file.drop_after.pop(0) if file.drop_after else len(content)
        self.wfile.write(content[start : max(start, stop)])
        self.wfile.flush()
        if stop < len(content):
            self.close_connection = True
        if file.after is not None:
            file.after(file)

    def _json(self, content: dict[str, Any], code: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()


@contextmanager
def serve() -> Iterator[StandIn]:
    """Runs the server while the block runs."""
    stand_in = StandIn()
    handler = type("Handler", (_Handler,), {"stand_in": stand_in})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def as_kaggle(patch: Any) -> Iterator[StandIn]:
    """The same, with Kaggle's client asking it instead of Kaggle, and never with credentials of this machine's user.

    Args:
        patch: pytest's `monkeypatch`.
    """
    from kagglesdk import kaggle_creds, kaggle_env

    with serve() as stand_in:
        patch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, stand_in.url)
        patch.setenv("KAGGLE_API_TOKEN", "token-of-somebody")
        for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
            patch.delenv(name, raising=False)
        from kaggle.api.kaggle_api_extended import KaggleApi

        patch.setattr(KaggleApi, "read_config_file", lambda *_, **__: {})
        patch.setattr(kaggle_creds.KaggleCredentials, "load", lambda *_, **__: None)
        yield stand_in
