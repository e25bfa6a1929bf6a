"""Buckets: a real S3 server in a process of its own, with an unreliable network before it, and leases in it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import Outcome, kaggle_files, write
from s3_server import S3Server

from catdog import lease, storage
from catdog.data import datasets
from catdog.errors import CatdogError, UsageError
from catdog.run_directory import RunDirectory

HOLD = """
import sys, time
from catdog import lease
lease.BEAT_SECONDS, lease.STALE_SECONDS = 0.3, 3
with lease.hold(sys.argv[1], "a test"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_bucket_holds_what_was_written(bucket: S3Server) -> None:
    for name in ("a", "with space", "100%", "50%25", "é#1", "what?", "-x"):
        uri = storage.join("s3://bucket/new/folder", name)
        storage.write_bytes(uri, name.encode())
        assert storage.read_bytes(uri) == name.encode()
        assert storage.kind(uri) == "file"
    assert len(storage.list_names("s3://bucket/new/folder")) == 7
    assert storage.kind("s3://bucket/new/folder") == "folder"
    assert bucket.take_counts()["multipart"] == 0  # one request for a small object
    large = bytes(range(256)) * 80_000
    storage.write_bytes("s3://bucket/new/large", large)
    assert bucket.take_counts()["multipart"] == 1
    assert storage.read_bytes("s3://bucket/new/large") == large
    storage.delete_folder("s3://bucket/new")
    assert storage.kind("s3://bucket/new") == "absent"
    with pytest.raises(CatdogError, match="could not write s3://nobody/x: "):
        storage.write_bytes("s3://nobody/x", b"1")
    with pytest.raises(CatdogError, match="could not write s3://nobody/x: "):
        storage.create_text("s3://nobody/x", "1")


def test_the_uri_may_name_the_server(bucket: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    place = bucket.url.removeprefix("http://")
    uri = f"s3://bucket/x?endpoint_override={place}&scheme=http&region=us-east-1"
    assert storage.create_text(uri, "1")
    assert not storage.create_text(uri, "2")
    assert storage.read_bytes(uri) == b"1"


def write_read_and_replace(objects: int) -> None:
    """Requests of every kind that `storage` makes, all of which must have their effect once."""
    for number in range(objects):
        uri = f"s3://bucket/f/{number}"
        storage.write_bytes(uri, b"%d" % number * 1000)
        assert storage.read_bytes(uri) == b"%d" % number * 1000
        assert storage.create_text(f"s3://bucket/c/{number}", f"text {number}")
        assert storage.replace_text(f"s3://bucket/c/{number}", b"text %d" % number, f"other {number}")
    assert len(storage.list_names("s3://bucket/f")) == objects


def test_what_a_store_refuses_or_the_network_loses_is_repeated(bucket: S3Server) -> None:
    bucket.set_faults(seed=1, busy=0.15, cut=0.15, slow=0.1, delay=0.1)
    write_read_and_replace(5)
    counts = bucket.take_counts()
    assert min(counts["busy"], counts["cut"], counts["slow"]) > 0


def test_a_data_set_is_prepared_whatever_the_store_refuses_or_lists_late(bucket: S3Server, tmp_path: Path) -> None:
    files = kaggle_files(train=10, test=4)
    for name, data in files.items():
        storage.write_bytes(f"s3://bucket/source/{name}", data)
    source = datasets.prepare_dataset("s3://bucket/source", "s3://bucket/calm")
    local = datasets.prepare_dataset(str(write(tmp_path / "source", files)), str(tmp_path / "set"))
    bucket.take_counts()
    bucket.set_faults(seed=1, busy=0.1, cut=0.1, lag=3600)
    data = datasets.prepare_dataset(str(tmp_path / "source"), "s3://bucket/set")
    counts = bucket.take_counts()
    bucket.set_faults()
    assert min(counts["busy"], counts["cut"]) > 0
    assert data.fingerprint == source.fingerprint == local.fingerprint
    assert [storage.read_bytes(uri) for uri in data.table["uri"].to_pylist()] == [
        Path(uri).read_bytes() for uri in local.table["uri"].to_pylist()
    ]


def test_of_several_starts_one_wins(bucket: S3Server) -> None:  # noqa: ARG001
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.create_text("s3://bucket/one", f"{number}"), range(8)))
    assert won.count(True) == 1
    before = storage.read_bytes("s3://bucket/one")
    assert before == str(won.index(True)).encode()
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.replace_text("s3://bucket/one", before, f"new {number}"), range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes("s3://bucket/one") == f"new {won.index(True)}".encode()
    assert not storage.replace_text("s3://bucket/none", b"other", "late")


def test_a_lease_lives_as_long_as_its_process(bucket: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    run = RunDirectory("s3://bucket/runs/first")
    words = [sys.executable, "-c", HOLD, storage.join(run.uri, "lease.json")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(CatdogError, match=f"first is in use: a test, process {other.pid} on this machine"):
                run.hold("x").__enter__()
            # As another machine does it, whose clock is an hour ahead.
            monkeypatch.setattr(lease, "_process_space", lambda: "another machine")
            monkeypatch.setattr(lease, "STALE_SECONDS", 3)
            now = time.time
            began = time.monotonic()
            while time.monotonic() < began + 4:  # longer than a lease without heartbeats
                with monkeypatch.context() as patch:
                    patch.setattr("time.time", lambda: now() + 3600)
                    with pytest.raises(CatdogError, match=r"expires within [123] s\)"):
                        run.hold("x").__enter__()
                time.sleep(0.5)
            assert run.holder is not None
        finally:
            other.kill()
    with pytest.raises(CatdogError, match="is in use"):  # the process table of that machine is out of sight
        run.hold("x").__enter__()
    with run.hold("x", patience=20) as held:
        held.require_held()
        assert storage.list_names(run.uri) == ["lease.json"]
    assert not storage.list_names(run.uri)


@pytest.mark.parametrize(
    "uri", ["s3://AKIA:hush@bucket/x.csv", "s3://bucket/x.csv?secret_key=hush", "gs://:hush@b/x.csv"]
)
@pytest.mark.parametrize(
    "command",
    [
        ["score", "--data", "absent", "--model", "absent", "--out"],
        ["score", "--data", "absent", "--model"],
        ["train", "--name", "x", "--data"],
        ["train", "--name", "x", "--data", "absent", "--runs"],
        ["data", "prepare", "absent"],
        ["data", "prepare"],
        ["submission", "check", "absent.csv", "--data"],
        ["predict", "--model", "absent"],
        ["runs", "--runs"],
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(
    catdog: Callable[..., Outcome], command: list[str], uri: str
) -> None:
    done = catdog(*command, uri, *(["absent"] if command == ["data", "prepare"] else []))
    assert done.code == UsageError.exit_code
    assert "with credentials, which would be written to logs and files" in done.err
    assert "hush" not in done.out + done.err
    assert "AKIA" not in done.out + done.err
