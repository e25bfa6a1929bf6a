"""`catdog runs`: every kind of run with its state and figures, and folders that are none named, not fatal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import saved_info

from catdog.data.catalog import Catalog
from catdog.experiments import run_list
from catdog.training.request import TrainConfig

HOLD = """
import sys
from catdog.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).hold("training"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(folder: Path, **options: object) -> Path:
    """A run that has begun."""
    content = TrainConfig(data="d", recipe="plain", arch="small_resnet", image_size=32).model_dump(mode="json")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"options": content | options, "catalog_fingerprint": "f"}))
    return folder


@pytest.fixture(scope="module")
def runs(drawn: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each kind."""
    root = tmp_path_factory.mktemp("runs")
    epoch = {"seconds": 30.0}
    for name, loss, training in (
        ("good", 0.2, {"history": [epoch] * 4, "seconds": 600.0}),
        ("old", 0.3, {"history": [epoch] * 4}),
        ("grid/units=4", 0.4, {"seconds": 60.0}),
        ("grid/units=8", 0.5, {"seconds": 60.0}),
        ("broken", 0.1, {}),
    ):
        folder = start(root / name, recipe="gray-cnn" if "grid" in name else "plain")
        figures = {"log_loss": loss, "accuracy": 0.9, "epoch": 4}
        (folder / "model").mkdir()
        info = saved_info(drawn, validation=figures, training=training)
        (folder / "model" / "bundle.json").write_text(info.model_dump_json())
    (root / "broken" / "model" / "bundle.json").write_text('{"schema_version": 3}')
    start(root / "stopped")
    (root / "grid" / "search.json").write_text(json.dumps({"grid": {"units": [4, 8, 16]}, "catalog_fingerprint": "f"}))
    start(root / "cv" / "fold-1", arch="mobilenet")
    report = {"log_loss": 0.25, "accuracy": 0.91, "seconds": 120.0, "folds": 3, "catalog_fingerprint": "g"}
    (root / "cv" / "oof.json").write_text(json.dumps(report | {"fold": None}))
    (root / "one" / "fold-2").mkdir(parents=True)
    (root / "one" / "oof.json").write_text(json.dumps(report | {"fold": 2, "log_loss": 0.26}))
    start(root / "half" / "fold-1")
    (root / "notes").mkdir()
    (root / "torn").mkdir()
    (root / "torn" / "config.json").write_text("{")
    (root / "odd").mkdir()
    (root / "odd" / "oof.json").write_text("[]")
    (root / ".features").mkdir()
    (root / "readme.txt").write_text("mine")
    return root


def test_runs_are_ranked_and_others_named(runs: Path) -> None:
    found, problems = run_list.list_runs(str(runs))
    assert [(run.name, run.log_loss, run.state, run.parts) for run in found] == [
        ("good", 0.2, "finished", ""),
        ("cv", 0.25, "finished", "3 folds"),
        ("one", 0.26, "interrupted", "fold 2 of 3"),
        ("old", 0.3, "finished", ""),
        ("grid", 0.4, "incomplete", "2 of 3 trials"),
        ("half", None, "interrupted", "1 fold"),
        ("stopped", None, "interrupted", ""),
    ]
    good, cv, _, old, grid = found[:5]
    assert (good.recipe, good.arch, good.image_size, good.epochs) == ("plain", "small_resnet", 32, 4)
    assert (good.minutes, old.minutes, cv.minutes, grid.minutes) == (10.0, 2.0, 2.0, 2.0)
    assert (grid.recipe, cv.arch) == ("gray-cnn", "mobilenet")
    assert [problem.partition(": ")[0] for problem in problems] == ["broken", "notes", "odd", "torn"]
    assert "notes: not a run" in problems


def test_a_run_that_a_process_works_on_is_running(runs: Path) -> None:
    def state() -> str:
        return next(run.state for run in run_list.list_runs(str(runs))[0] if run.name == "stopped")

    command = [sys.executable, "-c", HOLD, str(runs / "stopped")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert state() == "running"
        process.kill()  # its lease stays, and counts for nothing
    assert (runs / "stopped" / "lease.json").exists()
    assert state() == "interrupted"
    (runs / "stopped" / "lease.json").unlink()


def test_the_command_prints_a_line_for_each_or_json(runs: Path, catdog) -> None:
    shown = catdog("runs", "--runs", runs)
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[0].split() == ["name", "recipe", "model", "epochs", "log", "loss", "accuracy", "min", "state", "data"]
    assert lines[1].split() == ["good", "plain", "small_resnet", "32", "4", "0.2000", "0.9000", "10", "finished", "f"]
    assert "several data sets" in shown.out
    assert "Not listed: notes: not a run" in lines
    content = json.loads(catdog("runs", "--runs", runs, "--json").out)
    assert [run["name"] for run in content["runs"]][:2] == ["good", "cv"]
    assert content["runs"][0]["log_loss"] == 0.2
    assert len(content["not_listed"]) == 4


def test_an_absent_folder_is_one_line_and_an_empty_one_is_no_error(tmp_path: Path, catdog) -> None:
    (tmp_path / "runs").mkdir()
    assert catdog("runs", "--runs", tmp_path / "runs").out == "No runs\n"
    refused = catdog("runs", "--runs", tmp_path / "run")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert refused.err.endswith("expected an existing folder of runs; did you mean runs?\n")
