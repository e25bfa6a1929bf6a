"""The whole path with every file in a bucket: once undisturbed, once over a network and a store that fail often."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import kaggle_files, write
from s3_server import SECRET, S3Server

from catdog import storage

TRAIN = ("--arch", "workshop_cnn", "--image-size", "32", "--epochs", "3", "--batch-size", "16", "--workers", "2")
FAULTS = {"seed": 7, "busy": 0.08, "cut": 0.04, "slow": 0.04, "delay": 1.0, "lag": 5.0}


def run(*words: str, code: int = 0) -> str:
    """Runs the `catdog` command in a process of its own; its output, of both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "catdog", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def whole_path(root: str, source: str) -> tuple[bytes, str]:
    """Prepares, trains, scores and checks; the CSV, and all that was printed."""
    data, runs, out = (storage.join(root, name) for name in ("set", "runs", "sub/results.csv"))
    printed = run("data", "prepare", source, data)
    printed += run("train", "--data", data, "--runs", runs, "--name", "first", *TRAIN)
    printed += run("score", "--data", data, "--model", storage.join(runs, "first"), "--out", out)
    printed += run("submission", "check", out, "--data", data)
    return storage.read_bytes(out), printed


def test_everything_in_a_bucket(bucket: S3Server, tmp_path: Path, record_property) -> None:
    write(tmp_path / "source", kaggle_files(train=40, test=30))
    for path in sorted((tmp_path / "source").rglob("*.jpg")):
        storage.write_bytes(f"s3://bucket/source/{path.relative_to(tmp_path / 'source')}", path.read_bytes())
    undisturbed, printed = whole_path("s3://bucket/one", "s3://bucket/source")
    assert undisturbed == whole_path(str(tmp_path / "local"), str(tmp_path / "source"))[0]
    # The command once more finds nothing to do, and a second training of the name is refused.
    data, model = "s3://bucket/one/set", "s3://bucket/one/runs/first"
    printed += run("score", "--data", data, "--model", model, "--out", "s3://bucket/one/sub/results.csv")
    assert storage.read_bytes("s3://bucket/one/sub/results.csv") == undisturbed
    printed += run("train", "--data", data, "--runs", "s3://bucket/one/runs", "--name", "first", *TRAIN, code=2)
    bucket.take_counts()
    bucket.set_faults(**FAULTS)
    disturbed, more = whole_path("s3://bucket/two", "s3://bucket/source")
    counts = bucket.take_counts()
    bucket.set_faults()
    print(dict(counts))
    record_property("requests", dict(counts))
    assert disturbed == undisturbed
    assert min(counts["busy"], counts["cut"], counts["slow"]) > 0
    # Neither the secret nor a half-written upload is anywhere.
    assert SECRET not in printed + more
    for path, info in storage.list_files("s3://bucket").items():
        if info.is_file:
            assert SECRET.encode() not in storage.read_bytes(storage.join("s3://bucket", path))


@pytest.fixture(autouse=True)
def _short_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
