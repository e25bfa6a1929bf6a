"""Fixtures shared by the tests: a drawn data set, an untrained bundle, the command line and short temporary folders."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Set before TensorFlow or Ray are imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# As in `cluster.connect` for a local cluster, because tests start many.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "20")
os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "500")
os.environ.pop("RAY_ADDRESS", None)

import pytest
from helpers import SHARED, Outcome, save_untrained
from s3_server import S3Server

from catdog.data import synthetic
from catdog.data.catalog import Catalog


@pytest.fixture
def catdog(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the `catdog` command in this process."""
    from catdog.cli import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["catdog", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main.main()
        printed = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A drawn data set: 96 labelled images, 24 unlabelled ones. Tests must not write into it."""
    return synthetic.synthesize(str(tmp_path_factory.mktemp("drawn") / "set"), 96, 24, seed=1, valid_fraction=0.25)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory, drawn: Catalog) -> str:
    """The folder of an untrained bundle for the drawn data set."""
    uri = str(tmp_path_factory.mktemp("untrained") / "model")
    save_untrained(uri, drawn)
    return uri


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A folder with a path short enough for Ray's sockets (107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="cd-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def two_cpus(short_tmp: Path) -> Iterator[str]:
    """Ray, in this process, with two CPUs; its address."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=str(short_tmp / "r"), log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """An S3 server that `s3://bucket` leads to."""
    import s3_server

    from catdog import buckets

    with s3_server.running() as s3, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        yield s3
    buckets.open_filesystem.cache_clear()
    buckets._store.cache_clear()


@pytest.fixture
def bucket(s3: S3Server) -> Iterator[S3Server]:
    """The S3 server with an empty bucket, without faults."""
    from catdog import storage

    s3.set_faults()
    for name in storage.list_names("s3://bucket"):
        uri = storage.join("s3://bucket", name)
        (storage.delete_folder if storage.kind(uri) == "folder" else storage.delete_file)(uri)
    s3.take_counts()
    yield s3
    s3.set_faults()


@pytest.fixture
def photos() -> Path:
    """The folder of real photos; skips the test if it is absent."""
    if not (SHARED / "kaggle").is_dir():
        pytest.skip("the real photos are absent")
    return SHARED / "kaggle"
