"""Search: Ray Tune over grids of training options; each trial is a training run like any other.

A trial's folder is a run's: its name says what it tries, TensorBoard shows it under that name, and what was finished or
checkpointed before an interruption is not computed again.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from catdog import cluster, storage, training
from catdog.errors import CatdogError, UsageError
from catdog.recipes import TrainConfig

METRIC = "valid_log_loss"
_TUNE_FOLDER = "tune"


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
        log_loss: the best validation log loss of its epochs, or None where it failed.
        accuracy: of the same epoch.
        epochs: how many it ran.
        error: why it failed, or "".
    """

    name: str
    log_loss: float | None
    accuracy: float | None
    epochs: int
    error: str = ""


def find(name: str) -> Search:
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


def search(
    config: TrainConfig,
    grid: dict[str, list[Any]],
    asha: bool = False,
    concurrent: int | None = None,
) -> list[Trial]:
    """Trains every combination of a grid; the same call again goes on where an interrupted one ended.

    Args:
        config: what every trial has; `name` is the search's folder in `runs`.
        grid: fields of `TrainConfig`, and the values of each.
        asha: stop trials early that fall behind others at the same epoch (Li et al., 2020).
        concurrent: trials at a time; None is one a CPU.

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
    given = {name: getattr(config, name) for name in config.model_fields_set} | {"runs": folder}
    # A combination that cannot be is better refused now than found as the last of 27.
    for name, values in grid.items():
        for value in values:
            TrainConfig(**(given | {"data": config.data, "name": "x", name: value})).resolve()
    options = {"workers": 1, "cpus_per_worker": 1} | given | {"name": None, "resume": False}
    with cluster.connect(config.address, config.debug):
        if concurrent is None:
            share = int(options["workers"]) * int(options["cpus_per_worker"])
            concurrent = max(1, int(ray.cluster_resources().get("CPU", 1)) // share)
        tuner = _tuner(folder, options, grid, asha, concurrent)
        try:
            results = tuner.fit()
        except (RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise CatdogError(f"the search failed ({cluster.cause(error)}); the same command goes on") from error
    trials = [_outcome(result) for result in results]
    return sorted(trials, key=lambda trial: (trial.log_loss is None, trial.log_loss or 0.0, trial.name))


def _tuner(folder: str, options: dict[str, Any], grid: dict[str, list[Any]], asha: bool, concurrent: int) -> tune.Tuner:
    trainable = tune.with_resources(tune.with_parameters(_trial, options=options), {"CPU": 0})
    place = storage.join(folder, _TUNE_FOLDER)
    space = {name: tune.grid_search(values) for name, values in grid.items()}
    if tune.Tuner.can_restore(place):
        return tune.Tuner.restore(place, trainable, resume_errored=True, param_space=space)
    epochs = TrainConfig(**options).resolve().epochs
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            scheduler=ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=min(3, epochs)) if asha else None,
            max_concurrent_trials=concurrent,
            trial_name_creator=lambda trial: trial_name(trial.config),
            trial_dirname_creator=lambda trial: trial_name(trial.config),
        ),
        run_config=tune.RunConfig(name=_TUNE_FOLDER, storage_path=folder, verbose=0),
    )


def _trial(choice: dict[str, Any], options: dict[str, Any]) -> None:
    """What Tune runs for each combination: a training run that tells Tune of its epochs."""
    name = trial_name(choice)
    started = storage.exists(storage.join(options["runs"], name, training.CONFIG_NAME))
    told = 0

    def report(event: dict[str, Any]) -> None:
        nonlocal told
        if event["kind"] == "epoch":
            told += 1
            _report(event)

    config = TrainConfig(**(options | choice | {"name": name, "resume": started}))
    result = training.train(config, report)
    for entry in [] if told else result.history:  # it was finished before it was interrupted
        _report(entry)


def _report(entry: dict[str, Any]) -> None:
    tune.report({name: entry[name] for name in ("epoch", METRIC, "valid_accuracy", "loss")})


def _outcome(result: tune.Result) -> Trial:
    name = trial_name(result.config or {})
    history = result.metrics_dataframe
    if result.error is not None or history is None or METRIC not in history:
        return Trial(name, None, None, 0, cluster.cause(result.error) if result.error else "no epoch was finished")
    best = history.loc[history[METRIC].idxmin()]
    with contextlib.suppress(KeyError):
        return Trial(name, float(best[METRIC]), float(best["valid_accuracy"]), int(history["epoch"].max()))
    return Trial(name, None, None, 0, "its report is incomplete")
