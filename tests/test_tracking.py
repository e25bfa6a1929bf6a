"""Tracking, with the real libraries and local stores: one tracked run across restarts, and no harm if it fails."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from catdog import tracking
from catdog.errors import UsageError
from catdog.events import EpochDone, RunOpened
from catdog.run_directory import RunDirectory
from catdog.training.config import resolve
from catdog.training.request import TrainConfig


def epoch(number: int) -> EpochDone:
    return EpochDone(number, 0.5 / number, 0.4 / number, 0.9, 1e-3, 2.0, 500.0, ["a"], True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with options that are nested, two members and a report."""
    folder = tmp_path / "runs" / "first"
    options = resolve(TrainConfig(data="d", recipe="plain", arch="small_resnet", image_size=32)).options()
    content = {"options": options, "catalog_fingerprint": "f"}
    for name in ("", "member-1", "member-2"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(content))
    (folder / "model").mkdir()
    (folder / "model" / "bundle.json").write_text("{}")
    (folder / "model" / "model.keras").write_bytes(b"weights")
    return folder


def train(where: str, run: Path, epochs: list[int], finished: bool) -> list[str]:
    """What a training tells a tracker; returns the warnings."""
    warnings: list[str] = []
    try:
        with tracking.Tracker(where, warnings.append) as tracker:
            tracker.event(RunOpened(str(run)))
            for number in epochs:
                tracker.event(epoch(number))
            if not finished:
                raise KeyboardInterrupt
            tracker.event(RunOpened(str(run / "member-2")))
            tracker.event(epoch(1))
            history = [dataclasses.asdict(epoch(number)) for number in (1, 2, 3)]
            tracker.finish({"validation.log_loss": 0.1}, {"": [str(run / "model")]}, history)
    except KeyboardInterrupt:
        pass
    return warnings


def test_mlflow_has_one_run_with_options_curves_and_files(run: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    where = f"mlflow:file:{tmp_path}/store"
    (run / "tracking.json").write_text("[1]")  # damaged
    # Killed between the end of the second epoch and its point.
    assert train(where, run, [1], finished=False) == []
    client = mlflow.MlflowClient(f"file:{tmp_path}/store")
    (experiment,) = [one for one in client.search_experiments() if one.name == "catdog"]
    (first,) = client.search_runs([experiment.experiment_id])
    assert first.info.status == "KILLED"
    assert train(where, run, [3], finished=True) == []
    (tracked,) = client.search_runs([experiment.experiment_id])
    number = tracked.info.run_id
    assert number == first.info.run_id
    assert (tracked.info.run_name, tracked.info.status) == ("first", "FINISHED")
    assert tracked.data.params["image_size"] == "32"
    assert tracked.data.params["augmentation.mirror"] == "True"
    curve = sorted((point.step, point.value) for point in client.get_metric_history(number, "valid_log_loss"))
    assert curve == [(1, 0.4), (2, 0.2), (3, pytest.approx(0.4 / 3))]
    assert tracked.data.metrics["member-2.loss"] == 0.5
    assert tracked.data.metrics["validation.log_loss"] == 0.1
    assert sorted(file.path for file in client.list_artifacts(number, "model")) == [
        "model/bundle.json",
        "model/model.keras",
    ]
    # Scoring adds to it, by run or by bundle.
    (tmp_path / "results.csv").write_text("id,label\n")
    for place in (run, run / "model"):
        with tracking.Tracker(where, pytest.fail) as tracker:
            tracker.go_on(str(place))
            tracker.finish({"scored.valid.log_loss": 0.2}, {"scores": [str(tmp_path / "results.csv")]})
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.data.metrics["scored.valid.log_loss"] == 0.2
    assert [file.path for file in client.list_artifacts(number, "scores")] == ["scores/results.csv"]
    with pytest.raises(UsageError, match="was not tracked there; expected one of mlflow:file:"):
        tracking.Tracker("mlflow", pytest.fail).go_on(str(run))
    # A new run of the same name is another one.
    kept = RunDirectory(str(run)).open(json.loads((run / "config.json").read_text()), overwrite=True)
    assert "tracking.json" not in kept
    train(where, run, [1], finished=False)
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_server_that_fails_is_one_warning(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (warning,) = train("mlflow:http://127.0.0.1:1", run, [1, 2, 3], finished=True)
    assert warning.startswith("tracking with mlflow:http://127.0.0.1:1 ended, the run goes on without it: ")
    assert "\n" not in warning
    assert not (run / "tracking.json").exists()


def test_weights_and_biases_offline(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert train("wandb:team/pets", run, [1, 2], finished=False) == []
    assert train("wandb:team/pets", run, [3], finished=True) == []
    number = json.loads((run / "tracking.json").read_text())["wandb:team/pets"]
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{number}"))) == 2  # `wandb sync` joins them


def test_trackio_in_a_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))  # read on import
    trackio = pytest.importorskip("trackio")
    assert train("trackio", run, [1, 2], finished=False) == []
    assert train("trackio", run, [3], finished=True) == []
    number = json.loads((run / "tracking.json").read_text())["trackio"]
    (found,) = trackio.Api().runs("catdog")
    assert found.name == number


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("mlfow", "--track received 'mlfow', expected one of mlflow, wandb, trackio; did you mean mlflow\\?"),
        ("wandb", "--track wandb received, but wandb is not installed: pip install wandb"),
    ],
)
def test_what_cannot_be_is_one_line(where: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent: ModuleType | None = None
    monkeypatch.setitem(sys.modules, "wandb", absent)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        tracking.Tracker(where, pytest.fail)


def test_folds_and_several_models_are_refused(tmp_path: Path, catdog) -> None:
    refused = catdog("train", "--data", tmp_path, "--folds", 2, "--name", "x", "--track", "mlflow")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    refused = catdog("score", "--data", tmp_path, "--model", "a", "--model", "b", "--track", "mlflow")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
