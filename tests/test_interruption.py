"""Ctrl-C and SIGTERM, as real signals to real processes; tests/e2e/test_training.py has them in training."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import jpeg

from catdog import lease
from catdog.data.catalog import Catalog

ROOT = Path(__file__).parents[1]


def start(*command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)


def wait_for_guard(process: subprocess.Popen[str]) -> None:
    """Until the process catches SIGTERM; before that it is Python that starts, and catdog cannot say anything."""
    end = time.monotonic() + 30
    while True:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        assert time.monotonic() < end, "no guard"
        time.sleep(0.002)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_cut_short_and_the_command_to_go_on(number: int, code: int, tmp_path: Path) -> None:
    dest = tmp_path / "drawn cats"
    arguments = ["data", "synthesize", dest, "--train", 20000, "--test", 1]
    with start("-m", "catdog", *arguments) as process:
        wait_for(dest / "train" / "cat.3.jpg")
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == code
    first, command = said.splitlines()
    assert first == "catdog: interrupted; no data set was written; to start again:"
    assert shlex.split(command) == ["catdog", *map(str, arguments)]


def test_preparing_a_folder(tmp_path: Path) -> None:
    pictures = [jpeg(number) for number in (0, 1)]
    for number in range(4000):
        path = tmp_path / "source" / ("cats", "dogs")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures[number % 2])
    with start("-m", "catdog", "data", "prepare", tmp_path / "source", tmp_path / "set") as process:
        wait_for(tmp_path / "set")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.startswith("catdog: interrupted; no data set was written; to start again:\n  catdog data prepare ")
    assert said.count("\n") == 2
    assert not (tmp_path / "set" / "catalog.parquet").exists()


@pytest.mark.parametrize(
    ("script", "moments"),
    # Once it has begun, a job is the command.
    [(["-m", "catdog", "train"], (0, 0.1, 0.5, 1.2)), (["jobs/train.py"], (0, 0.1))],
)
def test_no_moment_of_the_start_shows_a_traceback(
    script: list[str], moments: tuple[float, ...], drawn: Catalog, tmp_path: Path
) -> None:
    """From the first line of catdog to where Ray is being imported."""

    def interrupt(number: int, moment: float) -> None:
        name = f"run-{number}"
        # Named, because of a default architecture is said that it is one.
        options = ["--data", drawn.root, "--arch", "small_resnet", "--runs", tmp_path / "runs", "--name", name]
        with start(*script, *options) as process:
            wait_for_guard(process)
            time.sleep(moment)
            process.send_signal((signal.SIGINT, signal.SIGTERM)[number % 2])
            shown, said = process.communicate(timeout=20)
        assert process.returncode == (130, 143)[number % 2], said
        assert shown == ""
        assert said.startswith("catdog: interrupted; ")
        assert said.splitlines()[-1].split()[:2] == ["catdog", "train"]
        assert said.count("\n") == 2
        assert not (tmp_path / "runs" / name).exists()

    with ThreadPoolExecutor() as pool:
        list(pool.map(interrupt, range(len(moments)), moments))


STUCK = """
import signal, sys, time
from catdog import interruption
def command():
    # What libraries do: another handler, and an exception that is lost.
    if sys.argv[2:] == ["replaced"]:
        signal.signal(signal.SIGINT, lambda *_: None)
    said = False
    while True:
        try:
            said = said or print("ready", flush=True) is None
            time.sleep(60)
        except KeyboardInterrupt:
            pass
interruption.GRACE_SECONDS = float(sys.argv[1])
interruption.guard(command)
"""


@pytest.mark.parametrize("arguments", [[], ["replaced"]])
@pytest.mark.parametrize(("grace", "signals"), [(0.3, 1), (60, 2)])
def test_a_process_that_does_not_end_is_ended(arguments: list[str], grace: float, signals: int) -> None:
    """When its time is over, or by a second signal long before that."""
    with start("-c", STUCK, grace, *arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        said = process.stderr.readline()
        if signals == 2:
            process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert time.monotonic() - sent >= grace or signals == 2
    assert said.count("catdog: interrupted; to start again:") == 1


def test_debug_shows_where_it_was(tmp_path: Path) -> None:
    with start("-m", "catdog", "data", "synthesize", tmp_path / "d", "--train", 20000, "--debug") as process:
        wait_for(tmp_path / "d" / "train" / "cat.3.jpg")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback (most recent call last):" in said
    assert "synthetic.py" in said


HOLD = """
import os, sys, time
from catdog import lease
with lease.hold(sys.argv[1], "scoring"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_scoring_into_the_same_files_is_refused(
    drawn: Catalog, untrained: str, tmp_path: Path, catdog
) -> None:
    uri = tmp_path / "results.parts" / "lease.json"
    with start("-c", HOLD, uri) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused = catdog("score", "--model", untrained, "--data", drawn.root, "--out", tmp_path / "results.csv")
        assert (refused.code, refused.err.count("\n")) == (1, 1)
        assert f"results.parts is in use: scoring, process {other.pid} on this machine" in refused.err
        other.kill()
    with lease.hold(str(uri), "scoring"):
        pass
