"""`catdog data download`, `submit` and `kaggle`: data from the internet, and submissions to Kaggle."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catdog.choices import ArchiveName
from catdog.cli import display
from catdog.cli.completion import complete_arch, complete_recipe
from catdog.cli.display import err, out
from catdog.cli.options import (
    Address,
    Debug,
    Gpu,
    StallTimeout,
    Wait,
    advising_same_command,
    field_option,
    parse_settings,
)
from catdog.cli.progress import ProgressView
from catdog.errors import CatdogError, UsageError
from catdog.training.request import TrainConfig

if TYPE_CHECKING:
    from catdog.experiments.kaggle_path import KagglePath
    from catdog.kaggle.download import Archive
    from catdog.kaggle.submission import Expected, Receipt
    from catdog.kaggle.transfer import Progress

_Competition = Annotated[
    str | None, typer.Option(help="Competition on Kaggle. Default: dogs-vs-cats-redux-kernels-edition.")
]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Send without asking.")]
_Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait for Kaggle's score.")]


def download(
    which: Annotated[ArchiveName, typer.Argument(help="Whose archive of cats and dogs.")],
    dest: Annotated[str, typer.Argument(help="Folder on this machine to download to.")],
    competition: _Competition = None,
) -> None:
    """Download an archive of photos, or go on with a download, and verify it."""
    from catdog.kaggle import client
    from catdog.kaggle import download as downloads

    with advising_same_command("what is there is kept", "go on"), _DownloadView() as view:
        archive = downloads.download_archive(which, dest, view.show, competition or client.COMPETITION)
    _show_archive(archive)
    out.print(f"To prepare it: catdog data prepare {archive.path} data/{which}")


def submit(
    file: Annotated[str, typer.Argument(help="CSV of the submission.")],
    message: Annotated[str, typer.Option("-m", "--message", help="Description that Kaggle shows.")],
    data: Annotated[
        str | None, typer.Option(help="Its data set. Default: the one named in the .meta.json file beside it.")
    ] = None,
    competition: _Competition = None,
    yes: _Yes = False,
    timeout: _Timeout = 300,
) -> None:
    """Check a submission, send it to Kaggle, and wait for its score."""
    from catdog.kaggle import client, submission
    from catdog.reporting import result_set

    submission.require_local(file)
    _submit(file, message, data or result_set.read_origin(file), competition or client.COMPETITION, yes, timeout)


def kaggle(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder for the data, the run and the submission.")],
    name: Annotated[str, typer.Option(help="Name of the run and of the submission.")] = "first",
    recipe: Annotated[str | None, field_option("recipe", complete=complete_recipe)] = None,
    arch: Annotated[str | None, field_option("arch", complete=complete_arch)] = None,
    weights: Annotated[str | None, field_option("weights")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other training option, as NAME=VALUE: epochs, seed …")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Kaggle's zip, or any other SOURCE of `data prepare`, instead of a download.")
    ] = None,
    message: Annotated[
        str | None, typer.Option("-m", "--message", help="Description that Kaggle shows. Default: the name.")
    ] = None,
    competition: _Competition = None,
    yes: _Yes = False,
    no_submit: Annotated[bool, typer.Option("--no-submit", help="End with the checked submission.")] = False,
    timeout: _Timeout = 300,
    gpu: Gpu = None,
    address: Address = None,
    wait: Wait = None,
    stall_timeout: StallTimeout = None,
    debug: Debug = False,
) -> None:
    """Download, prepare, train, score, check and submit; the same command again skips what is done."""
    from catdog import storage
    from catdog.experiments.kaggle_path import KagglePath
    from catdog.kaggle import client

    if yes and no_submit:
        raise UsageError("--yes and --no-submit received together; give one of them")
    if not storage.is_local(folder):
        raise UsageError(f"DIR received {folder!r}, expected a folder on this machine")
    if "/" in name or name in ("", ".", ".."):
        raise UsageError(f"--name received {name!r}, expected a plain folder name")
    if not no_submit:
        _require_answer(yes, "kaggle")
    path = KagglePath(
        storage.absolute_output(folder, "DIR"), name, competition or client.COMPETITION,
        None if source is None else storage.absolute(source),
    )  # fmt: skip
    training: dict[str, Any] = {
        key: value for key, value in (("recipe", recipe), ("arch", arch), ("weights", weights)) if value
    }
    everywhere: dict[str, Any] = {"gpu": gpu, "address": address, "wait": wait, "debug": debug}
    everywhere |= {} if stall_timeout is None else {"stall_timeout": stall_timeout}
    training |= parse_settings(set_) | everywhere
    path.require_options(training)
    with advising_same_command("what is finished is kept", "go on"):
        _prepare(path)
        if not (no_submit or path.is_trained):
            _warn_without_credentials()
        _train(path, training)
        _score(path, everywhere)
        if no_submit:
            _check(path.csv, path.data)
        else:
            _submit(path.csv, message or name, path.data, path.competition, yes, timeout)


def _warn_without_credentials() -> None:
    """Says before hours of training, and not after them, that nothing could be sent."""
    from catdog.kaggle import client

    try:
        client.open_client("everything up to the submission works without it")
    except CatdogError as error:
        err.print(f"Warning: {error}")


def _prepare(path: KagglePath) -> None:
    with _DownloadView() as view:
        archive = path.find_source(view.show)
    if archive is not None:
        _show_archive(archive)
    elif path.source is None:
        out.print("Download: skipped, the data set is prepared")
    else:
        out.print(f"Download: skipped, the source is {path.source}")
    if path.is_prepared:
        out.print(f"Prepare: skipped, {path.data} is a complete data set")
        return
    source = archive.path if archive is not None else path.source
    with ProgressView("Reading the source") as view:
        data = path.prepare(source or "", view.remark, view.event)
    display.show_catalog(data)


def _train(path: KagglePath, options: dict[str, Any]) -> None:
    from catdog.training.config import explain_architecture

    done, started = path.is_trained, time.perf_counter()
    if done:
        out.print(f"Train: skipped, {path.run.uri} is finished")
    elif path.run.exists:
        out.print(f"Train: goes on with {path.run.uri}")
    elif said := explain_architecture(TrainConfig(data=path.data, **options)):
        out.print(said, markup=False)
    with ProgressView("Starting", options["debug"]) as view:
        result = path.train(options, view.event)
    if not done:
        display.show_training(result, time.perf_counter() - started)


def _score(path: KagglePath, options: dict[str, Any]) -> None:
    if path.is_scored(options):
        out.print(f"Score: skipped, {path.csv} is this model's")
        return
    started = time.perf_counter()
    with ProgressView("Starting", options["debug"]) as view:
        result = path.score(options, view.event)
    display.show_score(result, time.perf_counter() - started)
    if result.csv is None:
        raise CatdogError(f"{path.data} has no test split, so there is nothing to submit")
    if result.too_many_unreadable:
        raise CatdogError(f"too many images are unreadable to submit this; {result.unreadable} names them")


def _check(file: str, data: str) -> None:
    from catdog.data import catalog
    from catdog.kaggle import submission
    from catdog.reporting import submission as submissions

    display.show_check(file, submissions.check_submission(file, catalog.read_catalog(data)))
    expected = submission.expected_score(file)
    if expected is None:
        out.print("Expected score: not known, as there is no validation report of this file")
    else:
        chosen = "; too optimistic, as they chose the epoch, too" if "these" in expected.chosen_on else ""
        out.print(
            f"Expected score: log loss {expected.log_loss:.4f} (95 % interval {expected.low:.4f} to "
            f"{expected.high:.4f}), that of {expected.n:,} validation images{chosen}"
        )


def _submit(file: str, message: str, data: str, competition: str, yes: bool, timeout: float) -> None:
    """Checks a submission, asks, sends it and waits for its score."""
    from catdog.kaggle import submission

    _check(file, data)
    before = submission.read_receipt(file, competition)
    if before is None or before.state == "sending":
        _require_answer(yes, "submit")
        if not yes and not typer.confirm(f"Send {file} to {competition} on Kaggle?"):
            out.print("Not sent")
            return
    with advising_same_command("look at Kaggle's list before you send it again", "learn the score"):
        receipt = submission.send_submission(file, message, competition)
        number = "" if receipt.ref is None else f" (submission {receipt.ref})"
        if receipt.again:
            out.print(f"Sent before, so not sent again: {file}{number}")
        else:
            out.print(f"Sent {file}: {receipt.answer}{number}")
        with out.status("Waiting for Kaggle's score…") as status:
            receipt = submission.wait_for_score(file, receipt, timeout, status.update)
    _show_receipt(receipt, submission.expected_score(file))


def _require_answer(yes: bool, command: str) -> None:
    if not yes and not sys.stdin.isatty():
        rest = ", or --no-submit to end with the checked file" if command == "kaggle" else ""
        raise UsageError(f"{command} received no --yes, and there is no terminal to ask in; give --yes to send{rest}")


def _show_receipt(receipt: Receipt, expected: Expected | None) -> None:
    from catdog.kaggle import client

    page = f"{client.site(receipt.competition)}/submissions"
    if receipt.state == "failed":
        raise CatdogError(f"Kaggle could not score it ({receipt.answer or 'it gave no reason'}); see {page}")
    if receipt.state == "sent":
        out.print(f"No score yet ({receipt.answer}): run the same command again, or see {page}")
        return
    if expected is not None:
        out.print(f"expected  {expected.log_loss:.5f}  ({expected.low:.5f} to {expected.high:.5f})")
    for what, score in (("public", receipt.public), ("private", receipt.private)):
        where = ""
        if score is not None and expected is not None:
            where = "  in the interval" if expected.low <= score <= expected.high else "  outside of the interval"
        out.print(f"{what:<8}  {'not shown by Kaggle' if score is None else f'{score:.5f}'}{where}")


class _DownloadView:
    """Shows a download: a live line in a terminal, and a plain line every ten per cent elsewhere."""

    def __init__(self) -> None:
        self._status = out.status("Downloading…")
        self._tenths = -1

    def __enter__(self) -> _DownloadView:
        self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._status.stop()

    def show(self, progress: Progress) -> None:
        """Shows how far it is."""
        total = progress.total
        of = f" of {total / 1e6:,.0f}" if total else ""
        text = f"{progress.done / 1e6:,.0f}{of} MB"
        self._status.update(f"{text}  {progress.note or 'downloading'}…")
        tenths = 10 * progress.done // total if total else -1
        if progress.note and progress.note != "verifying":
            err.print(f"{text}: {progress.note}")
        elif not out.is_terminal and tenths > self._tenths and not progress.note:
            out.print(text)
            self._tenths = tenths


def _show_archive(archive: Archive) -> None:
    what = "Downloaded" if archive.fresh else "Download: skipped, there is"
    out.print(f"{what} {archive.path}, {archive.size / 1e6:,.1f} MB, SHA-256 {archive.sha256}")
