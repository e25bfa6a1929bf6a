"""Hyperparameter search: Ray Tune over grids of training options; each trial is an ordinary training run.

The folder of a trial is a run directory, named after its options, also in TensorBoard. After an interruption, finished
trials are not repeated and the others continue from their checkpoints.
"""

from __future__ import annotations

import json
import math
import os
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from catdog import cluster, lease, resources, run_directory, stall, storage, tables, waiting
from catdog.data import catalog
from catdog.errors import CatdogError, UsageError
from catdog.evaluation import selection
from catdog.events import EpochDone, Event, EventHandler, SearchProgress
from catdog.inference import bundle, export
from catdog.run_directory import RunDirectory
from catdog.training import stores, train
from catdog.training.config import resolve
from catdog.training.request import TrainConfig

METRIC, ACCURACY = "valid_log_loss", "valid_accuracy"
_PATHS, _NO_PATHS = ("data", "leave_out", "features", "teacher"), (None, "imagenet", "none")
# Options that may differ when a search goes on.
_PLACES = ("address", "wait", "stall_timeout", "debug", "runs", "data")
# Who is told of the search in progress, and its number of trials.
_listener: ContextVar[tuple[EventHandler, int] | None] = ContextVar("_listener", default=None)


@dataclass(frozen=True)
class Trial:
    """Result of one combination.

    Attributes:
        name: name of the run and of its folder.
        log_loss: validation log loss of the saved model, or of the last epoch if ASHA stopped it; None if it failed.
        accuracy: validation accuracy, likewise.
        epochs: number of epochs trained.
        error: reason of the failure, or "".
    """

    name: str
    log_loss: float | None
    accuracy: float | None
    epochs: int
    error: str = ""


def trial_name(choice: dict[str, Any]) -> str:
    """Name of a combination, such as "conv_layers=3,units=64"."""
    return ",".join(f"{name}={value}" for name, value in choice.items()).replace("/", "_")


def search_folder(config: TrainConfig) -> str:
    """URI of the folder of a search.

    Args:
        config: as for `run_search`.

    Raises:
        UsageError: it has no name, or a submitted job would lose the folder.
    """
    if not config.name:
        raise UsageError("a search received no --name; expected one, which its folder in --runs gets")
    return storage.join(storage.absolute_output(config.runs, "--runs"), config.name)


def run_search(
    config: TrainConfig,
    grid: dict[str, list[Any]],
    asha: bool = False,
    concurrent: int | None = None,
    on_event: EventHandler | None = None,
) -> list[Trial]:
    """Trains every combination of a grid; the same call again continues an interrupted search.

    Args:
        config: configuration of every trial; `name` is the folder of the search in `runs`.
        grid: fields of `TrainConfig`, with the values of each.
        asha: stop trials early that are worse than others at the same epoch (Li et al., 2020).
        concurrent: number of parallel trials; None for as many as fit on the CPUs, or on the GPUs if they take any.
        on_event: called with `Waiting` and `SearchProgress`.

    Returns:
        The trials, the lowest log loss first, failed ones last.

    Raises:
        UsageError: the grid has an invalid combination; raised before anything is trained.
        CatdogError: the search itself failed.
    """
    if not grid or not all(grid.values()):
        raise UsageError("--grid received no values; expected NAME=[VALUE, …] of at least one field")
    folder = search_folder(config)
    # Absolute paths, because Tune changes the working folder of trials.
    given = _absolute({name: value for name, value in config if value is not None}) | {"runs": folder}
    grid = {name: [_absolute({name: value})[name] for value in values] for name, values in grid.items()}
    # Validated now, so that an invalid value does not fail after hours of training.
    for name, values in grid.items():
        for value in values:
            trial = resolve(TrainConfig(**(given | {"data": config.data, "name": "x", name: value})))
            if trial.validation.int8:
                raise UsageError("int8 received for a search; quantise its best trial by `catdog bundle quantise`")
    options = {"workers": 1, "cpus_per_worker": 1} | given | {"name": None, "resume": False}
    _require_same_search(folder, options, grid)
    # Tune's own handler would first wait for running trials to end.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # Its newer output prints tables whatever the verbosity.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    searching = RunDirectory(folder).hold("tuning")
    with searching, cluster.connect(config.address, config.debug) as may_grow:
        common = resolve(TrainConfig(**options))
        plan = train.plan_resources(common, may_grow)
        if concurrent is None:
            room = resources.count_room(plan.cpus_per_worker, plan.gpus_per_worker if plan.gpu else 0)
            concurrent = max(1, room // (plan.bounds[1] if plan.bounds else plan.workers))
        # Each trial has its own copy of the decoded images in memory.
        sizes = grid.get("image_size") or [common.model.image_size]
        concurrent = min(concurrent, max(1, stores.room(len(catalog.read_catalog(options["data"]).table), max(sizes))))
        limit = stall.DEFAULT_SECONDS if config.stall_timeout is None else config.stall_timeout
        advice = "finished trials are kept, and the same command goes on"
        with stall.watching(on_event or (lambda _event: None), limit, advice) as watch:
            waiting.wait_for([plan.worker_resources], watch.event, config.wait)
            tuner = _tuner(folder, options, grid, asha, concurrent)
            token = _listener.set((watch.event, math.prod(map(len, grid.values()))))
            try:
                results = tuner.fit()
            except (RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise CatdogError(f"the search failed ({cluster.cause(error)}); the same command goes on") from error
            finally:
                _listener.reset(token)
    trials = [_outcome(result) for result in results]
    return sorted(trials, key=lambda trial: (trial.log_loss is None, trial.log_loss or 0.0, trial.name))


def judge_search(config: TrainConfig, trials: list[Trial]) -> selection.Judged | None:
    """Evaluates the best trial on images that did not choose it, and records in each bundle that it was ranked.

    Args:
        config: as for `run_search`.
        trials: result of `run_search`.

    Returns:
        Metrics of the validation images, each half predicted by the trial that is best on the other half; None if fewer
        than two trials have validation logits.
    """
    folder = search_folder(config)
    runs = [storage.join(folder, trial.name) for trial in trials if trial.log_loss is not None]
    # Trials that ASHA stopped have no model and cannot be chosen.
    runs = [run for run in runs if RunDirectory(run).finished]
    files = [RunDirectory(run).valid for run in runs]
    judged, figures = None, {}
    if len(runs) > 1 and all(storage.exists(file) for file in files):
        predicted = [tables.read_table(file) for file in files]
        calibrated = bundle.read_info(runs[0])[1].calibration == "validation"
        logits = np.stack([table["logit"].to_numpy() for table in predicted])
        judged = selection.judge_selection(
            predicted[0]["label"].to_numpy(), logits, predicted[0]["key"].to_pylist(), calibrated
        )
        figures = {"log_loss_cross_searched": judged.log_loss}
    for run in runs:
        export.mark_chosen(run, **(figures if run == runs[0] else {}))
    return judged


def _absolute(options: dict[str, Any]) -> dict[str, Any]:
    """Makes the paths among training options absolute."""
    return {
        name: storage.absolute(value)
        if (name in _PATHS and value) or (name == "weights" and value not in _NO_PATHS)
        else value
        for name, value in options.items()
    }


def _require_same_search(folder: str, options: dict[str, Any], grid: dict[str, list[Any]]) -> None:
    """Records the options of a search, or checks that they are unchanged; Tune would silently use the old ones."""
    ours = {name: value for name, value in options.items() if name not in _PLACES}
    content = {
        "catalog_fingerprint": catalog.read_catalog(options["data"]).fingerprint,
        "options": TrainConfig(**(ours | {"data": "", "name": "x"})).model_dump(mode="json", exclude_none=True),
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
    epochs = resolve(TrainConfig(**options)).optimizer.epochs
    # One more than the epochs: ASHA ends trials at max_t, and one that is ended at its last epoch saves no model.
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
        run_config=tune.RunConfig(name=run_directory.TUNE, storage_path=folder, verbose=0, callbacks=[_Watch()]),
    )


class _Watch(tune.Callback):
    """Tells how far the search is. It has no state, because Tune pickles it and takes it back when it goes on."""

    def on_trial_result(self, trials: list[Any], trial: Any, result: dict[str, Any], **_info: Any) -> None:
        self._tell(trials, latest=(result.get(METRIC), trial))

    def on_trial_complete(self, trials: list[Any], trial: Any, **_info: Any) -> None:
        self._tell(trials, ended=trial)

    def on_trial_error(self, trials: list[Any], trial: Any, **_info: Any) -> None:
        self._tell(trials, ended=trial)

    def _tell(self, trials: list[Any], ended: Any = None, latest: tuple[float | None, Any] = (None, None)) -> None:
        """Tells of all trials. What has just changed of one Tune writes into it only after this."""
        listener = _listener.get()
        if listener is None:
            return
        on_event, count = listener
        failed = sum(trial.status == "ERROR" for trial in trials)
        finished = sum(trial.status == "TERMINATED" or (trial is ended and trial.status != "ERROR") for trial in trials)
        running = sum(trial.status == "RUNNING" and trial is not ended for trial in trials)
        seen = [(trial.metric_analysis.get(METRIC, {}).get("min"), trial) for trial in trials]
        known = [(loss, trial) for loss, trial in [*seen, latest] if loss is not None]
        best, of = min(known, key=lambda pair: pair[0], default=(None, None))
        on_event(SearchProgress(count, finished, failed, running, best, "" if of is None else trial_name(of.config)))


def _trial(choice: dict[str, Any], options: dict[str, Any]) -> None:
    """Trains one combination and reports its epochs to Tune."""
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
    # The last report is of the saved model, since not every recipe keeps its best epoch.
    kept = {METRIC: result.validation["log_loss"], ACCURACY: result.validation["accuracy"]}
    tune.report({"epoch": result.epochs + 1, "epochs": result.epochs, **kept})


def _outcome(result: tune.Result) -> Trial:
    name, last = trial_name(result.config or {}), result.metrics or {}
    if result.error is not None or METRIC not in last:
        return Trial(name, None, None, 0, cluster.cause(result.error) if result.error else "no epoch was finished")
    return Trial(name, float(last[METRIC]), float(last[ACCURACY]), int(last["epochs"]))
