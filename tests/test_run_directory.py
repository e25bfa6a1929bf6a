"""A run's folder: only a run is overwritten, only what catdog wrote is deleted, and one process works on it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from catdog import storage
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.run_directory import RunDirectory
from catdog.training.request import TrainConfig

CONTENT = {"options": TrainConfig(data="d").model_dump(mode="json"), "catalog_fingerprint": "f"}
# What training leaves, and a fold's run, and a cross-validation and a search of the same name.
FILES = (
    "config.json", "model/bundle.json", "model/model.keras", "checkpoints/checkpoint_1/variables.npz",
    "tensorboard/events.out.tfevents.1", "valid.parquet", "report.html", ".valid.parquet.12-0123abcd.tmp", "oof.csv",
    "oof.report.json", "oof.parts/valid-0.parquet", "seconds.json", "oof.parquet", "oof.json", "data/left-out.csv",
    "data/fold-1/catalog.parquet", "search.json", "tune/tuner.pkl",
)  # fmt: skip


def fill(folder: Path, files: tuple[str, ...] = FILES) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    (folder / "config.json").write_text(json.dumps(CONTENT))
    if "search.json" in files:
        (folder / "search.json").write_text(json.dumps({"grid": {"units": [4]}, "catalog_fingerprint": "f"}))
    return folder


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_overwriting_deletes_all_that_is_catdogs_and_nothing_else(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    for inner in ("member-1", "member-2", "fold-1", "units=4"):
        fill(folder / inner, FILES[:6])
    # A user's: notes in the run and in a member, photos in data/, a folder named like a member, a run put there.
    mine = {"notes.txt", "member-2/notes.txt", "data/photos/1.jpg", "member-3/thesis.txt", "other/config.json"}
    for name in mine - {"other/config.json"}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    fill(folder / "other", ("config.json",))
    run = RunDirectory(str(folder))
    run.require_free(overwrite=True)
    strangers = run.open(CONTENT | {"catalog_fingerprint": "new"}, overwrite=True)
    assert left(folder) == mine | {"config.json"}
    assert strangers == ["data", "member-2", "member-3", "notes.txt", "other"]
    assert json.loads((folder / "config.json").read_text())["catalog_fingerprint"] == "new"
    # The member starts anew beside the notes that are left in it; on its own that folder would be no place for a run.
    run.part("member", 2).require_free(overwrite=False, nested=True)
    with pytest.raises(UsageError, match="member-2 is not a run"):
        run.part("member", 2).require_free(overwrite=False)


def test_links_are_followed_to_the_run_and_not_from_it(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "disk" / "run", FILES[:6])
    (tmp_path / "link").symlink_to(elsewhere)
    (tmp_path / "archive").mkdir()
    (elsewhere / "model").rename(tmp_path / "archive" / "model")
    (elsewhere / "model").symlink_to(tmp_path / "archive" / "model")
    (elsewhere / "notes").symlink_to(tmp_path / "archive")
    run = RunDirectory(str(tmp_path / "link"))
    run.require_free(overwrite=True)
    assert run.open(CONTENT, overwrite=True) == ["notes"]
    assert left(elsewhere) == {"config.json"}
    assert (tmp_path / "link").is_symlink()
    assert left(tmp_path / "archive") == {"model/bundle.json", "model/model.keras"}
    assert not run.finished


def test_a_bucket_works_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(storage, "_bucket_filesystem", lambda _scheme, _bucket, _query: bucket)
    folder = fill(tmp_path / "bucket" / "runs" / "first")
    (folder / "notes.txt").write_text("mine")
    run = RunDirectory("s3://bucket/runs/first?region=eu-west-1")
    with pytest.raises(UsageError, match=r"'first', and s3://bucket/runs/first\?region=eu-west-1 exists"):
        run.require_free(overwrite=False)
    with run.hold("training"):
        assert run.open(CONTENT, overwrite=True) == ["notes.txt"]
    assert left(folder) == {"config.json", "notes.txt"}


@pytest.mark.parametrize(
    "config", ['{"architectures": ["ViTModel"]}', '{"options": {"lr": 1}, "catalog_fingerprint": ""}', "{", None]
)
def test_a_folder_that_is_no_run_is_left_alone(config: str | None, drawn: Catalog, tmp_path: Path, catdog) -> None:
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    if config is not None:
        (folder / "config.json").write_text(config)
    before = left(folder)
    for options in (["--overwrite"], []):
        refused = catdog("train", "--data", drawn.root, "--runs", tmp_path, "--name", "vit", *options)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert f"{folder} is not a run (it has no config.json that catdog wrote); left alone" in refused.err
        assert left(folder) == before


HOLD = """
import sys, time
from catdog.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).hold("training"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_that_another_process_works_on_is_refused_until_it_is_gone(
    drawn: Catalog, tmp_path: Path, catdog
) -> None:
    run = RunDirectory(str(tmp_path / "busy"))
    start = ["train", "--data", drawn.root, "--runs", tmp_path, "--name", "busy"]
    with subprocess.Popen([sys.executable, "-c", HOLD, run.uri], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        beside = (["oof", run.uri], ["data", "audit", "--data", drawn.root, "--oof", run.uri])
        for words in (start, [*start, "--folds", "2"], *beside):
            refused = catdog(*words)
            assert (refused.code, refused.err.count("\n")) == (1, 1)
            assert f"{run.uri} is in use: training, process {other.pid} on this machine" in refused.err
        other.send_signal(signal.SIGKILL)
    # Nothing was opened, so nothing hinders a start, and nothing is left of one that ends before it opened anything.
    run.require_free(overwrite=False)
    with run.hold("training"), pytest.raises(CatdogError, match="busy is in use: training"), run.hold("training"):
        pass
    with RunDirectory(str(tmp_path / "new")).hold("training"):
        pass
    assert not (tmp_path / "new").exists()
