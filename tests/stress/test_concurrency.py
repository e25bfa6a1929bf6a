"""Two commands on one thing, in a folder and in a bucket: the second is refused while the first lives, then goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server

from catdog import storage
from catdog.data.catalog import Catalog

TRAIN = ("--arch", "workshop_cnn", "--image-size", "32", "--epochs", "3", "--batch-size", "16", "--workers", "1")
# A process in a PID namespace of its own is on another machine, as far as the process table tells.
ELSEWHERE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, bucket: S3Server, tmp_path: Path) -> str:  # noqa: ARG001
    return str(tmp_path / "shared") if request.param == "folder" else "s3://bucket/shared"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be ended with the test."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        process.kill()
        process.wait()


def begin(*words: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-m", "catdog", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def finish(process: subprocess.Popen[str]) -> tuple[int | None, str]:
    _, errors = process.communicate(timeout=400)
    return process.returncode, errors


def wait_for(uri: str) -> None:
    end = time.monotonic() + 120
    while not storage.exists(uri):
        assert time.monotonic() < end, f"no {uri}"
        time.sleep(0.1)


def refused(words: tuple[str, ...]) -> str:
    code, errors = finish(begin(*words))
    assert code == 1, errors
    assert errors.count("\n") == 1, errors
    assert "is in use: " in errors
    return errors


def test_two_scores_into_one_csv(
    place: str, drawn: Catalog, untrained: str, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    words = ("score", "--data", drawn.root, "--model", untrained, "--out")
    assert finish(begin(*words, str(tmp_path / "alone.csv")))[0] == 0
    out = storage.join(place, "results.csv")
    started.append(begin(*words, out))
    wait_for(storage.join(place, "results.parts", "lease.json"))
    started[0].send_signal(signal.SIGSTOP)  # alive, and in the middle
    assert f"scoring, process {started[0].pid} on this machine" in refused((*words, out))
    started[0].kill()
    started[0].wait()
    # At once, since the process table tells; and two at the same moment.
    started += [begin(*words, out), begin(*words, out)]
    ends = [finish(process) for process in started[1:]]
    for code, errors in ends:
        assert code == 0 or "is in use" in errors or "has just been taken" in errors, errors
    assert 0 in [code for code, _ in ends]
    assert storage.read_bytes(out) == (tmp_path / "alone.csv").read_bytes()
    assert finish(begin("submission", "check", out, "--data", drawn.root))[0] == 0


def test_two_trainings_of_one_name(place: str, drawn: Catalog, started: list[subprocess.Popen[str]]) -> None:
    words = ("train", "--data", drawn.root, "--runs", place, "--name", "one", *TRAIN)
    started += [begin(*words), begin(*words)]
    wait_for(storage.join(place, "one", "config.json"))
    # Without --resume it would be told that the name is taken.
    assert "training, process" in refused(("train", "--resume", "--runs", place, "--name", "one"))
    ends = [finish(process) for process in started]
    assert sorted(code for code, _ in ends) in ([0, 1], [0, 2]), ends
    assert storage.exists(storage.join(place, "one", "model", "bundle.json"))
    # One that dies is resumed at once.
    words = (*words[:6], "two", *TRAIN)
    started.append(begin(*words))
    wait_for(storage.join(place, "two", "config.json"))
    started[-1].kill()
    started[-1].wait()
    code, errors = finish(begin("train", "--resume", "--runs", place, "--name", "two"))
    assert code == 0, errors
    for name in ("one", "two"):
        assert "lease.json" not in storage.list_names(storage.join(place, name))


def test_a_training_that_was_taken_over_writes_no_more(
    place: str, drawn: Catalog, started: list[subprocess.Popen[str]]
) -> None:
    started.append(begin("train", "--data", drawn.root, "--runs", place, "--name", "lost", *TRAIN, "--epochs", "200"))
    run = storage.join(place, "lost")
    wait_for(storage.join(run, "checkpoints"))
    # As another machine does, after this one was cut off for a minute.
    taken = json.loads(storage.read_bytes(storage.join(run, "lease.json"))) | {"token": "another", "space": "elsewhere"}
    storage.write_text(storage.join(run, "lease.json"), json.dumps(taken))
    code, errors = finish(started[-1])
    assert code == 1, errors
    assert f"training: another process took over {run} while this one was suspended or cut off" in errors
    assert not storage.exists(storage.join(run, "model", "bundle.json"))
    assert json.loads(storage.read_bytes(storage.join(run, "lease.json"))) == taken


def test_two_audits_into_one_csv(
    place: str, drawn: Catalog, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    folds = ("train", "--data", drawn.root, "--runs", str(tmp_path), "--name", "cv", "--folds", "2", *TRAIN)
    code, errors = finish(begin(*folds))
    assert code == 0, errors
    out = storage.join(place, "audit.csv")
    words = ("data", "audit", "--data", drawn.root, "--oof", str(tmp_path / "cv"), "--out", out)
    started.append(begin(*words))
    wait_for(storage.join(place, "audit.lease.json"))
    started[0].send_signal(signal.SIGSTOP)
    assert f"an audit, process {started[0].pid} on this machine" in refused(words)
    started[0].kill()
    started[0].wait()
    code, errors = finish(begin(*words))
    assert code == 0, errors
    assert storage.list_names(place) == ["audit.csv", "audit.png"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may make a PID namespace")
def test_from_another_machine_the_heartbeat_decides(
    bucket: S3Server, drawn: Catalog, untrained: str, started: list[subprocess.Popen[str]]
) -> None:
    out = "s3://bucket/elsewhere/results.csv"
    words = ("score", "--data", drawn.root, "--model", untrained, "--out", out)
    started.append(begin(*words, prefix=ELSEWHERE))
    wait_for("s3://bucket/elsewhere/results.parts/lease.json")
    started[0].kill()
    started[0].wait()
    died = time.monotonic()
    assert "its lease expires within" in refused(words)
    bucket.set_faults(busy=0.05, seed=3)
    while (end := finish(begin(*words)))[0] != 0:
        assert "its lease expires within" in end[1]
        assert time.monotonic() < died + 150
    assert time.monotonic() > died + 40
    assert finish(begin("submission", "check", out, "--data", drawn.root))[0] == 0
