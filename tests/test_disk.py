"""Disks that are full or may not be written to: one clear line, nothing half under a final name, a rerun finishes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import NOBODY, Outcome, as_user, jpeg

from catdog import storage, tables
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError
from catdog.inference.predictor import Predictions
from catdog.reporting import result_set, submission
from catdog.scoring import parts, results


class SmallDisk:
    """A disk of one megabyte.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leaves no room, also not for another file's first byte."""
        with contextlib.suppress(OSError), open(self.folder / "filling", "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def make_room(self) -> None:
        """Deletes what filled it."""
        (self.folder / "filling").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (folder := tmp_path / "disk").mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def predictions(count: int) -> Predictions:
    logits = np.linspace(-3, 3, count, dtype=np.float32)
    return Predictions(logits, 1 / (1 + np.exp(-logits.astype(np.float64))), ["ok"] * count, [""] * count)


@pytest.mark.parametrize("what", ["part", "features", "csv", "sidecar"])
def test_what_does_not_fit_leaves_nothing(disk: SmallDisk, drawn: Catalog, what: str) -> None:
    rows = drawn.split("test")
    uri = str(disk.folder / "results.csv")
    written, write = {
        "part": ("p.parquet", lambda: parts.write_part(f"{disk.folder}/p.parquet", rows, predictions(len(rows)))),
        "features": ("f.parquet", lambda: tables.write_table(f"{disk.folder}/f.parquet", pa.table({"x": range(9)}))),
        "csv": ("results.csv", lambda: submission.write_submission(uri, rows["id"], np.full(len(rows), 0.5))),
        "sidecar": ("results.meta.json", lambda: result_set.write_meta(uri, {"a": 1})),
    }[what]
    write()
    before = (disk.folder / written).read_bytes()
    for place in (disk.folder / written, None):  # over an older one, and where there is none
        disk.fill()
        with pytest.raises(CatdogError, match=f"^could not write {disk.folder}/{written}: No space left on device$"):
            write()
        assert sorted(path.name for path in disk.folder.iterdir()) == sorted(["filling", *([written] if place else [])])
        disk.make_room()
        if place:
            assert place.read_bytes() == before
            place.unlink()
    write()
    assert (disk.folder / written).read_bytes() == before


def test_a_full_temporary_folder_is_said_and_kills_nothing(
    disk: SmallDisk, drawn: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = parts.cut_split("test", drawn.split("test"), 8, ["origin"], str(tmp_path))
    for part in cut:
        parts.write_part(part.uri, part.rows, predictions(len(part.rows)))
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    disk.fill()
    with pytest.raises(CatdogError, match=f"of predictions in {disk.folder}: No space left on device; make room"):
        results.merge_parts(cut, drawn)
    disk.make_room()
    assert len(results.merge_parts(cut, drawn).probabilities) == drawn.count("test")


def test_a_data_set_that_does_not_fit_is_written_once_there_is_room(
    disk: SmallDisk, catdog: Callable[..., Outcome]
) -> None:
    disk.fill()
    words = ("data", "synthesize", disk.folder / "set", "--train", "8", "--test", "2")
    done = catdog(*words)
    assert done.code == 1
    assert done.err.startswith(f"catdog: could not write {disk.folder}/set/")
    assert done.err.endswith(": No space left on device\n")
    assert storage.list_names(str(disk.folder / "set")) == []
    disk.make_room()
    assert catdog(*words).code == 0


@pytest.mark.parametrize("words", [["data", "synthesize", "FILE"], ["data", "prepare", "SOURCE", "FILE/set"]])
def test_a_file_where_a_folder_should_be(tmp_path: Path, catdog: Callable[..., Outcome], words: list[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for name in ("cat", "dog"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "source" / name / f"{number}.jpg").write_bytes(jpeg(number))
    places = {"FILE": tmp_path / "file", "FILE/set": tmp_path / "file/set", "SOURCE": tmp_path / "source"}
    done = catdog(*(places.get(word, word) for word in words))
    assert done.code == 1
    assert f"{tmp_path / 'file'}" in done.err.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_another_user_is_told_where_it_may_not_write() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as closed:
        Path(closed).chmod(0o755)
        done = as_user(NOBODY, "data", "synthesize", f"{closed}/set", "--train", "8", "--test", "2")
        assert (done.code, done.err) == (1, f"catdog: could not write {closed}/set/preparing.json: Permission denied\n")
        Path(closed).chmod(0o777)
        done = as_user(NOBODY, "data", "synthesize", f"{closed}/set", "--train", "8", "--test", "2")
        assert (done.code, done.err) == (0, "")
