"""An S3 server as a process of its own, with faults on demand: moto's, behind a layer that refuses, delays and cuts.

    python tests/s3_server.py --host 127.0.0.1 --port 0     # prints its URL, serves until it is killed

`S3Server` starts it, makes a bucket, and says what an unreliable network or an overloaded store would do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

KEY, SECRET = "test-key", "a-secret-that-no-file-may-have"


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        seed: of the random numbers that choose requests.
        busy: share of the requests that are answered with 503.
        cut: share of the requests whose connection ends in the middle of the answer.
        slow: share of the requests that are answered after `delay`.
        delay: in seconds.
        lag: age in seconds that an object must have to be listed.
        unconditional: refuse conditional writes, as a store without them does.
        only: a regular expression; faults are of those requests only whose "METHOD path" it finds.
    """

    seed: int = 0
    busy: float = 0.0
    cut: float = 0.0
    slow: float = 0.0
    delay: float = 0.0
    lag: float = 0.0
    unconditional: bool = False
    only: str = ""


class S3Server:
    """A running server and its bucket `bucket`.

    Attributes:
        url: of the server.
        environment: the variables by which pyarrow, obstore and the AWS tools find and enter it.
        process: the server's.
    """

    def __init__(self, host: str = "127.0.0.1", prefix: Iterable[str] = (), log: str = os.devnull) -> None:
        words = [*prefix, sys.executable, __file__, "--host", host]
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the S3 server did not start"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ALLOW_HTTP": "true",
        }

    def set_faults(self, **faults: Any) -> None:
        """Replaces all faults."""
        self._send("PUT", "/-/faults", json.dumps(faults).encode())

    def take_counts(self) -> Counter[str]:
        """The requests since the last call, by method, and those that went wrong by fault."""
        return Counter(json.loads(self._send("GET", "/-/counts")))

    def _send(self, method: str, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return answer.read()

    def stop(self) -> None:
        """Ends the server."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(host: str = "127.0.0.1") -> Iterator[S3Server]:
    """An S3 server while the block runs."""
    server = S3Server(host)
    try:
        yield server
    finally:
        server.stop()


Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass
class Unreliable:
    """A WSGI application that hands requests on to another one, or does not.

    Attributes:
        app: the other one.
    """

    app: Application
    faults: Faults = field(default_factory=Faults)
    counts: Counter[str] = field(default_factory=Counter)
    chance: random.Random = field(default_factory=random.Random)
    # moto looks whether an object exists and then writes it, which two threads could do at the same time.
    one: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        chunked = environ.pop("HTTP_TRANSFER_ENCODING", "") == "chunked"
        body = environ["wsgi.input"].read(*[] if chunked else [int(environ.get("CONTENT_LENGTH") or 0)])
        if path.startswith("/-/"):
            return self._control(path, body, start)
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        self.counts[method] += 1
        self.counts["conditional"] += (conditional := "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MATCH" in environ)
        self.counts["multipart"] += method == "POST" and environ.get("QUERY_STRING", "") == "uploads"
        faults = self.faults
        hit = not faults.only or re.search(faults.only, f"{method} {path}")
        draw = self.chance.random() if hit else 1.0
        if conditional and faults.unconditional and method == "PUT":
            return _refuse(start, "501 Not Implemented", "NotImplemented")
        if draw < faults.busy:
            self.counts["busy"] += 1
            return _refuse(start, "503 Slow Down", "SlowDown")
        if draw < faults.busy + faults.slow:
            self.counts["slow"] += 1
            time.sleep(faults.delay)
        answer: list[Any] = []
        with self.one if conditional else contextlib.nullcontext():
            data = b"".join(self.app(environ, lambda status, headers, *_: answer.extend([status, headers])))
        status, headers = answer
        if faults.lag and method == "GET" and "list-type" in environ.get("QUERY_STRING", ""):
            data = _without_new(data, faults.lag)
            headers = [(name, str(len(data)) if name.lower() == "content-length" else value) for name, value in headers]
        if 0 <= draw - faults.busy - faults.slow < faults.cut:
            self.counts["cut"] += 1
            # The request was carried out; half of the answer is sent, and of an empty one nothing.
            if data and method == "GET":
                start(status, headers)
                return _half(data, environ["werkzeug.socket"])
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        start(status, headers)
        return [] if method == "HEAD" else [data]

    def _control(self, path: str, body: bytes, start: Callable[..., Any]) -> Iterable[bytes]:
        answer = b""
        if path == "/-/faults":
            self.faults = Faults(**json.loads(body))
            self.chance = random.Random(self.faults.seed)
            answer = json.dumps(asdict(self.faults)).encode()
        elif path == "/-/counts":
            counts, self.counts = self.counts, Counter()
            answer = json.dumps(counts).encode()
        start("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]


def _refuse(start: Callable[..., Any], status: str, code: str) -> list[bytes]:
    data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as asked</Message></Error>".encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(data)))])
    return [data]


def _half(data: bytes, connection: socket.socket) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    connection.shutdown(socket.SHUT_RDWR)


def _without_new(listing: bytes, lag: float) -> bytes:
    def keep(found: re.Match[bytes]) -> bytes:
        written = re.search(rb"<LastModified>(.*?)</LastModified>", found[0])
        assert written is not None
        age = time.time() - datetime.fromisoformat(written[1].decode().replace("Z", "+00:00")).timestamp()
        return found[0] if age > lag else b""

    return re.sub(rb"<Contents>.*?</Contents>", keep, listing, flags=re.DOTALL)


def main() -> None:
    """Serves until the process is killed."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    # So that connections are kept, and a client that announces a body need not wait.
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    WSGIRequestHandler.log = lambda *_: None  # type: ignore[method-assign,assignment]
    app = Unreliable(DomainDispatcherApplication(create_backend_app))
    server = make_server(arguments.host, arguments.port, app, threaded=True)
    import boto3

    url = f"http://{arguments.host}:{server.port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    client.create_bucket(Bucket="bucket")
    print(url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
