"""`catdog score` and `submission check`: from a model to a file that Kaggle accepts."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

import typer

from catdog.choices import EngineChoice, PrecisionChoice, SplitChoice
from catdog.cli import display
from catdog.cli.completion import complete_run
from catdog.cli.options import Address, Data, Debug, Gpu, OpenPage, StallTimeout, Track, Wait, advising_same_command
from catdog.cli.progress import ProgressView
from catdog.errors import CatdogError, UsageError

SubmissionFile = Annotated[str, typer.Argument(help="CSV of the submission.")]


def score(
    model: Annotated[
        list[str],
        typer.Option(help="Run or bundle. Repeat it to average the logits of several.", autocompletion=complete_run),
    ],
    data: Data,
    split: Annotated[
        SplitChoice, typer.Option(help="Split to score; all is validation, and test if there is one.")
    ] = "all",
    out_: Annotated[str, typer.Option("--out", help="CSV to write; the report and other files lie beside it.")] = (
        "submissions/results.csv"
    ),
    engine: Annotated[
        EngineChoice,
        typer.Option(help="auto is ONNX Runtime on CPUs if the model has been exported to it, and TensorFlow on GPUs."),
    ] = "auto",
    precision: Annotated[
        PrecisionChoice,
        typer.Option(
            help="int8: the model's int8 version (`catdog bundle quantise`), faster on CPUs. auto: the model as it is."
        ),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images that are decoded and predicted together.")] = 64,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be done and how long it would take, and exit.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", hidden=True)] = False,  # the name that --plan had
    max_unreadable: Annotated[
        float, typer.Option(help="Exit with 1 if more than this share of a split's images is unreadable.")
    ] = 0.01,
    open_: OpenPage = False,
    gpu: Gpu = None,
    gpus_per_actor: Annotated[
        float,
        typer.Option(help="How much of a GPU each actor takes; with less than 1, several small models share each."),
    ] = 1.0,
    track: Track = None,
    address: Address = None,
    wait: Wait = None,
    stall_timeout: StallTimeout = None,
    debug: Debug = False,
) -> None:
    """Score a data set's images with a model, and write the submission and the validation report."""
    from catdog import storage, tracking
    from catdog.scoring import score

    limit = {} if stall_timeout is None else {"stall_timeout": stall_timeout}
    config = score.ScoreConfig(
        model=model, data=data, split=split, out=out_, engine=engine, precision=precision, batch_size=batch_size,
        max_unreadable=max_unreadable, gpu=gpu, gpus_per_actor=gpus_per_actor, address=address, wait=wait, debug=debug,
        **limit,
    )  # fmt: skip
    if plan or explain:
        with advising_same_command("nothing was written", "measure again"), ProgressView("Measuring", debug) as view:
            found = score.explain_plan(config, view.event)
        display.show_plan(*found)
        return
    if track is not None and len(model) > 1:
        raise UsageError("--track received with several models; only the scores of one run are tracked, with it")
    started = time.perf_counter()
    view = ProgressView("Starting", debug)
    tracker = tracking.Tracker(track, view.warn) if track else None
    advice = advising_same_command("finished parts are kept", "go on")
    with advice, view, tracker or contextlib.nullcontext():
        if tracker is not None:
            tracker.go_on(storage.absolute(model[0]))
        result = score.score_dataset(config, view.event)
        if tracker is not None:
            view.stage("Uploading")
            tracker.finish(result.figures, {"scores": result.files})
    display.show_score(result, time.perf_counter() - started)
    if result.page_error is not None and debug:
        raise result.page_error
    if open_ and result.page is not None:
        display.open_page(result.page)
    if result.too_many_unreadable:
        raise CatdogError(
            f"more than {max_unreadable:.2%} of the images are unreadable ({', '.join(result.too_many_unreadable)}); "
            f"everything is written, {result.unreadable} names them"
        )


def check(file: SubmissionFile, data: Data) -> None:
    """Check a submission against the test split of its data set."""
    from catdog.data import catalog
    from catdog.reporting import submission

    display.show_check(file, submission.check_submission(file, catalog.read_catalog(data)))
