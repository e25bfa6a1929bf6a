"""Search: Ray Tune over grids of training options; each trial is a training run like any other.

A trial's folder is a run's: its name says what it tries, TensorBoard shows it under that name, and what was finished or
checkpointed before an interruption is not computed again.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from catdog import cluster, lease, run_directory, storage, waiting
from catdog.data import catalog
from catdog.errors import CatdogError, UsageError
from catdog.evaluation import selection
from catdog.events import EpochDone, Event, EventHandler
from catdog.inference import bundle
from catdog.run_directory import RunDirectory
from catdog.training import ingest, train
from catdog.training.config import TrainConfig

METRIC, ACCURACY = "valid_log_loss", "valid_accuracy"
_NO_PATHS = (None, "imagenet", "none")


@dataclass(frozen=True)
class Search:
    """A named search.

    Attributes:
        name: what `--search` takes.
        summary: one line on what it is.
        base: fields of `TrainConfig` that every trial has.
        grid: fields of `TrainConfig`, and the values of each to try in every combination.
    """

    name: str
    summary: str
    base: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)


SEARCHES = {
    search.name: search
    for search in (
        Search(
            "gray-grid",
            "the grid of a TensorBoard tutorial: convolutions, their width, dense layers; 27 runs on grey pixels",
            {"recipe": "gray-cnn"},
            {"conv_layers": [1, 2, 3], "units": [32, 64, 128], "dense_layers": [0, 1, 2]},
        ),
    )
}


@dataclass(frozen=True)
class Trial:
    """What one combination came to.

    Attributes:
        name: of its run, which is its folder's.
        log_loss: validation log loss of what it saved; of its last epoch where ASHA stopped it, None where it failed.
        accuracy: likewise.
        epochs: how many it ran.
        error: why it failed, or "".
    """

    name: str
    log_loss: float | None
    accuracy: float | None
    epochs: int
    error: str = ""


def get_search(name: str) -> Search:
    """Looks a search up.

    Raises:
        UsageError: unknown name.
    """
    if name not in SEARCHES:
        raise UsageError(f"--search received {name!r}, expected one of {', '.join(SEARCHES)}")
    return SEARCHES[name]


def trial_name(choice: dict[str, Any]) -> str:
    """Names a combination after what it tries, as in "conv_layers=3,units=64"."""
    return ",".join(f"{name}={value}" for name, value in choice.items()).replace("/", "_")


def run_search(
    config: TrainConfig,
    grid: dict[str, list[Any]],
    asha: bool = False,
    concurrent: int | None = None,
    on_event: EventHandler | None = None,
) -> list[Trial]:
    """Trains every combination of a grid; the same call again goes on where an interrupted one ended.

    Args:
        config: what every trial has; `name` is the search's folder in `runs`.
        grid: fields of `TrainConfig`, and the values of each.
        asha: stop trials early that fall behind others at the same epoch (Li et al., 2020).
        concurrent: trials at a time; None is one a CPU.
        on_event: told of `Waiting`.

    Returns:
        The trials, the least log loss first, failed ones last.

    Raises:
        UsageError: a grid that cannot be, found before anything is trained.
        CatdogError: the search itself failed.
    """
    if not grid or not all(grid.values()):
        raise UsageError("--grid received no values; expected NAME=[VALUE, …] of at least one field")
    runs = storage.absolute_output(config.runs, "--runs")
    folder = storage.join(runs, config.name or "")
    # Tune runs trials in folders of their own.
    given = _absolute({name: getattr(config, name) for name in config.model_fields_set}) | {"runs": folder}
    grid = {name: [_absolute({name: value})[name] for value in values] for name, values in grid.items()}
    # A combination that cannot be is better refused now than found as the last of 27.
    for name, values in grid.items():
        for value in values:
            TrainConfig(**(given | {"data": config.data, "name": "x", name: value})).resolve()
    options = {"workers": 1, "cpus_per_worker": 1} | given | {"name": None, "resume": False}
    _require_same_search(folder, options, grid)
    # Tune's own handler would go on until the trials that run have ended.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    searching = RunDirectory(folder).hold("tuning")
    with searching, cluster.connect(config.address, config.debug):
        if concurrent is None:
            share = int(options["workers"]) * int(options["cpus_per_worker"])
            concurrent = max(1, int(ray.cluster_resources().get("CPU", 1)) // share)
        # Each trial holds its own copy of the images.
        sizes = grid.get("image_size") or [TrainConfig(**options).resolve().image_size]
        concurrent = min(concurrent, max(1, ingest.room(len(catalog.read_catalog(options["data"]).table), max(sizes))))
        first = {"CPU": int(options["cpus_per_worker"])} | ({"GPU": 1} if options.get("gpu") else {})
        waiting.wait_for([first], on_event or (lambda _event: None), config.wait)
        tuner = _tuner(folder, options, grid, asha, concurrent)
        try:
            results = tuner.fit()
        except (RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise CatdogError(f"the search failed ({cluster.cause(error)}); the same command goes on") from error
    trials = [_outcome(result) for result in results]
    return sorted(trials, key=lambda trial: (trial.log_loss is None, trial.log_loss or 0.0, trial.name))


def judge(config: TrainConfig, trials: list[Trial]) -> selection.Judged | None:
    """Judges the best trial on images that did not choose it, and notes in each trial's bundle that it was ranked.

    Args:
        config: as for `run_search`.
        trials: what `run_search` returned.

    Returns:
        Each half of the validation images judged by the trial that is best on the other half; None where fewer than
        two trials kept their validation logits.
    """
    folder = storage.join(storage.absolute_output(config.runs, "--runs"), config.name or "")
    runs = [storage.join(folder, trial.name) for trial in trials if trial.log_loss is not None]
    # What ASHA stopped has no model, and is nobody's choice.
    runs = [run for run in runs if RunDirectory(run).finished]
    files = [RunDirectory(run).valid for run in runs]
    judged, figures = None, {}
    if len(runs) > 1 and all(storage.exists(file) for file in files):
        tables = [pq.read_table(pa.BufferReader(storage.read_bytes(file))) for file in files]
        calibrated = bundle.read_info(runs[0])[1].calibration == "validation"
        logits = np.stack([table["logit"].to_numpy() for table in tables])
        judged = selection.judge_selection(
            tables[0]["label"].to_numpy(), logits, tables[0]["key"].to_pylist(), calibrated
        )
        figures = {"log_loss_cross_searched": judged.log_loss}
    for run in runs:
        bundle.mark_chosen(run, **(figures if run == runs[0] else {}))
    return judged


def _absolute(options: dict[str, Any]) -> dict[str, Any]:
    """Makes paths among training options independent of the working folder."""
    return {
        name: storage.absolute(value)
        if (name in ("data", "leave_out", "features") and value) or (name == "weights" and value not in _NO_PATHS)
        else value
        for name, value in options.items()
    }


def _require_same_search(folder: str, options: dict[str, Any], grid: dict[str, list[Any]]) -> None:
    """Writes down what a search is, or finds that it is what it was: Tune itself would go on with the old one."""
    ours = {name: value for name, value in options.items() if name not in ("address", "wait", "debug", "runs", "data")}
    content = {
        "catalog_fingerprint": catalog.read_catalog(options["data"]).fingerprint,
        "options": TrainConfig(**(ours | {"data": "", "name": "x"})).model_dump(mode="json"),
        "grid": grid,
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    path = storage.join(folder, run_directory.SEARCH)
    if not storage.exists(path):
        storage.write_text(path, text)
    elif storage.read_bytes(path).decode() != text:
        raise UsageError(
            f"--name received {storage.name(folder)!r}, a search with another data set, grid or options; expected what "
            "it was started with, or another name"
        )


def _tuner(folder: str, options: dict[str, Any], grid: dict[str, list[Any]], asha: bool, concurrent: int) -> tune.Tuner:
    trainable = tune.with_resources(tune.with_parameters(_trial, options=options), {"node:__internal_head__": 0.001})
    place = storage.join(folder, run_directory.TUNE)
    space = {name: tune.grid_search(values) for name, values in grid.items()}
    if tune.Tuner.can_restore(place):
        return tune.Tuner.restore(place, trainable, resume_errored=True, param_space=space)
    epochs = TrainConfig(**options).resolve().epochs
    # One more than there are epochs: a trial that is stopped at its last has saved nothing.
    asha_scheduler = ASHAScheduler(time_attr="epoch", max_t=epochs + 1, grace_period=max(1, min(3, epochs)))
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            scheduler=asha_scheduler if asha else None,
            max_concurrent_trials=concurrent,
            trial_name_creator=lambda trial: trial_name(trial.config),
            trial_dirname_creator=lambda trial: trial_name(trial.config),
        ),
        run_config=tune.RunConfig(name=run_directory.TUNE, storage_path=folder, verbose=0),
    )


def _trial(choice: dict[str, Any], options: dict[str, Any]) -> None:
    """What Tune runs for each combination: a training run that tells Tune of its epochs."""
    name = trial_name(choice)
    started = RunDirectory(storage.join(options["runs"], name)).exists

    def report(event: Event) -> None:
        if isinstance(event, EpochDone):
            tune.report(
                {
                    "epochs": event.epoch,
                    "epoch": event.epoch,
                    METRIC: event.valid_log_loss,
                    ACCURACY: event.valid_accuracy,
                    "loss": event.loss,
                }
            )

    config = TrainConfig(**(options | choice | {"name": name, "resume": started}))
    result = train.train_model(config, report, patience=lease.STALE_SECONDS + lease.BEAT_SECONDS)
    # Last, what the saved model is worth: not every recipe keeps its best epoch.
    kept = {METRIC: result.validation["log_loss"], ACCURACY: result.validation["accuracy"]}
    tune.report({"epoch": result.epochs + 1, "epochs": result.epochs, **kept})


def _outcome(result: tune.Result) -> Trial:
    name, last = trial_name(result.config or {}), result.metrics or {}
    if result.error is not None or METRIC not in last:
        return Trial(name, None, None, 0, cluster.cause(result.error) if result.error else "no epoch was finished")
    return Trial(name, float(last[METRIC]), float(last[ACCURACY]), int(last["epochs"]))
