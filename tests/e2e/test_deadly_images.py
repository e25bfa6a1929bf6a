"""Images that kill, stop or fill a scoring actor cost themselves only."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from catdog.data import catalog
from catdog.data.catalog import Catalog
from catdog.inference.predictor import Predictor
from catdog.reporting import submission
from catdog.scoring import results

ROOT = Path(__file__).parents[2]
POISON = ROOT / "tests" / "poison"


def run_score(poison: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `catdog score` with faulty decoders in all its processes."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "catdog", "score", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(poison), str(ROOT)])},
    )  # fmt: skip


def test_deadly_images_cost_themselves_only(drawn: Catalog, untrained: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(drawn.root, root)
    data = catalog.read_catalog(str(root))
    deadly = {
        ("test", 3): ("SEGFAULT", "crashed while decoding"),
        ("test", 4): ("SPIN", "timed out while decoding (1 s)"),
        ("test", 20): ("SEGFAULT", "crashed while decoding"),
        ("valid", 5): ("SPIN", "timed out while decoding (1 s)"),
        ("valid", 6): ("MEMORY", "needs too much memory to decode"),
    }
    for (split, row), (word, _) in deadly.items():
        with open(data.split(split)["uri"][row].as_py(), "ab") as file:
            file.write(b"POISON:" + word.encode())
    out = tmp_path / "results.csv"
    options = ["--model", untrained, "--data", root, "--out", out, "--max-unreadable", 0.5]
    done = run_score(POISON, *options)
    assert done.returncode == 0, done.stderr
    assert submission.check_submission(str(out), data).rows == 24

    # Every other image has the bits that it has without the faults, which this process does not have.
    written = {row["key"]: row for row in results.read_parts(str(out)).to_pylist()}
    assert len(written) == data.count("valid") + 24
    predictor = Predictor.load([untrained])
    for split in ("valid", "test"):
        expected = predictor.predict_uris(data.split(split)["uri"].to_pylist())
        for at, key in enumerate(data.split(split)["key"].to_pylist()):
            if (split, at) in deadly:
                found = (written[key]["logit"], written[key]["status"], written[key]["detail"])
                assert found == (None, "unreadable", deadly[split, at][1])
                assert written[key]["probability"] == 0.5
            else:
                assert (written[key]["status"], written[key]["detail"]) == ("ok", "")
                assert np.float32(written[key]["logit"]) == expected.logits[at]
    rejected = list(csv.DictReader(out.with_suffix(".rejected.csv").open()))
    assert sorted(row["reason"] for row in rejected) == sorted(reason for _, reason in deadly.values())

    # Nothing is tried again by the same command.
    before = {part.name: part.stat().st_mtime_ns for part in out.with_suffix(".parts").glob("*.parquet")}
    first = out.read_bytes()
    assert run_score(POISON, *options).returncode == 0
    assert before == {part.name: part.stat().st_mtime_ns for part in out.with_suffix(".parts").glob("*.parquet")}
    assert out.read_bytes() == first
