"""Load on `catdog serve`: many clients at once, beside the bare model on one core.

    python benchmarks/serving.py --model runs/first --data data/kaggle --clients 64 --seconds 30

Each client sends one test photo after another and waits for each answer; after 429 it waits as long as it is told to. A
server and its clients share the machine, so the clients are plain sockets, which cost little.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np

from catdog.data import catalog
from catdog.inference.predictor import Predictor

PHOTOS = 512
BOUNDARY = "photo-boundary"


def request_of(photo: bytes) -> bytes:
    """The bytes of a request with one photo."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="photo.jpg"\r\n\r\n'.encode()
    body = head + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    return (
        f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    ).encode() + body


async def client(port: int, photos: itertools.cycle[bytes], end: float, answers: list[tuple[int, float]]) -> None:
    """Sends photos until the end; notes status and seconds of each answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < end:
        started = time.perf_counter()
        writer.write(next(photos))
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        body = await reader.readexactly(length)
        status = int(head.split()[1])
        answers.append((status, time.perf_counter() - started))
        assert status != 200 or json.loads(body)["predictions"][0]["status"] == "ok"
        if status == 429:
            await asyncio.sleep(float(head.partition("retry-after:")[2].split()[0]))
    writer.close()


async def load(port: int, photos: list[bytes], clients: int, seconds: float) -> list[tuple[int, float]]:
    """Runs clients at the same time."""
    answers: list[tuple[int, float]] = []
    end = time.perf_counter() + seconds
    requests = itertools.cycle(map(request_of, photos))
    shared = itertools.cycle(list(itertools.islice(requests, len(photos))))
    await asyncio.gather(*(client(port, shared, end, answers) for _ in range(clients)))
    return answers


def row(name: str, answers: list[tuple[int, float]], seconds: float) -> str:
    """A line of the table."""
    codes = Counter(status for status, _ in answers)
    good = np.array([spent for status, spent in answers if status == 200])
    failed = sum(count for status, count in codes.items() if status >= 500)
    p50, p99 = np.percentile(good, [50, 99]) * 1000
    share = codes[429] / len(answers)
    refused = f"{share:.1%} | {failed}" if "serve" in name else " | "
    return f"| {name} | {len(good) / seconds:.0f} | {p50:.0f} | {p99:.0f} | {refused} | {len(answers):,} |"


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--port", type=int, default=8200)
    options, more = parser.parse_known_args()
    uris = catalog.read_catalog(options.data).split("test")["uri"].to_pylist()[:PHOTOS]
    photos = [Path(uri).read_bytes() for uri in uris]

    rows = []
    predictor = Predictor.load([options.model])
    predictor.predict_files(photos[:16])
    for count in (1, 64):
        spent = []
        started = time.perf_counter()
        for at in itertools.cycle(range(0, PHOTOS, count)):
            begun = time.perf_counter()
            predictor.predict_files(photos[at : at + count])
            spent.append((200, time.perf_counter() - begun))
            if time.perf_counter() - started > options.seconds / 3:
                break
        seconds = (time.perf_counter() - started) / count
        rows.append(row(f"bare model, {count} at a time, one core", spent, seconds))

    command = [sys.executable, "-m", "catdog", "serve", "--model", options.model, "--port", str(options.port), *more]
    started = time.perf_counter()
    server = subprocess.Popen(command, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"})
    try:
        while True:
            assert server.poll() is None
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{options.port}/healthz", timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        print(f"ready after {time.perf_counter() - started:.1f} s", flush=True)
        for clients in dict.fromkeys((1, options.clients)):
            asyncio.run(load(options.port, photos, clients, 5))  # replicas are added
            answers = asyncio.run(load(options.port, photos, clients, options.seconds))
            rows.append(row(f"`catdog serve`, {clients} client{'s' * (clients > 1)}", answers, options.seconds))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    print("| | photos/s | p50 ms | p99 ms | 429 | 5xx | answers |\n|---|--:|--:|--:|--:|--:|--:|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
