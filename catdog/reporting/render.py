"""A report as JSON and as the rows of a text table."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from catdog.reporting.report import Choice, Judgement, LeftOut, Report, Section

# With fewer the interval of a log loss is mostly what `metrics.loss_interval` reckons with beyond what was seen.
_FEW_MISTAKES = 5


def to_json(report: Report) -> str:
    """Renders a report as the text of `results.report.json`."""
    return json.dumps(json_content(report), indent=2, allow_nan=False) + "\n"


def json_content(report: Report) -> dict[str, Any]:
    """Content of `results.report.json`.

    Returns:
        Validation's figures at the top, flat, and the test split's, alike, under "test". Of a very large split they are
        of a sample, and `sampled_from` is the number of its images. A split of which the model was
        trained on every image has `n` 0 and no figures. What is not a number is None.
    """
    content = _section_content(report.valid) if report.valid else {}
    return content | ({"test": _section_content(report.test)} if report.test else {})


def _section_content(section: Section) -> dict[str, Any]:
    return {
        **(_judgement_content(section.judgement) if section.judgement else {"n": 0}),
        **({"sampled_from": section.split_n} if section.is_sampled else {}),
        "trained_on": _without_none(dataclasses.asdict(section.trained_on)) if section.trained_on else None,
        "unreadable": section.unreadable,
        "recovered": section.recovered,
        "clip": section.clip,
        "temperature": section.temperature,
        "precision": section.precision,
        "class_names": list(section.class_names),
        "positive_class": section.positive_class,
        "bundle_fingerprint": section.bundle_fingerprint,
        "catalog_fingerprint": section.catalog_fingerprint,
    }


def _judgement_content(judgement: Judgement) -> dict[str, Any]:
    return {
        **judgement.figures.as_dict(),
        "calibration": judgement.calibration,
        **_without_none(dataclasses.asdict(judgement.choice)),
        "log_loss_as_written": judgement.log_loss_as_written,
        "log_loss_plain": judgement.log_loss_plain,
    }


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def table_rows(section: Section) -> list[tuple[str, str]]:
    """Rows of a section's text table: a name, and its figure in words.

    Args:
        section: of a report.
    """
    sampled = f", of a sample of {len(section.images)} of {section.split_n}" if section.is_sampled else ""
    rows = [("images", f"{section.n}{sampled}"), *_left_out_rows(section.trained_on, section.n)]
    if section.judgement:
        rows += _figure_rows(section.judgement)
    rows.append(("unreadable", str(section.unreadable)))
    if section.judgement:
        rows.append(("chosen on", _choice_text(section.judgement.choice)))
        rows.append(("calibration", section.judgement.calibration))
    rows.append(("temperature", f"{section.temperature:.4f}"))
    rows.append(("clip", f"{section.clip:.3g}"))
    rows.append(("precision", section.precision))
    rows.append(("label is the probability of", section.positive_class))
    if section.judgement:
        rows += _confusion_rows(section.judgement, section.class_names)
    return rows


def _left_out_rows(seen: LeftOut | None, count: int) -> list[tuple[str, str]]:
    if seen is None:
        return [("trained on", "not known: the model or the data set is from before images had digests")]
    if not seen.n:
        return []
    which = f"{seen.n} of {seen.n + count} images were" if count else f"all {seen.n} images were"
    nothing = "" if count else "; nothing is left to judge the model by"
    return [("left out", f"{which} trained on (log loss of them {seen.log_loss:.4f}){nothing}")]


def _figure_rows(judgement: Judgement) -> list[tuple[str, str]]:
    figures = judgement.figures
    mistakes = figures.false_positive + figures.false_negative
    wide = f"; wide, with so few mistakes to tell from: {mistakes}" if mistakes < _FEW_MISTAKES else ""
    interval = f"95 % interval {figures.log_loss_low:.4f} to {figures.log_loss_high:.4f}{wide}"
    return [
        ("log loss", f"{figures.log_loss:.4f}  ({interval})"),
        ("accuracy", f"{figures.accuracy:.4f}"),
        ("ROC AUC", str(None) if figures.roc_auc is None else f"{figures.roc_auc:.4f}"),
        ("Brier score", f"{figures.brier_score:.4f}"),
    ]


def _choice_text(choice: Choice) -> str:
    crossed = {"epoch": choice.log_loss_cross_chosen, "trial": choice.log_loss_cross_searched}
    return choice.chosen_on + "".join(
        f"; {value:.4f} where each half is judged by the {what} that the other half chose"
        for what, value in crossed.items()
        if value is not None
    )


def _confusion_rows(judgement: Judgement, class_names: tuple[str, str]) -> list[tuple[str, str]]:
    figures, (first, second) = judgement.figures, class_names
    return [
        (f"{first}: right / taken for {second}", f"{figures.true_negative} / {figures.false_positive}"),
        (f"{second}: right / taken for {first}", f"{figures.true_positive} / {figures.false_negative}"),
    ]
