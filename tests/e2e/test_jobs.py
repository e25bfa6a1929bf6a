"""The README's sequence on a real head: `ray start`, a token, `ray job submit` for training and for scoring."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from catdog.data import synthetic
from catdog.data.catalog import Catalog
from catdog.reporting import submission

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Head:
    """A Ray head of its own: free ports, its own folder, closed by a token."""

    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        port, self.dashboard, *others = _free_ports(6)
        self.temporary, self.log = folder / "h", folder / "head.log"
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        names = [
            "--dashboard-agent-listen-port",
            "--dashboard-agent-grpc-port",
            "--metrics-export-port",
            "--ray-client-server-port",
        ]
        self.process = subprocess.Popen(
            [
                BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
                f"--port={port}", f"--dashboard-port={self.dashboard}", f"--temp-dir={self.temporary}",
                *(f"{name}={value}" for name, value in zip(names, others, strict=True)),
            ],
            env=self.environment,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.dashboard}"
        self.address = f"127.0.0.1:{port}"

    def wait(self) -> None:
        """Until it answers; that it answers 401 to whoever has no token is part of it."""
        end = time.monotonic() + 90
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.url}/api/version", timeout=2).close()
            except urllib.error.HTTPError as error:
                if error.code == 401:
                    return
            except OSError:
                pass
            time.sleep(0.5)
        raise AssertionError("the head did not come up")

    def run(self, *command: str, timeout: float = 240) -> str:
        """Runs one of Ray's commands against this head."""
        environment = self.environment | {"RAY_ADDRESS": self.url}
        end = time.monotonic() + 60
        while True:
            done = subprocess.run(
                [BIN / "ray", *command],
                env=environment,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
            # The head answers a little sooner than its agent, which starts jobs, is there.
            if "No available agent" not in done.stderr or time.monotonic() > end:
                break
            time.sleep(1)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout

    def stop(self) -> None:
        """Ends the processes that this head started, and no others."""
        if self.process.poll() is not None:
            return
        # Asked politely, it takes longer than the five seconds that anybody would wait.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head(short_tmp: Path) -> Iterator[Head]:
    folder = short_tmp / "j"
    folder.mkdir()
    started = Head(folder)
    try:
        started.wait()
        yield started
    finally:
        started.stop()


def test_training_and_scoring_as_jobs(head: Head, tmp_path: Path) -> None:
    data = synthetic.synthesize(str(tmp_path / "set"), 96, 24, seed=4)
    submit = ["job", "submit", "--working-dir", ".", "--"]
    options = "--arch workshop_cnn --image-size 32 --epochs 1 --batch-size 16 --name job"
    train = f"python jobs/train.py --data {data.root} {options}"
    out = tmp_path / "out" / "results.csv"
    score = f"python jobs/score.py --model {tmp_path / 'runs' / 'job'} --data {data.root} --out {out}"
    # All in one job: each costs seconds to start.
    printed = head.run(*submit, "sh", "-c", f"{train} || {train} --runs {tmp_path / 'runs'} && {score}", timeout=480)
    assert "--runs received the relative path 'runs' in a submitted job" in printed
    assert "Training on 2 workers" in printed
    assert "epoch   1  loss" in printed
    assert "log loss" in printed.partition("/runs/job/report.html")[2]  # which training says last
    assert submission.check_submission(str(out), data).rows == 24
    assert json.loads((out.parent / "results.report.json").read_text())["n"] == data.count("valid")

    # They ran here: this cluster knows their actors, and no other was started for them.
    actors = json.loads(head.run("list", "actors", "--format", "json", "--limit", "1000"))
    names = [actor["class_name"] for actor in actors]
    assert sum("RayTrainWorker" in name for name in names) == 2
    assert any("PartScorer" in name for name in names)
    sessions = [path for path in head.temporary.iterdir() if path.name.startswith("session_2")]
    assert len(sessions) == 1
    uploads = list((sessions[0] / "runtime_resources" / "working_dir_files").glob("_ray_pkg_*"))
    uploads = [path for path in uploads if path.is_dir()]
    assert uploads
    for upload in uploads:
        files = [path for path in upload.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert sum(path.stat().st_size for path in files) < 3_000_000
        tops = {path.relative_to(upload).parts[0] for path in files}
        assert {"catdog", "jobs"} <= tops
        assert not {".venv", "data", "runs", ".git"} & tops


def test_who_has_not_the_token_is_told_what_to_set(head: Head, drawn: Catalog, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    wants = "requires a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    cases = [
        ({}, wants),
        ({"RAY_AUTH_MODE": "token"}, wants),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, "refused the token of RAY_AUTH_TOKEN;"),
    ]
    command = [sys.executable, "-m", "catdog", "train", "--data", drawn.root, "--runs", str(tmp_path)]
    started = [
        subprocess.Popen(
            [*command, "--name", f"run-{number}", "--address", head.address],
            env=kept | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, (environment, _) in enumerate(cases)
    ]
    for process, (_, message) in zip(started, cases, strict=True):
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert said.startswith(f"catdog: the Ray cluster at {head.address} {message}")
        assert said.count("\n") == 1
