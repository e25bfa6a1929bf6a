"""The `catdog` command: options in, the library called, what happened shown; nothing is computed here."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import pydantic
import typer
import typer.exceptions
from rich.table import Table

from catdog import __version__, imports, interruption
from catdog.cli import display
from catdog.cli.display import err, out
from catdog.errors import CatdogError, UsageError

app = typer.Typer(
    help="Train a dog/cat classifier on Ray, score images with it, and hand Kaggle a CSV.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Make data sets.", no_args_is_help=True)
submission_app = typer.Typer(help="Look at submissions.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(submission_app, name="submission")


class Split(StrEnum):
    """What `--split` takes."""

    test = "test"
    valid = "valid"
    all = "all"


class Duplicates(StrEnum):
    """What `--duplicates` takes."""

    keep = "keep"
    drop = "drop"
    refuse = "refuse"


class Engine(StrEnum):
    """What `--engine` takes."""

    auto = "auto"
    onnx = "onnx"
    tensorflow = "tensorflow"


Address = Annotated[str | None, typer.Option(help="Ray cluster; else RAY_ADDRESS, else one on this machine.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show Ray's log, and tracebacks.")]
Wait = Annotated[
    float | None, typer.Option(help="Seconds to wait for CPUs or GPUs that others hold. Default: as long as it takes.")
]
DataDir = Annotated[str, typer.Option("--data", help="A prepared data set's folder or bucket.")]
Gpu = Annotated[bool | None, typer.Option("--gpu/--cpu", help="Default: GPUs where the cluster has any.")]


def main() -> NoReturn:
    """Runs the `catdog` command with this process's arguments."""
    run(lambda: app(standalone_mode=False))


def run(command: Callable[[], object]) -> NoReturn:
    """Runs something and ends the process; a failure is one line on standard error, a traceback only with --debug.

    After Ctrl-C or SIGTERM it is the line, or two, that `interruption.guard` has written by then.

    Args:
        command: returns the exit code, or anything else for 0.
    """
    debug = "--debug" in sys.argv

    def checked() -> object:
        imports.require_unhidden()
        return command()

    try:
        code = interruption.guard(checked)
    except typer.exceptions.TyperException as error:
        err.print(f"catdog: {error.format_message()} (see --help)")
        sys.exit(error.exit_code)
    except CatdogError as error:
        if debug:
            raise
        err.print(f"catdog: {error}")
        sys.exit(error.exit_code)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        err.print(f"catdog: {option} received {first['input']!r}: {first['msg']}")
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # without a signal, such as the end of what is typed
        err.print("catdog: interrupted")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        text = (str(error).strip() or "no message").splitlines()[0]
        err.print(f"catdog: {type(error).__name__}: {text} (--debug shows where)")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"catdog {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """The options of all commands together."""


@data_app.command("prepare")
def data_prepare(
    source: Annotated[str, typer.Argument(help="Kaggle's zip, or a folder, zip or tar of images in any usual layout.")],
    dest: Annotated[str, typer.Argument(help="The folder or bucket to make.")],
    valid_fraction: Annotated[float, typer.Option(help="Share of each class kept for validation.")] = 0.1,
    split_seed: Annotated[int, typer.Option(help="Seed of the hash that splits.")] = 0,
    positive: Annotated[
        str | None, typer.Option(help="The class whose probability is predicted. Default: dog, or the second by name.")
    ] = None,
    duplicates: Annotated[
        Duplicates | None,
        typer.Option(help="Byte-equal copies. Default: drop labelled ones, keep and tell those of test images."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A pattern of files or folders to leave out, such as 'sample'; repeatable.")
    ] = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Unpack and check images, and write down ids, labels and the split, once."""
    del address, debug
    from catdog import storage
    from catdog.data import datasets

    with _same_command("no data set was written", "start again"), out.status(f"Preparing {source}…"):
        catalog = datasets.prepare_dataset(
            source, storage.absolute_output(dest, "DEST"), valid_fraction, split_seed, positive=positive,
            duplicates=duplicates.value if duplicates else None, ignore=ignore, on_remark=display.show_remark,
        )  # fmt: skip
    display.show_catalog(catalog)


@data_app.command("synthesize")
def data_synthesize(
    dest: Annotated[str, typer.Argument(help="The folder or bucket to make.")],
    train: Annotated[int, typer.Option(help="Labelled images, half cats, half dogs.")] = 2400,
    test: Annotated[int, typer.Option(help="Unlabelled images.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Draw cats and dogs as JPEG files in Kaggle's layout, ready to train on."""
    del address, debug
    from catdog import storage
    from catdog.data import synthetic

    with _same_command("no data set was written", "start again"), out.status("Drawing…"):
        catalog = synthetic.synthesize(storage.absolute_output(dest, "DEST"), train, test, seed)
    display.show_catalog(catalog)


@data_app.command("pack")
def data_pack(
    data: Annotated[str, typer.Argument(help="A prepared data set.")],
    dest: Annotated[str, typer.Argument(help="The folder or bucket to make.")],
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Write a data set's images into a few Parquet shards; every command reads it like a folder."""
    del address, debug
    from catdog import storage
    from catdog.data import packing

    with _same_command("no data set was written", "start again"), out.status(f"Packing {data}…"):
        catalog, absent = packing.pack_dataset(data, storage.absolute_output(dest, "DEST"))
    display.show_catalog(catalog)
    if absent:
        out.print(f"{absent} files were not there; they are unreadable images of the packed set until it is made anew")


@data_app.command("audit")
def data_audit(
    data: DataDir,
    oof: Annotated[str, typer.Option(help="A cross-validation of it: the folder of `train --folds`.")],
    out_: Annotated[str, typer.Option("--out", help="The CSV; a sheet of pictures takes its stem.")] = "audit.csv",
    distance: Annotated[int, typer.Option(min=0, max=16, help="Bits of 64 in which duplicates may differ.")] = 4,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """List probably wrong labels, photos of neither or both, and near-duplicates, and draw the gravest."""
    from catdog import cluster, storage, waiting
    from catdog.data import catalog
    from catdog.experiments import audit, cross_validation
    from catdog.reporting import result_set
    from catdog.training import feature_cache

    target = storage.absolute_output(out_, "--out")
    if not storage.name(target).endswith(".csv"):
        raise UsageError(f"--out received {out_!r}, expected the name of a .csv file")
    pictures = result_set.sidecar(target, "png")
    rows, found = catalog.read_catalog(data), cross_validation.read_out_of_fold(oof)
    with _same_command("nothing was written", "start again"), out.status("Auditing…"), cluster.connect(address, debug):
        waiting.wait_for([{"CPU": 1}], display.show_wait)
        known = None
        if found.features:
            values, at = feature_cache.read_features(found.features, found.keys, "identity")
            known = (values, [found.keys[row] for row in at])
        findings = audit.audit(rows, found, known, distance)
        audit.write_findings(findings, target)
        audit.draw_findings(findings, rows, pictures)
    counts = {issue: sum(finding.issue == issue for finding in findings) for issue in audit.ISSUES}
    leaks = sum(finding.leaks for finding in findings)
    out.print(
        f"{counts['label']} labels probably wrong, {counts['ambiguous']} ambiguous, {counts['outlier']} outliers, "
        f"{counts['duplicate']} near-duplicates, {leaks} of them in different splits"
    )
    out.print(f"Audit: {target}   Pictures: {pictures}")


@app.command()
def train(
    ctx: typer.Context,
    data: Annotated[str | None, typer.Option(help="A prepared data set; with --resume, the run's own.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="See `catdog recipes`. Default: fine-tune for pretrained weights, else plain."),
    ] = None,
    arch: Annotated[str | None, typer.Option(help="See `catdog models`. Default: small_resnet, from scratch.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Width multiplier of mobilenet.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="imagenet, none, or a Keras weights file without the top. Default: imagenet for a backbone."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels. Default: the architecture's own.")] = None,
    freeze: Annotated[
        bool | None, typer.Option("--freeze/--no-freeze", help="Keep the backbone's weights as they are.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="At most this many.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step, over all workers.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate. Default: the architecture's own.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better one before stopping.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights, order and augmentation.")] = None,
    augment: Annotated[bool | None, typer.Option("--augment/--no-augment", help="Change the training images.")] = None,
    leave_out: Annotated[
        str | None, typer.Option(help="A list of training images to leave out: keys, or an audit's CSV.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other field of a recipe: NAME=VALUE, such as augmentation.rotation=10."),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validate: K models, and out-of-fold predictions of all labelled images.")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="With --folds: only this one, counted from 1.")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray Train workers. Default: as many as fit.")] = None,
    cpus_per_worker: Annotated[int | None, typer.Option(help="CPUs of each. Default: an even share.")] = None,
    gpu: Gpu = None,
    name: Annotated[str | None, typer.Option(help="Of the run. Default: recipe, architecture and time.")] = None,
    runs: Annotated[str, typer.Option(help="Folder or bucket of runs.")] = "runs",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of this name.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run of this name first.")] = False,
    address: Address = None,
    wait: Wait = None,
    debug: Debug = False,
) -> None:
    """Train a model, data-parallel on Ray Train, and write its bundle to RUNS/NAME/model/."""
    from catdog.training import train
    from catdog.training.config import TrainConfig

    # What was not given is the recipe's to say, or the resumed run's.
    given = {key for key in ctx.params if ctx.get_parameter_source(key).name != "DEFAULT"}  # type: ignore[union-attr]
    options = {key: value for key, value in ctx.params.items() if key in given and key in TrainConfig.model_fields}
    options |= _settings(set_ or [])
    if resume:
        if name is None:
            raise UsageError("--resume received without --name; say which run to continue")
        options = train.stored_config(runs, name) | options
    elif data is None:
        raise UsageError("Missing option '--data': expected a prepared data set")
    if fold is not None and folds is None:
        raise UsageError("--fold received without --folds; say how many there are")
    if folds is not None:
        if name is None or resume or overwrite:
            raise UsageError("--folds wants a --name, and goes on by itself where it ended: leave out --resume")
        from catdog.experiments import cross_validation

        view = display.TrainView()
        with _same_command("finished folds are kept, and whole epochs of the one in training", "go on"), view:
            found = cross_validation.cross_validate(TrainConfig(**options), folds, fold, view.event)
        display.show_out_of_fold([found])
        return
    started = time.perf_counter()
    # Now, because a name that is made up is needed to go on.
    config, view = TrainConfig(**options).resolve(), display.TrainView()

    def advice() -> str:
        if config.run not in view.opened:
            kept = "the run is as it was; to go on" if resume else "the run had not begun; to start it"
            return f"{kept}:\n  {interruption.same_command()}"
        again = ["catdog", "train", "--resume", "--name", config.name or "", "--runs", runs]
        again += ["--address", address] if address else []
        again += ["--set", f"features={options['features']}"] if options.get("features") else []
        kept = f"the last whole epoch of {view.opened[-1]} is kept" if view.epochs else "no epoch was finished"
        return f"{kept}; to go on:\n  {shlex.join(again + ['--debug'] * debug)}"

    with interruption.advising(advice), view:
        result = train.train_model(config, view.event)
    figures = result.validation
    calibrated = f", calibrated {figures['log_loss_calibrated']:.4f}" if "log_loss_calibrated" in figures else ""
    out.print(
        f"Validation log loss {figures['log_loss']:.4f}{calibrated}, accuracy {figures['accuracy']:.4f} on "
        f"{figures['n']} images (epoch {figures['epoch']} of {result.epochs}), {time.perf_counter() - started:.0f} s"
    )
    if result.chosen_on == "validation":
        honest = figures.get("log_loss_cross_chosen")
        rest = "" if honest is None else f"; {honest:.4f} where each half is judged by the epoch that the other chose"
        out.print(f"The epoch was chosen on these images, which makes their log loss too good{rest}")
    out.print(f"Model: {result.bundle}")


@app.command()
def score(
    model: Annotated[list[str], typer.Option(help="A run or a bundle; give several to average their logits.")],
    data: DataDir,
    split: Annotated[Split, typer.Option(help="all: validation, and test where there is one.")] = Split.all,
    out_: Annotated[str, typer.Option("--out", help="The submission; its sidecars take its stem.")] = (
        "submissions/results.csv"
    ),
    engine: Annotated[
        Engine, typer.Option(help="auto: ONNX Runtime on CPUs where the model allows it, TensorFlow on GPUs.")
    ] = Engine.auto,
    batch_size: Annotated[int, typer.Option(help="Images decoded together, and then predicted.")] = 64,
    explain: Annotated[bool, typer.Option("--explain", help="Say what would be done, and why; nothing is.")] = False,
    max_unreadable: Annotated[float, typer.Option(help="Share beyond which the exit code is 1.")] = 0.01,
    gpu: Gpu = None,
    address: Address = None,
    wait: Wait = None,
    debug: Debug = False,
) -> None:
    """Score a data set's images with a model, and write results.csv and the validation report."""
    from catdog.scoring import score

    config = score.ScoreConfig(
        model=model, data=data, split=split.value, out=out_, engine=engine.value, batch_size=batch_size,
        max_unreadable=max_unreadable, gpu=gpu, address=address, wait=wait, debug=debug,
    )  # fmt: skip
    if explain:
        for what, why in score.explain_plan(config).items():
            out.print(f"{what:<8}  {why}")
        return
    started = time.perf_counter()
    with _same_command("finished parts are kept", "go on"), out.status("Scoring…") as status:
        result = score.score_dataset(config, display.score_view(status.update))
    display.show_score(result, time.perf_counter() - started)
    if result.too_many_unreadable:
        raise CatdogError(
            f"more than {max_unreadable:.2%} of the images are unreadable ({', '.join(result.too_many_unreadable)}); "
            f"everything is written, {result.unreadable} names them"
        )


@submission_app.command("check")
def submission_check(
    file: Annotated[str, typer.Argument(help="The CSV.")],
    data: DataDir,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Check a submission against the test split it is for."""
    del address, debug
    from catdog.data import catalog
    from catdog.reporting import submission

    display.show_check(file, submission.check_submission(file, catalog.read_catalog(data)))


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="The CSV.")],
    message: Annotated[str, typer.Option("-m", "--message", help="What Kaggle shows beside it.")],
    data: Annotated[str | None, typer.Option(help="Its data set. Default: what FILE's meta.json says.")] = None,
    competition: Annotated[str | None, typer.Option(help="Default: dogs-vs-cats-redux-kernels-edition.")] = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Check a submission and send it to Kaggle."""
    del address, debug
    from catdog import storage
    from catdog.data import catalog
    from catdog.reporting import kaggle, result_set, submission

    if not storage.is_local(file):
        raise UsageError(f"FILE received {file!r}; Kaggle's client sends files of this machine, so copy it here first")
    display.show_check(
        file, submission.check_submission(file, catalog.read_catalog(data or result_set.read_origin(file)))
    )
    answer = kaggle.send_submission(storage.absolute(file), message, competition or kaggle.COMPETITION)
    out.print(f"Sent {file}: {answer}")


@app.command("models")
def list_models(address: Address = None, debug: Debug = False) -> None:
    """List the architectures."""
    del address, debug
    from catdog.models import registry

    table = Table("name", "pixels", "weights", "what it is")
    for arch in registry.ARCHITECTURES.values():
        weights = "imagenet, none, PATH" if arch.has_backbone else "none"
        table.add_row(arch.name, str(arch.image_size), weights, arch.summary)
    out.print(table)


@app.command("tune")
def tune_(
    data: DataDir,
    name: Annotated[str, typer.Option(help="Of the search: its folder in --runs.")],
    search: Annotated[str | None, typer.Option(help="A search that comes with catdog: gray-grid.")] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="NAME=[VALUE, …] of a training option; every combination is tried.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE that every trial has: recipe, arch, epochs …")
    ] = None,
    asha: Annotated[bool, typer.Option("--asha", help="Stop early what falls behind.")] = False,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time. Default: one a CPU.")] = None,
    runs: Annotated[str, typer.Option(help="Folder or bucket of runs.")] = "runs",
    address: Address = None,
    wait: Wait = None,
    debug: Debug = False,
) -> None:
    """Search training options with Ray Tune, and rank the runs by validation log loss."""
    from catdog.experiments import tuning
    from catdog.training.config import TrainConfig

    chosen = tuning.get_search(search) if search is not None else tuning.Search("", "")
    values = chosen.grid | {key: value for text in grid or [] for key, value in _settings([text]).items()}
    for key, value in values.items():
        if not isinstance(value, list):
            raise UsageError(f"--grid received {key}={value}, expected a list such as {key}=[1, 2]")
    options = chosen.base | _settings(set_ or [])
    places = {"data": data, "name": name, "runs": runs, "address": address, "wait": wait, "debug": debug}
    config = TrainConfig(**(options | places))
    with _same_command("finished trials are kept, and whole epochs of the others", "go on"), out.status("Searching…"):
        trials = tuning.run_search(config, values, asha, concurrent, display.show_wait)
    for rank, trial in enumerate(trials, 1):
        if trial.log_loss is None:
            out.print(f"{rank:>3}  failed     {trial.name}: {trial.error}")
        else:
            out.print(f"{rank:>3}  {trial.log_loss:.4f}  {trial.accuracy:.4f}  {trial.epochs:>3} epochs  {trial.name}")
    if any(trial.log_loss is not None for trial in trials):
        judged = tuning.judge(config, trials)
        rest = ""
        if judged is not None:
            one, other = judged.halves
            rest = f"; judged by the best of the other half, the halves have {one:.4f} and {other:.4f}"
        out.print(f"The best was chosen on the images that rank it, which makes its log loss too good{rest}")
    out.print(f"Runs: {config.run}   Curves: tensorboard --logdir {config.run}")
    if all(trial.log_loss is None for trial in trials):
        raise CatdogError("every run of the search failed")


@app.command("oof")
def out_of_fold(
    names: Annotated[list[str], typer.Argument(help="Finished cross-validations: the folders of `train --folds`.")],
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Compare cross-validations image by image, and judge the average of their logits."""
    del address, debug
    from catdog.experiments import cross_validation

    display.show_out_of_fold([cross_validation.read_out_of_fold(name) for name in names])


@app.command("recipes")
def list_recipes(address: Address = None, debug: Debug = False) -> None:
    """List the recipes."""
    del address, debug
    from catdog.training import recipes

    table = Table("name", "what it is")
    for recipe in recipes.RECIPES.values():
        table.add_row(recipe.name, recipe.summary)
    out.print(table)


def _same_command(kept: str, purpose: str) -> AbstractContextManager[None]:
    """While it is open, an interruption says what is kept and gives the same command again."""
    return interruption.advising(lambda: f"{kept}; to {purpose}:\n  {interruption.same_command()}")


def _settings(texts: list[str]) -> dict[str, Any]:
    """Reads what `--set` was given; a value is JSON, or else the text it is."""
    from catdog.training.augmentation import Augmentation
    from catdog.training.config import TrainConfig

    found: dict[str, Any] = {}
    for text in texts:
        name, separator, raw = text.partition("=")
        try:
            value = json.loads(raw)
        except ValueError:
            value = raw
        outer, _, inner = name.partition(".")
        known = inner in Augmentation.model_fields if outer == "augmentation" else name in TrainConfig.model_fields
        if not separator or not known:
            raise UsageError(f"--set received {text!r}, expected NAME=VALUE with a field of TrainConfig, as ema=0.99")
        if inner:
            found.setdefault(outer, {})[inner] = value
        else:
            found[name] = value
    return found
