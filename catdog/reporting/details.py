"""Figures and tables of the page, computed from a report: training, the judged splits, drift, Kaggle's board."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from catdog.evaluation import diagnostics, metrics
from catdog.evaluation.diagnostics import Bin
from catdog.evaluation.metrics import Figures
from catdog.inference.bundle import BundleInfo
from catdog.reporting import figures
from catdog.reporting.pictures import Grid, Scores, Tile, judged_grids, judged_tiles
from catdog.reporting.report import Judgement, Section

# The board of Kaggle's Dogs vs. Cats Redux in 2017, and two tutorials' results on it.
BOARD = (
    ("first of the board, 2017", 0.03302),
    ("gold medal", 0.03882),
    ("fast.ai, first lesson", 0.0528),
    ("a blog's small CNN", 0.285),
)
_BOARD_CLASSES = {"cat", "dog"}
_WORST = 10
_MAX_NAME = 16
_CLIPS = np.geomspace(1e-6, 0.2, 107)
_UNSURE = (0.1, 0.9)


@dataclass(frozen=True)
class TrainingCurve:
    """The epochs of a training run.

    Attributes:
        title: of the model, or "" where there is one only.
        epochs: how many.
        kept: the epoch that is kept, counted from 1; None where unknown.
        loss: SVG of the log loss of training and validation, or "".
        accuracy: SVG of the accuracy of validation, or "".
        rows: epoch, log loss of training and of validation, accuracy, images a second; None where unknown.
        speed: mean of the images a second; None where unknown.
    """

    title: str
    epochs: int
    kept: int | None
    loss: str
    accuracy: str
    rows: list[tuple[int, float | None, float | None, float | None, float | None]]
    speed: float | None


@dataclass(frozen=True)
class Details:
    """What is drawn and listed of a split that is judged.

    Attributes:
        section: of the report.
        judgement: of the section.
        reliability: SVG.
        before: bins of the probabilities before calibration; none where there is no calibration.
        after: bins of the judged probabilities.
        histogram: SVG.
        curves: SVG of ROC and of precision-recall, and the average precision; None where there is one class only.
        clip: SVG of log loss against clip.
        best_clip: that of the least log loss among those drawn, and this log loss.
        shares: SVG of the share of the log loss that the worst images have.
        worst: the worst images, each with its own share of the log loss.
        worst_share: their share together.
        grids: of images.
    """

    section: Section
    judgement: Judgement
    reliability: str
    before: list[Bin]
    after: list[Bin]
    histogram: str
    curves: tuple[str, str, float] | None
    clip: str
    best_clip: tuple[float, float]
    shares: str
    worst: list[tuple[Tile, float]]
    worst_share: float
    grids: list[Grid]

    @property
    def name(self) -> str:
        """Name of the split."""
        return "Validation" if self.section.split == "valid" else "Test"


@dataclass(frozen=True)
class Drift:
    """How the predictions of the test split differ from those of validation.

    Attributes:
        rows: what is compared, and its value in validation and in the test split.
        gap: Kolmogorov's distance of the probabilities.
        bound: what chance exceeds in 5 % of cases.
        histogram: SVG.
    """

    rows: list[tuple[str, float, float]]
    gap: float
    bound: float
    histogram: str


def training_curves(info: BundleInfo, title: str) -> list[TrainingCurve]:
    """The training curves of a bundle: of its one model, or of each member that says how it was trained."""
    members = info.training.get("members")
    named: list[tuple[str, dict[str, Any], int | None]]
    if isinstance(members, list):
        several = [each for each in members if isinstance(each, dict)]
        named = [(f"{title} member {number}".strip(), each, None) for number, each in enumerate(several, 1)]
    else:
        kept = info.validation.get("epoch")
        named = [(title, info.training, None if kept is None else int(kept))]
    return [curve for name, each, epoch in named if (curve := _training_curve(each, name, epoch))]


def _training_curve(training: dict[str, Any], title: str, kept: int | None) -> TrainingCurve | None:
    history = training.get("history")
    if not isinstance(history, list) or not history or not all(isinstance(entry, dict) for entry in history):
        return None
    names = ("loss", "valid_log_loss", "valid_accuracy", "images_per_second")
    columns = [[_number(entry.get(name)) for entry in history] for name in names]
    train, valid, accuracy, _ = columns
    if kept is None and any(value is not None for value in valid):
        options = training.get("options")
        best = isinstance(options, dict) and options.get("keep") == "best"
        kept = int(np.nanargmin(np.array(valid, float))) + 1 if best else len(history)
    of = f" of {title}" if title else ""
    told = f"Curves{of} over {len(history)} epochs of"
    return TrainingCurve(
        title,
        len(history),
        kept,
        figures.training_curve(train, valid, kept, "log loss", f"{told} training and validation log loss"),
        figures.training_curve([], accuracy, kept, "accuracy", f"{told} validation accuracy"),
        [(epoch, *values) for epoch, values in enumerate(zip(*columns, strict=True), 1)],
        float(np.mean(known)) if (known := [value for value in columns[3] if value is not None]) else None,
    )


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and np.isfinite(value) else None


def section_details(section: Section, scores: Scores, prior: float) -> Details:
    """Computes what is drawn and listed of a split that is judged.

    Args:
        section: with a judgement.
        scores: of the split.
        prior: the probability of an unreadable image, in (0, 1).
    """
    assert section.judgement is not None
    labels, judged = section.images["label"].to_numpy(), section.images["judged"].to_numpy()
    rows = np.flatnonzero(~np.isnan(judged))
    labels, judged, logits = labels[rows], judged[rows], scores.logits[section.rows[rows]].astype(np.float64)
    kind, name = ("validation", "test")[section.split == "test"], _brief(section.positive_class)
    plain = diagnostics.uncalibrated(logits, prior)
    before = diagnostics.reliability(labels, plain) if section.judgement.calibration != "none" else []
    after = diagnostics.reliability(labels, judged)
    losses = metrics.losses(labels, judged)
    shares = diagnostics.cumulative_shares(losses)
    worst = np.argsort(-losses, kind="stable")[:_WORST]
    unclipped = diagnostics.uncalibrated(logits / section.temperature, prior)
    clipped = diagnostics.losses_by_clip(labels, unclipped, _CLIPS)
    least = int(clipped.argmin())
    first, second = map(_brief, section.class_names)
    return Details(
        section=section,
        judgement=section.judgement,
        reliability=figures.reliability(
            before, after, name, f"Reliability of {kind}: share of {name} against the probability of it; table below"
        ),
        before=before,
        after=after,
        histogram=figures.histogram(
            {f"truly {first}": judged[labels == 0], f"truly {second}": judged[labels == 1]},
            name,
            f"Histogram of the probability of {name} on {kind}, for {first} and for {second}; "
            f"{np.mean((judged < _UNSURE[0]) | (judged > _UNSURE[1])):.1%} are below 0.1 or above 0.9",
        ),
        curves=_curves(labels, judged, kind),
        clip=figures.clip_curve(
            _CLIPS,
            clipped,
            section.clip,
            f"Log loss of {kind} against the clip; least, {clipped[least]:.4f}, at {_CLIPS[least]:.2g}; "
            f"used is {section.clip:.2g}",
        ),
        best_clip=(float(_CLIPS[least]), float(clipped[least])),
        shares=figures.loss_shares(
            shares,
            len(worst),
            f"Share of the log loss of {kind}; the {len(worst)} worst: {shares[len(worst) - 1]:.0%}",
        ),
        worst=[
            (tile, float(losses[row] / losses.sum()) if losses.sum() else 0.0)
            for tile, row in zip(judged_tiles(section, scores, rows[worst]), worst, strict=True)
        ],
        worst_share=float(shares[len(worst) - 1]),
        grids=judged_grids(section, scores),
    )


def _curves(labels: np.ndarray, judged: np.ndarray, kind: str) -> tuple[str, str, float] | None:
    curves = diagnostics.curves(labels, judged)
    if curves is None:
        return None
    area, average = np.trapezoid(curves.true_positive_rate, curves.false_positive_rate), curves.average_precision
    return (
        figures.roc(curves, f"ROC curve of {kind}; the area under it is {area:.4f}"),
        figures.precision_recall(
            curves, labels.mean(), f"Precision against recall of {kind}; the average precision is {average:.4f}"
        ),
        average,
    )


def compare(valid: Section, valid_scores: Scores, test_scores: Scores) -> Drift | None:
    """Compares the predictions of the test split with those of validation images that were not trained on.

    Returns:
        The comparison, or None where either has no image that could be read.
    """
    unseen = valid.rows[~np.isnan(valid.images["judged"].to_numpy())]
    one = valid_scores.probabilities[unseen[valid_scores.readable[unseen]]]
    other = test_scores.probabilities[test_scores.readable]
    if not len(one) or not len(other):
        return None
    name = _brief(valid.positive_class)
    gap, bound = diagnostics.distribution_gap(one, other)
    both = (valid_scores, test_scores)
    counted = {
        "could not be read": [scores.unreadable.num_rows / len(scores.logits) for scores in both],
        "damaged, read as far as they go": [scores.recovered / len(scores.logits) for scores in both],
    }
    rows = [
        (f"mean probability of {name}", float(one.mean()), float(other.mean())),
        (f"taken for {name}", float((one > 0.5).mean()), float((other > 0.5).mean())),
        ("unsure: probability from 0.1 to 0.9", _unsure(one), _unsure(other)),
        *((what, first, second) for what, (first, second) in counted.items()),
    ]
    label = f"Histograms of the probability of {name}: validation and test, which are at most {gap:.1%} apart"
    return Drift(rows, gap, bound, figures.histogram({"validation": one, "test": other}, name, label, shares=True))


def _brief(name: str) -> str:
    """A class's name, cut where a drawing has no room for all of it."""
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def _unsure(probabilities: np.ndarray) -> float:
    return float(((probabilities >= _UNSURE[0]) & (probabilities <= _UNSURE[1])).mean())


def draw_board(found: Figures, class_names: tuple[str, str]) -> str:
    """Draws an expected log loss beside the Redux board; "" for classes that the board is not about."""
    if {name.lower() for name in class_names} != _BOARD_CLASSES:
        return ""
    told = "; ".join(f"{name} {value:g}" for name, value in BOARD)
    label = f"Expected log loss {found.log_loss:.4f}, {found.log_loss_low:.4f} to {found.log_loss_high:.4f}; {told}"
    return figures.board(list(BOARD), (found.log_loss, found.log_loss_low, found.log_loss_high), label)
