"""The output of the commands: results on standard output, warnings and errors on standard error."""

from __future__ import annotations

import webbrowser
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from catdog.errors import first_line
from catdog.events import (
    DecodingStarted,
    EpochDone,
    Event,
    FoldStarted,
    MemberStarted,
    PortsExposed,
    RunOpened,
    ScoringPlanned,
    TrainingStarted,
    Waiting,
)

if TYPE_CHECKING:
    from catdog.data.catalog import Catalog
    from catdog.evaluation.selection import Judged
    from catdog.experiments.audit import Finding
    from catdog.experiments.cross_validation import OutOfFold
    from catdog.experiments.run_list import RunSummary
    from catdog.experiments.tuning import Trial
    from catdog.inference.bundle import SavedBundle
    from catdog.models.registry import Architecture
    from catdog.reporting.predictions import PhotoRow
    from catdog.reporting.submission import Checked
    from catdog.scoring.results import ScoreResult
    from catdog.training.recipes import Recipe
    from catdog.training.train import TrainResult

# No markup: file names may contain brackets.
out = Console(soft_wrap=True, highlight=False, markup=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def show_catalog(catalog: Catalog) -> None:
    """Shows how many images a data set has, by split and class."""
    table = Table("split", *catalog.class_names, "unlabelled", "all")
    for split in ("train", "valid", "test"):
        first, second = (catalog.count(split, label) for label in (0, 1))
        count = catalog.count(split)
        table.add_row(split, str(first), str(second), str(count - first - second), str(count))
    out.print(table)
    out.print(f"label is the probability of {catalog.class_names[1]}")
    out.print(f"Data set: {catalog.root}")


def show_event(event: Event) -> None:
    """Prints the line that an event is worth, if it is worth one."""
    match event:
        case Waiting():
            out.print(event.why)
        case RunOpened() if event.strangers:
            out.print(f"Kept files in {event.run} that are not catdog's: {', '.join(event.strangers)}")
        case FoldStarted():
            out.print(f"Fold {event.fold} of {event.folds}")
        case MemberStarted():
            out.print(f"Member {event.member} of {event.members}")
        case DecodingStarted():
            out.print(f"Run: {event.run}")
            if event.store:
                out.print(f"Images: {event.store}")
        case PortsExposed():
            out.print(
                f"Warning: the addresses {', '.join(event.addresses)} are public, and workers with GPUs obey whoever "
                "reaches their ports; let only the cluster's machines reach each other (docs/cluster.md)"
            )
        case TrainingStarted():
            where = f" on {event.nodes} nodes" if event.nodes > 1 else ""
            done = [f"epoch {event.epoch}"] * bool(event.epoch) + [f"step {event.step}"] * bool(event.step)
            after = f" after {', '.join(done)}" if done else ""
            out.print(f"Training on {count(event.workers, 'worker')}{where}{after}")
            if event.rates:
                slower = {name: rate for name, rate in event.rates.items() if name != event.precision}
                rest = "".join(f" ({name} {rate:,.1f})" for name, rate in slower.items())
                out.print(f"Precision: {event.precision}, {event.rates[event.precision]:,.1f} images/s{rest}")
            elif event.precision != "float32":
                out.print(f"Precision: {event.precision}")
            for line in event.rejected:
                out.print(f"Left out: {line}")
        case EpochDone():
            out.print(
                f"epoch {event.epoch:>3}  loss {event.loss:.4f}  valid log loss {event.valid_log_loss:.4f}  "
                f"accuracy {event.valid_accuracy:.4f}  {event.seconds:.1f} s{'  best' * event.best}"
            )
        case ScoringPlanned():
            kept = f", {count(event.kept, 'part')} reused" if event.kept else ""
            out.print(f"Scoring {count(event.parts, 'part')} on {count(event.actors, 'actor')}{kept}")


def show_quantised(made: SavedBundle) -> None:
    """Shows what quantising a bundle changed, and where the int8 one is."""
    figures = made.info.quantisation
    assert figures is not None
    out.print(
        f"Log loss of {figures.n:,} validation photos: {figures.log_loss_float32:.4f} in float32, in int8 "
        f"{figures.log_loss_change:+.5f} ({figures.log_loss_change_low:+.5f} to {figures.log_loss_change_high:+.5f})"
    )
    for member, names in zip(made.info.members, figures.in_float, strict=True):
        if names:
            out.print(f"In float32, of {member}: {', '.join(names)}")
    out.print(f"Bundle: {made.uri}")


def show_plan(what: dict[str, str], seconds: dict[str, float]) -> None:
    """Shows what an operation would do, and an estimate of how long it would take, by stage."""
    rows = dict(what)
    if seconds:
        stages = ", ".join(f"{stage} {clock(each)}" for stage, each in seconds.items() if each >= 0.5)
        rows["time"] = f"about {clock(sum(seconds.values()))}, an estimate: {stages}"
    for name, text in rows.items():
        out.print(f"{name:<9} {text}")


def show_training(result: TrainResult, seconds: float) -> None:
    """Shows the validation figures of a trained model, and where it is."""
    figures = result.validation
    calibrated = f", calibrated {figures['log_loss_calibrated']:.4f}" if "log_loss_calibrated" in figures else ""
    out.print(
        f"Validation log loss {figures['log_loss']:.4f}{calibrated}, accuracy {figures['accuracy']:.4f} on "
        f"{figures['n']} images (epoch {figures['epoch']} of {result.epochs}), {seconds:.0f} s"
    )
    if result.chosen_on == "validation":
        honest = figures.get("log_loss_cross_chosen")
        rest = "" if honest is None else f"; {honest:.4f} where each half is judged by the epoch that the other chose"
        out.print(f"The epoch was chosen on these images, so their log loss is too optimistic{rest}")
    out.print(f"Model: {result.bundle}")
    if result.int8:
        out.print(f"int8: {result.int8}")


def show_trials(trials: list[Trial], judged: Judged | None) -> None:
    """Shows the trials of a search in their order, and what the best is worth on images that did not choose it."""
    for rank, trial in enumerate(trials, 1):
        if trial.log_loss is None:
            out.print(f"{rank:>3}  failed     {trial.name}: {trial.error}")
        else:
            out.print(f"{rank:>3}  {trial.log_loss:.4f}  {trial.accuracy:.4f}  {trial.epochs:>3} epochs  {trial.name}")
    if any(trial.log_loss is not None for trial in trials):
        rest = ""
        if judged is not None:
            one, other = judged.halves
            rest = f"; judged by the best of the other half, the halves have {one:.4f} and {other:.4f}"
        out.print(f"The best was chosen on the images that rank it, so its log loss is too optimistic{rest}")


def show_runs(runs: list[RunSummary], problems: list[str]) -> None:
    """Shows runs in their order, and names the folders that are none."""
    several = len({run.data for run in runs if run.data}) > 1
    rows = [["name", "recipe", "model", "epochs", "log loss", "accuracy", "min", "state", *["data"] * several]]
    for run in runs:
        rows.append(
            [
                f"{run.name} ({run.parts})" if run.parts else run.name,
                run.recipe,
                f"{run.arch} {run.image_size or ''}{' + int8' * run.int8}",
                "" if run.epochs is None else str(run.epochs),
                "" if run.log_loss is None else f"{run.log_loss:.4f}",
                "" if run.accuracy is None else f"{run.accuracy:.4f}",
                "" if run.minutes is None else f"{run.minutes:.0f}",
                run.state,
                *[run.data[:6]] * several,
            ]
        )
    # No table: in a pipe its columns would be cut.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if runs else [["No runs"]]:
        out.print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip())
    if several:
        out.print("The runs are of several data sets (last column), whose log losses do not compare")
    for problem in problems:
        out.print(f"Not listed: {problem}")


def show_findings(findings: list[Finding]) -> None:
    """Shows how many findings an audit has, by kind."""
    counts = Counter(finding.issue for finding in findings)
    leaks = sum(finding.leaks for finding in findings)
    out.print(
        f"{counts['label']} labels probably wrong, {counts['ambiguous']} ambiguous, {counts['outlier']} outliers, "
        f"{counts['duplicate']} near-duplicates, {leaks} of them in different splits"
    )


def show_recipes(recipes: Iterable[Recipe]) -> None:
    """Shows recipes, a row each."""
    table = Table("name", "description")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.summary)
    out.print(table)


def show_architectures(architectures: Iterable[Architecture]) -> None:
    """Shows architectures, a row each."""
    table = Table("name", "pixels", "weights", "description")
    for arch in architectures:
        weights = "imagenet, none, PATH" if arch.has_backbone else "none"
        table.add_row(arch.name, str(arch.image_size), weights, arch.summary)
    out.print(table)


def show_score(result: ScoreResult, seconds: float) -> None:
    """Shows the report, how many images could not be read, and where the files are."""
    from catdog.reporting import render

    for section in result.report.sections if result.report else []:
        table = Table("validation" if section.split == "valid" else section.split, "")
        for what, figure in render.table_rows(section):
            table.add_row(what, figure)
        out.print(table)
    for split, counts in result.counts.items():
        odd = ", ".join(f"{counts[status]} {status}" for status in ("recovered", "unreadable") if counts[status])
        out.print(f"{split}: {sum(counts.values())} images{', ' + odd if odd else ''}")
    if any(counts["unreadable"] for counts in result.counts.values()):
        out.print(f"Unreadable images: {result.unreadable}")
    if "models" in result.calibration:
        out.print(f"Temperature and clip: {result.calibration}")
    if result.page_error is not None:
        show_missing_page(result.page_error)
    where = [result.page] * (result.page is not None) + [result.report_file] * (result.report is not None)
    if where:
        out.print(f"Report: {', '.join(map(str, where))}")
    out.print(f"Submission: {result.csv}" if result.csv else "No submission: the test split was not scored")
    out.print(f"{seconds:.0f} s")


def show_missing_page(error: Exception) -> None:
    """Warns that the page could not be made, and that everything else is there."""
    err.print(
        f"Warning: no report.html: {type(error).__name__}: {first_line(error)}; everything else is written (--debug "
        "shows where)"
    )


def open_page(uri: str) -> None:
    """Opens a page in the browser of whoever sits at this terminal; says why not where nobody does."""
    from catdog import storage

    if not out.is_terminal or not storage.is_local(uri):
        err.print(f"--open needs a terminal and a local file; open {uri} in a browser")
    elif not webbrowser.open(Path(storage.absolute(uri)).as_uri()):
        err.print(f"--open found no browser; open {uri} in one")


def show_check(file: str, checked: Checked) -> None:
    """Shows the result of checking a submission."""
    out.print(f"{file}: {checked.rows} rows, every test id once, every label a probability")
    for warning in checked.warnings:
        err.print(f"Warning: {warning}")


def show_predictions(rows: list[PhotoRow]) -> None:
    """Shows what was predicted of photos, a row each."""
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    if any(row.remarks for row in rows):
        table.add_column("remarks", overflow="fold")
    for row in rows:
        # Of two classes the likelier one says everything.
        shown = row.probabilities if len(row.probabilities) > 2 else {row.class_name or "": row.probability}
        names = "\n".join(map(_printable, shown))
        shares = "\n".join("" if share is None else f"{share:.2%}" for share in shown.values())
        cells = [_printable(row.file), names, shares, _printable("; ".join(row.remarks))]
        table.add_row(*cells[: len(table.columns)])
    out.print(table)


def show_skipped(skipped: list[tuple[str, str]]) -> None:
    """Says on standard error which files were not taken for photos: each, or of many how many for each reason."""
    if len(skipped) <= 10:
        for file, why in skipped:
            err.print(_printable(f"Left out: {file}: {why}"))
        return
    for why, count in Counter(why for _, why in skipped).items():
        err.print(_printable(f"Left out: {count} files: {why}"))


def show_out_of_fold(found: list[OutOfFold]) -> None:
    """Shows the log loss of cross-validations and of their average, and the differences from the first."""
    from catdog.evaluation import metrics
    from catdog.experiments import cross_validation

    for one in [*found, cross_validation.average_out_of_fold(found)] if len(found) > 1 else found:
        figures = one.figures
        interval = f"95 % interval {figures.log_loss_low:.4f} to {figures.log_loss_high:.4f}"
        out.print(
            f"{one.name}: out-of-fold log loss {figures.log_loss:.4f} ({interval}), uncalibrated "
            f"{one.log_loss_plain:.4f}, accuracy {figures.accuracy:.4f} on {figures.n} images, "
            f"{one.seconds / 60:.1f} minutes"
        )
        if one is not found[0]:
            gain = found[0].losses - one.losses
            low, high = metrics.difference_interval(gain)
            verdict = ", within noise" if low <= 0 <= high else ""
            out.print(f"  better than {found[0].name} by {gain.mean():.4f} ({low:.4f} to {high:.4f}){verdict}")


def _printable(text: str) -> str:
    """A text with every character that a terminal would obey, such as ESC, replaced."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def count(number: int, noun: str) -> str:
    """A number and a noun, in the plural unless it is 1."""
    return f"{number} {noun}{'s' * (number != 1)}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
