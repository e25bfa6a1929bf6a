"""The server's app without Ray: a predictor in this process behind it, and a port of this machine before it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import uvicorn
from helpers import save_untrained
from starlette.types import ASGIApp

from catdog.data import images
from catdog.data.catalog import Catalog
from catdog.inference.bundle import read_info
from catdog.inference.explanation import Explainer
from catdog.inference.novelty import KnownImages, NoveltyScorer, has_statistics
from catdog.inference.predictor import Predictor
from catdog.serving.backend import Predicted, draw


class LocalBackend:
    """A predictor in a thread of this process.

    Attributes:
        gate: closed, it holds predictions back.
    """

    def __init__(self, model: str) -> None:
        self.predictor = Predictor.load([model])
        self._explainer = Explainer.load([model])
        known = has_statistics(read_info(model))
        self._scorer = NoveltyScorer([read_info(model)]) if known else None
        self.gate = threading.Event()
        self.gate.set()
        self._thread = ThreadPoolExecutor(1)

    async def predict(self, files: list[bytes]) -> list[Predicted]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._predict, files)

    def _predict(self, files: list[bytes]) -> list[Predicted]:
        assert self.gate.wait(30)
        found = self.predictor.predict_files(files)
        rows = zip(found.logits.tolist(), found.probabilities.tolist(), found.statuses, found.details, strict=True)
        return [Predicted(*row, batch=len(files)) for row in rows]

    async def novelty(self, data: bytes) -> float | None:
        return None if self._scorer is None else float(self._scorer.scores([data])[0])

    async def explain(self, data: bytes, label: int) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._thread, draw, self._explainer, data, label)

    async def require_ready(self) -> None:
        """It is."""


def save_knowing(uri: str, data: Catalog) -> str:
    """Saves an untrained bundle that knows what the photos of a data set look like; returns its URI."""
    known = KnownImages(
        images.read_batch(data.split("train")["uri"].to_pylist(), [32]).pixels[32],
        data.split("train")["label"].to_numpy().astype(np.int64),
        images.read_batch(data.split("valid")["uri"].to_pylist(), [32]).pixels[32],
    )
    save_untrained(uri, data, known=known)
    return uri


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Serves an app on a free port of this machine; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(20)
