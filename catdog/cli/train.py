"""`catdog train`, `tune`, `oof`, `recipes` and `models`: from a data set to a model, and the choice among many."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import time
from typing import TYPE_CHECKING, Annotated

import typer

from catdog import interruption
from catdog.cli import display
from catdog.cli.completion import (
    complete_arch,
    complete_name,
    complete_recipe,
    complete_run,
    complete_search,
    complete_setting,
)
from catdog.cli.display import out
from catdog.cli.options import (
    Address,
    Data,
    Debug,
    Gpu,
    OpenPage,
    Runs,
    StallTimeout,
    Track,
    Wait,
    advising_same_command,
    field_option,
    parse_settings,
)
from catdog.cli.progress import ProgressView
from catdog.errors import CatdogError, UsageError
from catdog.training.request import TrainConfig

if TYPE_CHECKING:
    from catdog.events import Event
    from catdog.training.config import ResolvedConfig


def train(
    ctx: typer.Context,
    data: Annotated[str | None, field_option("data")] = None,
    recipe: Annotated[str | None, field_option("recipe", complete=complete_recipe)] = None,
    arch: Annotated[str | None, field_option("arch", complete=complete_arch)] = None,
    alpha: Annotated[float | None, field_option("alpha")] = None,
    weights: Annotated[str | None, field_option("weights")] = None,
    image_size: Annotated[int | None, field_option("image_size")] = None,
    freeze: Annotated[bool | None, field_option("freeze", "--freeze/--no-freeze")] = None,
    epochs: Annotated[int | None, field_option("epochs")] = None,
    batch_size: Annotated[int | None, field_option("batch_size")] = None,
    learning_rate: Annotated[float | None, field_option("learning_rate")] = None,
    patience: Annotated[int | None, field_option("patience")] = None,
    seed: Annotated[int | None, field_option("seed")] = None,
    augment: Annotated[bool | None, field_option("augment", "--augment/--no-augment")] = None,
    leave_out: Annotated[str | None, field_option("leave_out")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other training option: NAME=VALUE, such as augmentation.rotation=10.",
            autocompletion=complete_setting,
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validate: K models, and out-of-fold predictions of all labelled images.")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="With --folds: train this one only, counted from 1.")] = None,
    workers: Annotated[str | None, field_option("workers")] = None,
    cpus_per_worker: Annotated[int | None, field_option("cpus_per_worker")] = None,
    gpu: Gpu = None,
    store: Annotated[str | None, field_option("store")] = None,
    checkpoint_minutes: Annotated[float | None, field_option("checkpoint_minutes")] = None,
    name: Annotated[str | None, field_option("name", complete=complete_name)] = None,
    runs: Runs = "runs",
    resume: Annotated[bool, field_option("resume", "--resume")] = False,
    overwrite: Annotated[bool, field_option("overwrite", "--overwrite")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and how long it would take; write nothing.")
    ] = False,
    open_: OpenPage = False,
    track: Track = None,
    address: Address = None,
    wait: Wait = None,
    stall_timeout: StallTimeout = None,
    debug: Debug = False,
) -> None:
    """Train a model, data-parallel on Ray Train, and write its bundle to RUNS/NAME/model/."""
    from catdog.training import config as configuration
    from catdog.training import train

    # An option that was not given is left to the recipe, or to the run that is resumed.
    given = {key for key in ctx.params if ctx.get_parameter_source(key).name != "DEFAULT"}  # type: ignore[union-attr]
    options = {key: value for key, value in ctx.params.items() if key in given and key in TrainConfig.model_fields}
    options |= parse_settings(set_)
    if resume:
        if name is None:
            raise UsageError("--resume received without --name; say which run to continue")
        options = train.stored_config(runs, name) | options
    elif data is None:
        raise UsageError("Missing option '--data': expected a prepared data set")
    if fold is not None and folds is None:
        raise UsageError("--fold received without --folds; say how many there are")
    if track is not None and folds is not None:
        raise UsageError("--track received with --folds; only the run of a single model is tracked")
    if folds is not None and not dry_run and (name is None or resume or overwrite):
        raise UsageError("--folds wants a --name, and goes on by itself where it ended: leave out --resume")
    config = TrainConfig(**options)
    if said := configuration.explain_architecture(config):
        out.print(said, markup=False)
    if dry_run:
        _estimate(config, folds or 0, fold)
    elif folds is None:
        _train_once(config, open_, track)
    else:
        _cross_validate(config, folds, fold)


def _estimate(config: TrainConfig, folds: int, fold: int | None) -> None:
    from catdog.experiments import cross_validation
    from catdog.training import estimate
    from catdog.training.config import resolve

    if folds and config.teacher:
        cross_validation.deal_folds(resolve(config), folds, fold)  # refuses what the run would
    with advising_same_command("nothing was written", "measure again"), ProgressView("Measuring", config.debug) as view:
        found = estimate.estimate_training(config, folds, fold, view.event)
    display.show_plan(found.what, found.seconds)


def _train_once(asked: TrainConfig, open_: bool, track: str | None) -> None:
    from catdog import tracking
    from catdog.training import config as configuration
    from catdog.training import train

    started = time.perf_counter()
    # Resolved here, because the command that continues needs the name, also one that is made up.
    config, view = configuration.resolve(asked), ProgressView("Starting", asked.debug)
    tracker = tracking.Tracker(track, view.warn) if track else None

    def tell(event: Event) -> None:
        if tracker is not None:
            tracker.event(event)
        view.event(event)

    def advice() -> str:
        if config.run.uri not in view.opened:
            kept = "the run is as it was; to go on" if config.run.resume else "the run had not begun; to start it"
            return f"{kept}:\n  {interruption.same_command()}"
        again = ["catdog", "train", "--resume", "--name", config.run.name, "--runs", asked.runs]
        again += ["--track", track] if track else []
        again += ["--address", asked.address] if asked.address else []
        again += ["--set", f"features={asked.features}"] if asked.features else []
        kept = f"the last whole epoch of {view.opened[-1]} is kept" if view.epochs else "no epoch was finished"
        return f"{kept}; to go on:\n  {shlex.join(again + ['--debug'] * asked.debug)}"

    with interruption.advising(advice), view, tracker or contextlib.nullcontext():
        result = train.train_model(config, tell)
        written = _write_page(config)
        if tracker is not None:
            view.stage("Uploading")
            figures = {f"validation.{name}": float(value) for name, value in result.validation.items()}
            files = {"": [result.bundle], "report": [written] if isinstance(written, str) else []}
            tracker.finish(figures, files, result.history)
    display.show_training(result, time.perf_counter() - started)
    if isinstance(written, Exception):
        display.show_missing_page(written)
    else:
        out.print(f"Report: {written}")
        if open_:
            display.open_page(written)


def _write_page(config: ResolvedConfig) -> str | Exception:
    """Writes the page of a run; returns its URI, or why there is none: the model is worth having without it."""
    from catdog.training import page

    try:
        return page.write_train_page(config.run.uri, config.data.uri)
    except Exception as error:
        if config.resources.debug:
            raise
        return error


def _cross_validate(config: TrainConfig, folds: int, fold: int | None) -> None:
    from catdog.experiments import cross_validation

    advice = advising_same_command("finished folds are kept, and whole epochs of the one in training", "go on")
    with advice, ProgressView("Starting", config.debug) as view:
        found = cross_validation.cross_validate(config, folds, fold, view.event)
    display.show_out_of_fold([found])


def tune(
    data: Data,
    name: Annotated[
        str, typer.Option(help="Name of the search, and of its folder in --runs.", autocompletion=complete_name)
    ],
    search: Annotated[
        str | None, typer.Option(help="Predefined search: gray-grid.", autocompletion=complete_search)
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(help="Values of a training option, as NAME=[VALUE, …]. Repeatable: all combinations are tried."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Training option of all trials, as NAME=VALUE: recipe, arch, epochs …",
            autocompletion=complete_setting,
        ),
    ] = None,
    asha: Annotated[bool, typer.Option("--asha", help="Stop weak trials early.")] = False,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Number of trials at a time. Default: as many as CPUs or GPUs hold.")
    ] = None,
    runs: Runs = "runs",
    address: Address = None,
    wait: Wait = None,
    stall_timeout: StallTimeout = None,
    debug: Debug = False,
) -> None:
    """Search training options with Ray Tune, and rank the trials by validation log loss."""
    from catdog.experiments import searches, tuning

    chosen = searches.get_search(search) if search is not None else searches.Search("", "")
    values = dict(chosen.grid)
    for text in grid or []:
        values |= parse_settings([text], "--grid")
    for key, value in values.items():
        if not isinstance(value, list):
            raise UsageError(f"--grid received {key}={value}, expected a list such as {key}=[1, 2]")
    options = chosen.base | parse_settings(set_)
    places = {"data": data, "name": name, "runs": runs, "address": address, "wait": wait, "debug": debug}
    config = TrainConfig(**(options | places | {"stall_timeout": stall_timeout}))
    advice = advising_same_command("finished trials are kept, and whole epochs of the others", "go on")
    with advice, ProgressView("Searching", debug) as view:
        trials = tuning.run_search(config, values, asha, concurrent, view.event)
    failed = all(trial.log_loss is None for trial in trials)
    display.show_trials(trials, None if failed else tuning.judge_search(config, trials))
    folder = tuning.search_folder(config)
    out.print(f"Runs: {folder}   Curves: tensorboard --logdir {folder}")
    if failed:
        raise CatdogError("every run of the search failed")


def oof(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Finished cross-validations: the run folders of `train --folds`.", autocompletion=complete_run
        ),
    ],
) -> None:
    """Compare cross-validations image by image, and evaluate the average of their logits."""
    from catdog.experiments import cross_validation

    display.show_out_of_fold([cross_validation.read_out_of_fold(name) for name in names])


def list_runs(
    runs: Runs = "runs",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List the runs of a folder, the lowest validation log loss first."""
    from catdog.experiments import run_list

    found, problems = run_list.list_runs(runs)
    if json_:
        out.print(json.dumps({"runs": [dataclasses.asdict(run) for run in found], "not_listed": problems}, indent=2))
    else:
        display.show_runs(found, problems)


def recipes() -> None:
    """List the recipes."""
    from catdog.training import recipes

    display.show_recipes(recipes.RECIPES.values())


def models() -> None:
    """List the architectures."""
    from catdog.models import registry

    display.show_architectures(registry.get_architectures().values())
