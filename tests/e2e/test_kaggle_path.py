"""`catdog kaggle`: from the download to Kaggle's score, killed in the middle, and never twice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import wait_for_checkpoint, zipped
from stand_in import File, as_kaggle

from catdog.data.catalog import Catalog

# What the command line does, with Kaggle's client asking the stand-in.
SCRIPT = """
import sys
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = sys.argv.pop(1)
from catdog.__main__ import main
main()
"""


def test_a_competition_from_its_data_to_its_score(
    drawn: Catalog, two_cpus: str, tmp_path: Path, catdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        key: Path(uri).read_bytes()
        for key, uri in zip(*(drawn.table[c].to_pylist() for c in ("key", "uri")), strict=True)
    }
    folder = tmp_path / "redux"
    options = "--set image_size=32 --set epochs=2 --set batch_size=16 --set workers=1 --set cpus_per_worker=1"
    command = ["kaggle", str(folder), "--competition", "mine", *options.split(), "--address", two_cpus]
    command += ["--arch", "small_resnet"]
    with as_kaggle(monkeypatch) as kaggle:
        kaggle.files["mine.zip"] = File(zipped(files))
        arguments = [sys.executable, "-c", SCRIPT, kaggle.url, *command, "--no-submit"]
        with subprocess.Popen(
            arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        ) as first:
            assert first.stdout is not None
            said = []
            for line in first.stdout:
                said.append(line)
                if line.startswith("epoch   1"):
                    wait_for_checkpoint(str(folder / "runs"), "first")
                    first.send_signal(signal.SIGKILL)
        assert f"Downloaded {folder}/download/mine.zip" in "".join(said)
        assert not (folder / "submissions").exists()

        kaggle.scores = [{"status": "COMPLETE", "publicScore": "0.6", "privateScore": "0.7"}]
        done = catdog(*command, "--yes")
        assert done.code == 0, done.err
        for skipped in (
            "Download: skipped",
            "Prepare: skipped",
            "Train: goes on with",
            "Training on 1 worker after epoch 1",
        ):
            assert skipped in done.out
        assert "24 rows, every test id once" in done.out
        assert f"Sent {folder}/submissions/first.csv: Successfully submitted to mine (submission 4711)" in done.out
        assert "private   0.70000" in done.out
        assert kaggle.uploads == [(folder / "submissions" / "first.csv").read_bytes()]
        assert len(kaggle.calls("mine.zip")) == 1

        before = len(kaggle.requests)
        again = catdog(*command, "--yes")
        assert again.code == 0, again.err
        for step in ("Download: skipped", "Prepare: skipped", "Train: skipped", "Score: skipped", "Sent before"):
            assert step in again.out
        assert "private   0.70000" in again.out
        assert len(kaggle.requests) == before

        # Other options are another run, and another source is another folder.
        other = catdog(*command, "--yes", "--arch", "workshop_cnn")
        assert other.code == 2
        assert "run 'first' was started with --arch small_resnet, received workshop_cnn" in other.err
        (tmp_path / "other.zip").write_bytes(zipped(files))
        other = catdog(*command, "--yes", "--source", tmp_path / "other.zip")
        assert other.code == 1
        assert "was begun with mine.zip" in other.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "kaggle received no --yes, and there is no terminal to ask in; give --yes to send, or --no-submit"),
        ("--yes --no-submit", "--yes and --no-submit received together"),
        ("--yes --name a/b", "--name received 'a/b', expected a plain folder name"),
        ("--yes --source nowhere.zip", "--source received .*nowhere.zip', which does not exist"),
        ("--yes --arch resnet", "--arch received 'resnet', expected one of"),
        ("--yes --set runs=elsewhere", "--set received runs, which DIR and --name decide"),
        ("--yes --set nonsense=1", "--set received 'nonsense=1', expected NAME=VALUE"),
    ],
)
def test_what_cannot_be_is_said_at_once(options: str, message: str, tmp_path: Path, catdog) -> None:
    refused = catdog("kaggle", tmp_path / "x", *options.split())
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert re.search(message, refused.err), refused.err
    assert not (tmp_path / "x").exists()
