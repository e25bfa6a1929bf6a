"""What the commands show: a line or a table on standard output, one line on standard error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from catdog.data.catalog import Catalog
    from catdog.data.splits import Remark
    from catdog.experiments.cross_validation import OutOfFold
    from catdog.reporting.submission import Checked
    from catdog.scoring.score import ScoreResult

# No markup: what is shown are names of files, which may have brackets in them.
out = Console(soft_wrap=True, highlight=False, markup=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def show_remark(remark: Remark) -> None:
    """Shows something to know about a data set; a warning on standard error."""
    (err if remark.warning else out).print(f"{'Warning: ' * remark.warning}{remark.text}")


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


class TrainView:
    """Shows training's events: a live line in a terminal, a plain line an epoch everywhere.

    Attributes:
        opened: URIs of the runs that were opened, after which `--resume` goes on with them.
        epochs: how many whole epochs the run that is being trained has.
    """

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.epochs = 0
        self._status = out.status("Starting…")

    def __enter__(self) -> TrainView:
        self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._status.stop()

    def event(self, event: dict[str, Any]) -> None:
        """Takes one event."""
        kind = event["kind"]
        if kind == "open":
            self.opened.append(event["run"])
            self.epochs = 0
            if event["strangers"]:
                out.print(f"Not catdog's, left alone in {event['run']}: {', '.join(event['strangers'])}")
        elif kind == "decode":
            out.print(f"Run: {event['run']}")
            self._status.update(f"Decoding {event['images']} images, then starting workers…")
        elif kind == "wait":
            show_wait(event)
        elif kind == "fold":
            out.print(f"Fold {event['fold']} of {event['folds']}")
        elif kind == "member":
            out.print(f"Member {event['member']} of {event['members']}")
        elif kind == "features":
            self._status.update(f"Computing features of {event['images']} images, {event['kept']} are there…")
        elif kind == "start":
            self.epochs = event["epoch"]
            after = f" after epoch {event['epoch']}" if event["epoch"] else ""
            where = f" on {event['nodes']} nodes" if event["nodes"] > 1 else ""
            out.print(f"Training on {event['workers']} worker{'s' * (event['workers'] > 1)}{where}{after}")
            for line in event["rejected"]:
                out.print(f"left out: {line}")
        elif kind == "step":
            done = f"step {event['step']}/{event['steps']}"
            self._status.update(f"epoch {event['epoch']}  {done}  loss {event['loss']:.4f}")
        elif kind == "epoch":
            self.epochs = event["epoch"]
            out.print(
                f"epoch {event['epoch']:>3}  loss {event['loss']:.4f}  valid log loss {event['valid_log_loss']:.4f}  "
                f"accuracy {event['valid_accuracy']:.4f}  {event['seconds']:.1f} s{'  best' * event['best']}"
            )


def show_wait(event: dict[str, Any]) -> None:
    """Shows what a cluster is waited for."""
    if event["kind"] == "wait":
        out.print(event["why"])


def score_view(update: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    """Makes what shows scoring's events: a line at its start, then `update` with how far it is."""
    done, parts = 0, 0

    def event(event: dict[str, Any]) -> None:
        nonlocal done, parts
        if event["kind"] == "plan":
            parts = event["parts"]
            kept = f", {event['kept']} parts kept from before" if event["kept"] else ""
            out.print(f"Scoring {parts} parts on {event['actors']} actor{'s' * (event['actors'] > 1)}{kept}")
        elif event["kind"] == "wait":
            show_wait(event)
        else:
            done += 1
            update(f"{done} of {parts} parts")

    return event


def show_score(result: ScoreResult, seconds: float) -> None:
    """Shows the report, the number of damaged images, and where the files are."""
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
    if result.report is not None:
        out.print(f"Report: {result.report_file}")
    out.print(f"Submission: {result.csv}" if result.csv else "The test split was not scored: no submission was written")
    out.print(f"{seconds:.0f} s")


def show_check(file: str, checked: Checked) -> None:
    """Shows the result of checking a submission."""
    out.print(f"{file}: {checked.rows} rows, every test id once, every label a probability")
    for warning in checked.warnings:
        err.print(f"warning: {warning}")


def show_out_of_fold(found: list[OutOfFold]) -> None:
    """Shows the log loss of cross-validations, of their average, and how they differ from the first."""
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
            verdict = " is noise" if low <= 0 <= high else ""
            out.print(f"  better than {found[0].name} by {gain.mean():.4f} ({low:.4f} to {high:.4f}){verdict}")
