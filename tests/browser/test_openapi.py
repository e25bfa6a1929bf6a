"""The API does what its OpenAPI description says, for hundreds of requests that nobody would think of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from local_server import LocalBackend, listening

from catdog.data.catalog import Catalog
from catdog.serving.app import build_app
from catdog.serving.config import Limits
from catdog.serving.pictures import open_folder


def test_every_answer_is_as_described(untrained: str, drawn: Catalog) -> None:
    backend = LocalBackend(untrained)
    with listening(build_app(backend, backend.predictor.info, Limits(), open_folder(drawn.root, 10**6))) as url:
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("schemathesis"), "--config-file", "schemathesis.toml"),
                *("run", f"{url}openapi.json", "--max-examples", "100", "--seed", "1"),
                *("--no-color", "--request-timeout", "60"),
            ],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "5 selected / 5 total" in done.stdout
