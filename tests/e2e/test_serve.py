"""`catdog serve` on Ray Serve: the bits of scoring, batches, explanations, too many requests, and its end."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from catdog.data.catalog import Catalog
from catdog.scoring import ScoreConfig, read_parts, score_dataset

ROOT = Path(__file__).parents[2]
# Decoders with the faults of bad native code, for files that name one.
POISON = ROOT / "tests" / "poison"


class Server:
    """The command, in a process of its own."""

    def __init__(self, model: str, pictures: str, temporary: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = temporary / "log"
        options = ["--model", model, "--pictures", pictures, "--port", str(port), "--max-requests", "6"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "catdog", "serve", *options],
            env=os.environ | {"RAY_TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join([str(POISON), str(ROOT)])},
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + 90
        while "Ctrl-C" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def server(untrained: str, drawn: Catalog, short_tmp: Path) -> Iterator[Server]:
    (short_tmp / "s").mkdir()
    started = Server(untrained, drawn.root, short_tmp / "s")
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.wait()


@pytest.mark.usefixtures("two_cpus")
def test_the_server(server: Server, untrained: str, drawn: Catalog, tmp_path: Path) -> None:
    files = {row["key"]: Path(row["uri"]).read_bytes() for row in drawn.split("test").to_pylist()}
    with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(16) as pool:

        def predict(key: str) -> httpx.Response:
            return client.post("/v1/predict", files={"files": (key, files[key])})

        assert client.get("/healthz").json()["status"] == "ok"
        assert "<title>Cat or dog?</title>" in client.get("/").text

        # Many at once: some are sent away, none fails, and the others are predicted together.
        answers = list(pool.map(predict, [*files] * 4))
        codes = Counter(answer.status_code for answer in answers)
        assert codes.keys() <= {200, 429}
        assert codes[200] >= 6
        assert codes[429] >= 1
        assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
            if not sample.labels
        }
        assert samples["catdog_batch_images_count"] == codes[200]
        assert samples["catdog_batch_images_sum"] > codes[200]

        # Each picture, alone or with others, has the bits that scoring gives it.
        found = {key: [predict(key).json()["predictions"][0]["logit"]] for key in files}
        for key, answer in zip([*files] * 4, answers, strict=True):
            if answer.status_code == 200:
                found[key].append(answer.json()["predictions"][0]["logit"])
        out = str(tmp_path / "results.csv")
        score_dataset(ScoreConfig(model=[untrained], data=drawn.root, split="test", out=out))
        parts = read_parts(out).to_pylist()
        assert len(parts) == len(files)
        for row in parts:
            assert {np.float32(logit) for logit in found[row["key"]]} == {np.float32(row["logit"])}

        explained = client.post("/v1/explain", files={"files": next(iter(files.values()))})
        assert explained.status_code == 200, explained.text
        assert Image.open(io.BytesIO(explained.content)).format == "JPEG"
        assert client.get("/v1/random").json()["prediction"]["status"] == "ok"

        # A picture that crashes its decoder, or never ends, costs itself; those beside it get their bits.
        sent = [(key, data) for key, data in files.items() if key in found][:5]
        deadly = {1: ("SEGFAULT", "crashed while decoding"), 3: ("SPIN", "timed out while decoding (1 s)")}
        poisoned = [
            ("files", (key, data + (b"POISON:" + deadly[at][0].encode() if at in deadly else b"")))
            for at, (key, data) in enumerate(sent)
        ]
        # No replica died of it, or this would be a failure.
        answer = client.post("/v1/predict", files=poisoned)
        assert answer.status_code == 200, answer.text
        for at, (prediction, (key, _)) in enumerate(zip(answer.json()["predictions"], sent, strict=True)):
            if at in deadly:
                assert (prediction["status"], prediction["detail"]) == ("unreadable", deadly[at][1])
            else:
                assert prediction["logit"] == found[key][0]
        alone = client.post("/v1/explain", files={"files": sent[0][1] + b"POISON:SEGFAULT"})
        assert alone.status_code == 422
        assert "crashed while decoding" in alone.json()["error"]

    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 128 + signal.SIGTERM
    ended = server.log.read_text().partition("Ctrl-C ends the server.\n")[2]
    assert ended == "catdog: interrupted; the server ends\n"
