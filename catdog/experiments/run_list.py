"""The runs in a folder, with what each is worth: models, cross-validations and searches, finished or not."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from catdog import run_directory, storage
from catdog.errors import CatdogError, UsageError, did_you_mean, first_line
from catdog.experiments.cross_validation import REPORT_NAME
from catdog.inference import bundle
from catdog.inference.bundle import BundleInfo
from catdog.run_directory import RunDirectory

State = Literal["finished", "interrupted", "running", "incomplete"]


@dataclass(frozen=True)
class RunSummary:
    """One run, cross-validation or search.

    Attributes:
        name: name of its folder.
        kind: "run", "folds" (a cross-validation) or "search".
        recipe: name of the recipe, or "" if unknown.
        arch: name of the architecture, or "".
        image_size: in pixels, or None.
        epochs: number of epochs trained, or None.
        log_loss: validation log loss in nats, before calibration; of a cross-validation the calibrated out-of-fold log
            loss, of a search that of its best trial. None before the end.
        accuracy: likewise.
        minutes: time of training, or None.
        state: "finished", "interrupted", "running" (a process holds its lease), or "incomplete" for a search of which
            some trials have no model: they were stopped early, or the search was interrupted.
        parts: number of folds, or finished and all trials in words, or "".
        data: fingerprint of the data set; log losses of different data sets do not compare.
        int8: its model has an int8 version.
    """

    name: str
    kind: Literal["run", "folds", "search"]
    recipe: str
    arch: str
    image_size: int | None
    epochs: int | None
    log_loss: float | None
    accuracy: float | None
    minutes: float | None
    state: State
    parts: str = ""
    data: str = ""
    int8: bool = False


def list_runs(runs: str) -> tuple[list[RunSummary], list[str]]:
    """Summarizes everything in a folder of runs.

    Args:
        runs: URI of the folder.

    Returns:
        Runs, cross-validations and searches, the lowest log loss first and those without one last; and one line for
        each folder that is none of these, or damaged.

    Raises:
        UsageError: the folder does not exist.
    """
    root = storage.absolute(runs)
    if storage.kind(root) != "folder":
        near = did_you_mean(storage.name(root), storage.names_beside(root))
        raise UsageError(f"--runs received {runs!r}, expected an existing folder of runs{near}")
    found, problems = [], []
    for name in storage.list_names(root):
        uri = storage.join(root, name)
        if name.startswith(".") or storage.kind(uri) != "folder":
            continue
        try:
            found.append(_summarize(uri))
        except (CatdogError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{name}: {first_line(error) if isinstance(error, CatdogError) else 'damaged'}")
    return sorted(found, key=lambda run: (run.log_loss is None, run.log_loss or 0.0, run.name)), problems


def _summarize(uri: str) -> RunSummary:
    names = storage.list_names(uri)
    if run_directory.SEARCH in names:
        return _summarize_search(uri, names)
    if RunDirectory(uri).exists:
        return _summarize_run(uri)
    folds = [name for name in names if name.startswith("fold-")]
    if REPORT_NAME in names or folds:
        return _summarize_folds(uri, folds, REPORT_NAME in names)
    damaged = storage.name(RunDirectory(uri).config) in names
    raise CatdogError("its config.json is damaged or not catdog's" if damaged else "not a run")


def _summarize_run(uri: str) -> RunSummary:
    run = RunDirectory(uri)
    content = run.read() or {}
    options = content["options"]
    of_run = {
        "name": storage.name(uri),
        "kind": "run",
        "recipe": options["recipe"] or "",
        "arch": options["arch"] or "",
        "image_size": options["image_size"],
        "data": content["catalog_fingerprint"],
    }
    if run.holder is not None or not run.finished:
        state: State = "running" if run.holder is not None else "interrupted"
        return RunSummary(**of_run, epochs=None, log_loss=None, accuracy=None, minutes=None, state=state)
    info = bundle.read_info(uri).info
    return RunSummary(
        **of_run,
        epochs=_epochs(info),
        log_loss=info.validation["log_loss"],
        accuracy=info.validation.get("accuracy"),
        minutes=_minutes(info),
        state="finished",
        int8=run.has_int8,
    )


def _epochs(info: BundleInfo) -> int:
    return max(len(info.training.get("history", [])), int(info.validation.get("epoch", 0)))


def _minutes(info: BundleInfo) -> float | None:
    """Minutes that the run took; of a bundle that does not say so, those of its epochs."""
    history = info.training.get("history", [])
    seconds = info.training.get("seconds") or sum(epoch["seconds"] for epoch in history)
    return seconds / 60 if seconds else None


def _summarize_folds(uri: str, folds: list[str], reported: bool) -> RunSummary:
    runs = [RunDirectory(storage.join(uri, name)) for name in folds]
    options: dict[str, Any] = next((content["options"] for run in runs if (content := run.read())), {})
    report = json.loads(storage.read_bytes(storage.join(uri, REPORT_NAME))) if reported else {}
    running = any(run.holder is not None for run in runs)
    whole = bool(report) and report["fold"] is None
    count = report.get("folds", len(folds))
    parts = f"{count} fold{'s' * (count != 1)}"
    if report and not whole:
        parts = f"fold {report['fold']} of {report['folds']}"
    return RunSummary(
        storage.name(uri),
        "folds",
        options.get("recipe") or "",
        options.get("arch") or "",
        options.get("image_size"),
        epochs=None,
        log_loss=report.get("log_loss"),
        accuracy=report.get("accuracy"),
        minutes=report["seconds"] / 60 if report else None,
        state="running" if running else "finished" if whole else "interrupted",
        parts=parts,
        data=report.get("catalog_fingerprint", ""),
    )


def _summarize_search(uri: str, names: list[str]) -> RunSummary:
    search: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, run_directory.SEARCH)))
    places = [storage.join(uri, name) for name in names]
    trials = [_summarize_run(place) for place in places if RunDirectory(place).exists]
    done = [trial for trial in trials if trial.log_loss is not None]
    best = min(done, key=lambda trial: trial.log_loss or 0.0, default=None)
    count = math.prod(len(values) for values in search["grid"].values())
    running = RunDirectory(uri).holder is not None
    return RunSummary(
        storage.name(uri),
        "search",
        best.recipe if best else "",
        best.arch if best else "",
        best.image_size if best else None,
        epochs=best.epochs if best else None,
        log_loss=best.log_loss if best else None,
        accuracy=best.accuracy if best else None,
        minutes=sum(trial.minutes or 0.0 for trial in done) or None,
        state="running" if running else "finished" if len(done) == count else "incomplete",
        parts=f"{len(done)} of {count} trials",
        data=search["catalog_fingerprint"],
    )
