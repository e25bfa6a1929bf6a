"""The validation report: how good the model is on labelled photos it has not seen, as JSON and as a text table."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from catdog import bundle, calibration, metrics
from catdog.bundle import BundleInfo
from catdog.catalog import Catalog

_CALIBRATIONS = {"none": "none", "validation": "fitted on other photos"}
# With fewer the interval of a log loss is mostly what `metrics.loss_interval` reckons with beyond what was seen.
_FEW_MISTAKES = 5
_LABELS = {
    "n": "images",
    "log_loss": "log loss",
    "accuracy": "accuracy",
    "roc_auc": "ROC AUC",
    "brier_score": "Brier score",
    "unreadable": "unreadable",
    "calibration": "calibration",
    "temperature": "temperature",
    "clip": "clip",
}


def build(
    tables: dict[str, pa.Table], counts: dict[str, dict[str, int]], info: BundleInfo, data: Catalog
) -> dict[str, Any]:
    """Judges the scored splits that have labels.

    Args:
        tables: by split, columns key, label, logit and probability of each image.
        counts: by split, images by status.
        info: of the bundle that scored.
        data: the catalog that was scored.

    Returns:
        Validation's figures at the top, flat, and a labelled test split's, alike, under "test"; an unreadable image
        counts with what it would get in a submission.
    """
    sections = {split: _section(split, table, counts[split], info, data) for split, table in tables.items()}
    content: dict[str, Any] = sections.pop("valid", {})
    return content | sections


def to_json(content: dict[str, Any]) -> str:
    """Renders a report as JSON text; what is not a number there is null."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def rows(section: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the text table: what, and its figure.

    Args:
        section: the top of a report, or a part of it that is alike.
    """
    lines = []
    for key, label in _LABELS.items():
        value = section[key]
        text = f"{value:.3g}" if key == "clip" else f"{value:.4f}" if isinstance(value, float) else str(value)
        if key == "log_loss":
            mistakes = section["false_positive"] + section["false_negative"]
            wide = f"; wide, since there are only {mistakes} mistakes to tell from" if mistakes < _FEW_MISTAKES else ""
            text += f"  (95 % interval {section['log_loss_low']:.4f} to {section['log_loss_high']:.4f}{wide})"
        lines.append((label, text))
    first, second = section["class_names"]
    lines.append((f"{first}: right / taken for {second}", f"{section['true_negative']} / {section['false_positive']}"))
    lines.append((f"{second}: right / taken for {first}", f"{section['true_positive']} / {section['false_negative']}"))
    return lines


def _section(split: str, table: pa.Table, counts: dict[str, int], info: BundleInfo, data: Catalog) -> dict[str, Any]:
    labels = table["label"].to_numpy()
    prior_logit = np.log(info.prior / (1 - info.prior))
    logits = table["logit"].fill_null(float(prior_logit)).to_numpy()
    probabilities = table["probability"].to_numpy()
    own = data.fingerprint in info.catalog_fingerprint.split("+")
    cross_fit = split == "valid" and info.calibration == "validation" and own
    if cross_fit:
        # Temperature and clip were fitted on these very photos: judged here is what each half does for the other.
        known = table["logit"].is_valid().to_numpy()
        halves = calibration.halves(table["key"].to_pylist())
        probabilities = probabilities.copy()
        probabilities[known] = calibration.cross_fitted(labels[known], logits[known], halves[known])
    return {
        **metrics.summarise(labels, probabilities),
        "calibration": "cross-fitted on halves" if cross_fit else _CALIBRATIONS[info.calibration],
        # With the very probabilities that were written, whatever they were fitted on.
        "log_loss_as_written": float(metrics.losses(labels, table["probability"].to_numpy()).mean()),
        # Before temperature and clip: what the training loop reports too, so that the two can be compared.
        "log_loss_plain": float(metrics.losses_from_logits(labels, logits).mean()),
        "unreadable": counts["unreadable"],
        "recovered": counts["recovered"],
        "clip": info.clip,
        "temperature": info.temperature,
        "class_names": list(info.class_names),
        "bundle_fingerprint": bundle.fingerprint(info),
        "catalog_fingerprint": data.fingerprint,
    }
