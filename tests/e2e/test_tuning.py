"""A search over a small grid: killed on the way, finished by the same command, ranked, and visible in TensorBoard."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import bundle_json
from sklearn import metrics as sklearn_metrics

from catdog.data.catalog import Catalog
from catdog.evaluation import calibration, metrics
from catdog.experiments import searches
from catdog.run_directory import RunDirectory


def test_the_shipped_grid_is_the_tutorials() -> None:
    grid = searches.get_search("gray-grid").grid
    assert grid == {"conv_layers": [1, 2, 3], "units": [32, 64, 128], "dense_layers": [0, 1, 2]}


def test_an_interrupted_search_goes_on_and_ranks_its_runs(
    two_cpus: str, drawn: Catalog, tmp_path: Path, catdog
) -> None:
    command = [
        "tune", "--data", os.path.relpath(drawn.root), "--name", "grid", "--runs", str(tmp_path), "--concurrent", "1",
        "--grid", "units=[4, 8]", "--grid", "dense_layers=[0, 9]",
        "--set", "recipe=gray-cnn", "--set", "image_size=32", "--set", "workers=1", "--set", "epochs=2",
    ]  # fmt: skip
    refused = catdog(*command)
    assert refused.code == 2
    assert "--dense-layers received 9" in refused.err
    assert not (tmp_path / "grid").exists()

    command[command.index("dense_layers=[0, 9]")] = "dense_layers=[0]"
    first = tmp_path / "grid" / "units=4,dense_layers=0" / "model" / "bundle.json"
    start = [sys.executable, "-m", "catdog", *command, "--address", two_cpus]
    with subprocess.Popen(start, stdout=subprocess.DEVNULL) as killed:
        end = time.monotonic() + 200
        while not first.exists():
            assert time.monotonic() < end, "the first run was never finished"
            assert killed.poll() is None
            time.sleep(0.2)
        os.kill(killed.pid, signal.SIGKILL)
    finished = first.stat().st_mtime_ns

    done = catdog(*command)
    assert done.code == 0, done.err
    assert "Configuration for experiment" not in done.out
    assert first.stat().st_mtime_ns == finished
    ranked = [line.split() for line in done.out.splitlines() if re.match(" +[0-9]+ .*units=", line)]
    assert len(ranked) == 2
    assert float(ranked[0][1]) <= float(ranked[1][1])
    for line in ranked:
        said = bundle_json(str(tmp_path / "grid" / line[-1]))
        best = min(entry["valid_log_loss"] for entry in said["training"]["history"])
        assert float(line[1]) == pytest.approx(best, abs=1e-4)
        assert list((tmp_path / "grid" / line[-1] / "tensorboard").glob("events.out.tfevents.*"))
        assert f"units={said['training']['options']['units']}," in line[-1]
    # The best is judged by the images that did not choose it.
    runs = [tmp_path / "grid" / line[-1] for line in ranked]
    tables = [pq.read_table(run / "valid.parquet") for run in runs]
    labels, half = tables[0]["label"].to_numpy(), calibration.halves(tables[0]["key"].to_pylist())
    halves = []
    for number in (0, 1):
        losses = [
            [sklearn_metrics.log_loss(labels[half == each], metrics.calibrated(table["logit"].to_numpy()[half == each]))
             for each in (number, 1 - number)] for table in tables
        ]  # fmt: skip
        halves.append(min(losses, key=lambda each: each[1])[0])
    assert f"judged by the best of the other half, the halves have {halves[0]:.4f} and {halves[1]:.4f}" in done.out
    said = [bundle_json(str(run)) for run in runs]
    assert [one["chosen_on"] for one in said] == ["validation", "validation"]
    assert said[0]["validation"]["log_loss_cross_searched"] == pytest.approx(
        sum(value * (half == number).mean() for number, value in enumerate(halves))
    )
    assert "log_loss_cross_searched" not in said[1]["validation"]
    other = catdog(*command[:-1], "epochs=3")
    assert other.code == 2
    assert "a search with another data set, grid or options" in other.err
    # All that is left of it is known as such: overwriting leaves nothing.
    grid = RunDirectory(str(tmp_path / "grid"))
    shutil.copy(tmp_path / "grid" / ranked[0][-1] / "config.json", grid.config)
    assert grid.open(grid.read() or {}, overwrite=True) == []
