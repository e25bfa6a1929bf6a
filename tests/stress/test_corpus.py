"""All files that are hard to read: each ends with a status and a reason, and as a test split they give an exact CSV."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bad_images import Bad, decode_each, every_bad_file, find_faults, write
from helpers import jpeg, save_untrained

from catdog.data import catalog
from catdog.reporting import submission

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Bad], list[Path]]:
    folder = tmp_path_factory.mktemp("source") / "set" / "test"
    folder.mkdir(parents=True)
    files = list(every_bad_file())
    return files, [write(bad, folder) for bad in files]


def test_every_file_ends_with_a_reason(corpus: tuple[list[Bad], list[Path]]) -> None:
    files, paths = corpus
    assert len({bad.name for bad in files}) == len(files) >= 300
    assert len({bad.kind for bad in files}) >= 30
    assert find_faults(files, decode_each(paths)) == []


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `catdog`; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "catdog", *map(str, arguments)],
        capture_output=True, text=True, timeout=900, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_as_a_test_split_they_give_an_exact_csv(corpus: tuple[list[Bad], list[Path]], tmp_path: Path) -> None:
    files, paths = corpus
    source, root = paths[0].parents[1], tmp_path / "set"
    for at in range(20):
        for name in ("cat", "dog"):
            (source / "train" / name).mkdir(parents=True, exist_ok=True)
            (source / "train" / name / f"{at}.jpg").write_bytes(jpeg(at + 100 * (name == "dog")))
    told = run("data", "prepare", source, root)
    data = catalog.read_catalog(str(root))
    ids = data.split("test")["id"].to_pylist()
    absent = {"FIFO", "device", "socket", "link to itself", "link to nothing"}
    assert len(ids) == len(set(ids)) == sum(bad.kind not in absent for bad in files)
    assert told.stdout.count("Not taken: ") == 3  # no regular files, and links that lead nowhere for two reasons
    save_untrained(str(tmp_path / "model"), data)
    out = tmp_path / "results.csv"
    run("score", "--model", tmp_path / "model", "--data", root, "--out", out, "--split", "test", "--max-unreadable", 1)
    assert submission.check_submission(str(out), data).rows == len(ids)
    with open(out, newline="") as lines:
        assert sorted(row["id"] for row in csv.DictReader(lines)) == sorted(ids)
    with open(out.with_suffix(".rejected.csv"), newline="") as lines:
        rejected = {row["key"]: row["reason"] for row in csv.DictReader(lines)}
    assert all(rejected.values())
    may_end = {bad.name: bad.ends for bad in files}
    assert len(rejected) > 100
    for key in rejected:
        assert "unreadable" in may_end[Path(key).name.encode()], key
