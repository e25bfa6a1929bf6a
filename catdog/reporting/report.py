"""The validation report: how good the model is on labelled photos it has not seen, as JSON and as a text table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from catdog.data.catalog import Catalog
from catdog.evaluation import calibration, metrics
from catdog.evaluation.calibration import Applied
from catdog.inference import bundle, provenance
from catdog.inference.bundle import BundleInfo
from catdog.inference.provenance import Provenance

# With fewer the interval of a log loss is mostly what `metrics.loss_interval` reckons with beyond what was seen.
_FEW_MISTAKES = 5
_CROSS_CHOSEN = {"log_loss_cross_chosen": "epoch", "log_loss_cross_searched": "trial"}
_LABELS = {
    "n": "images",
    "log_loss": "log loss",
    "accuracy": "accuracy",
    "roc_auc": "ROC AUC",
    "brier_score": "Brier score",
    "unreadable": "unreadable",
    "chosen_on": "chosen on",
    "calibration": "calibration",
    "temperature": "temperature",
    "clip": "clip",
}


@dataclass(frozen=True)
class Subject:
    """What is judged: a model on a data set.

    Attributes:
        info: of the bundle, or of several as one.
        provenance: the images that made it.
        data: the catalog that was scored.
        applied: the temperature and the clip of the probabilities.
    """

    info: BundleInfo
    provenance: Provenance
    data: Catalog
    applied: Applied

    @property
    def is_own_set(self) -> bool:
        """The model was trained on this very data set."""
        return self.data.fingerprint in self.info.catalog_fingerprint.split("+")

    def known(self, table: pa.Table) -> bool:
        """Tells whether it is known of a split's images which of them made the model."""
        return self.provenance.known and table["digest"].null_count < len(table)

    def calibrated_on(self, split: str, table: pa.Table) -> np.ndarray:
        """Tells of each image whether temperature and clip were fitted to it: bool, N.

        As for `chosen_on`.
        """
        if self.applied.origin == "none":
            return np.zeros(len(table), bool)
        if self.applied.digests is not None:
            known = self.applied.digests.drop_null().to_numpy()
            return np.full(len(table), split == "valid") | provenance.among(table["digest"], known)
        return self._own(split, table)

    def chosen_on(self, split: str, table: pa.Table) -> np.ndarray:
        """Tells of each image whether it chose the model, or its epoch: bool, N.

        Where digests are unknown, the validation split of the data set that the model was trained on is taken for it.
        """
        return self._own(split, table) if self.info.chosen_on == "validation" else np.zeros(len(table), bool)

    def _own(self, split: str, table: pa.Table) -> np.ndarray:
        if self.known(table):
            return self.provenance.chosen_on(table["digest"])
        return np.full(len(table), split == "valid" and self.is_own_set)


def build_report(tables: dict[str, pa.Table], counts: dict[str, dict[str, int]], subject: Subject) -> dict[str, Any]:
    """Judges the scored splits that have labels, each without the images that the model was trained on.

    Args:
        tables: by split, columns key, label, logit, probability and digest of each image.
        counts: by split, images by status.
        subject: what is judged.

    Returns:
        Validation's figures at the top, flat, and a labelled test split's, alike, under "test"; an unreadable image
        counts with what it would get in a submission. A split of which the model was trained on every image has `n` 0
        and no figures.
    """
    sections = {split: _section(split, table, counts[split], subject) for split, table in tables.items()}
    content: dict[str, Any] = sections.pop("valid", {})
    return content | sections


def to_json(content: dict[str, Any]) -> str:
    """Renders a report as JSON text; what is not a number there is null."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def table_rows(section: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the text table: what, and its figure.

    Args:
        section: the top of a report, or a part of it that is alike.
    """
    lines = []
    for key, label in _LABELS.items():
        if key not in section:
            continue
        value = section[key]
        text = f"{value:.3g}" if key == "clip" else f"{value:.4f}" if isinstance(value, float) else str(value)
        if key == "log_loss":
            mistakes = section["false_positive"] + section["false_negative"]
            wide = f"; wide, with so few mistakes to tell from: {mistakes}" if mistakes < _FEW_MISTAKES else ""
            text += f"  (95 % interval {section['log_loss_low']:.4f} to {section['log_loss_high']:.4f}{wide})"
        if key == "chosen_on":
            text += "".join(
                f"; {section[name]:.4f} where each half is judged by the {what} that the other half chose"
                for name, what in _CROSS_CHOSEN.items()
                if name in section
            )
        lines.append((label, text))
        if key == "n":
            lines += _training_images(section)
    lines.append(("label is the probability of", section["positive_class"]))
    if section["n"]:
        first, second = section["class_names"]
        right = f"{section['true_negative']} / {section['false_positive']}"
        lines.append((f"{first}: right / taken for {second}", right))
        right = f"{section['true_positive']} / {section['false_negative']}"
        lines.append((f"{second}: right / taken for {first}", right))
    return lines


def _training_images(section: dict[str, Any]) -> list[tuple[str, str]]:
    seen, count = section["trained_on"], section["n"]
    if seen is None:
        return [("trained on", "not known: the model or the data set is from before images had digests")]
    if not seen["n"]:
        return []
    which = f"all {seen['n']} images were" if not count else f"{seen['n']} of {seen['n'] + count} images were"
    nothing = "; nothing is left to judge the model by" if not count else ""
    return [("left out", f"{which} trained on (log loss of them {seen['log_loss']:.4f}){nothing}")]


def _section(split: str, table: pa.Table, counts: dict[str, int], subject: Subject) -> dict[str, Any]:
    info = subject.info
    trained_on = subject.provenance.trained_on(table["digest"])
    seen, rest = table.filter(pa.array(trained_on)), table.filter(pa.array(~trained_on))
    return {
        **_judge(split, rest, subject),
        "trained_on": _left_out(seen) if subject.known(table) or len(seen) else None,
        "unreadable": counts["unreadable"],
        "recovered": counts["recovered"],
        "clip": subject.applied.clip,
        "temperature": subject.applied.temperature,
        "class_names": list(info.class_names),
        "positive_class": info.class_names[1],
        "bundle_fingerprint": bundle.fingerprint_of(info),
        "catalog_fingerprint": subject.data.fingerprint,
    }


def _left_out(seen: pa.Table) -> dict[str, Any]:
    """What images that the model was trained on would have come to."""
    if not len(seen):
        return {"n": 0}
    labels, probabilities = seen["label"].to_numpy(), seen["probability"].to_numpy()
    return {
        "n": len(seen),
        "log_loss": float(metrics.losses(labels, probabilities).mean()),
        "accuracy": float(((probabilities > 0.5) == (labels == 1)).mean()),
    }


def _judge(split: str, table: pa.Table, subject: Subject) -> dict[str, Any]:
    """The figures of images that the model was not trained on."""
    if not len(table):
        return {"n": 0}
    info = subject.info
    labels, written = table["label"].to_numpy(), table["probability"].to_numpy()
    logits = table["logit"].fill_null(float(np.log(info.prior / (1 - info.prior)))).to_numpy()
    own = subject.calibrated_on(split, table)
    probabilities = written
    if _is_cross_fitted(own, subject):
        # Temperature and clip were fitted on these very photos: judged here is what each half does for the other.
        readable = own & table["logit"].is_valid().to_numpy()
        halves = np.zeros(len(table), np.int64)
        halves[own] = calibration.halves(table["key"].filter(pa.array(own)).to_pylist())
        probabilities = written.copy()
        probabilities[readable] = calibration.cross_fitted(labels[readable], logits[readable], halves[readable])
    return {
        **metrics.summarise(labels, probabilities).as_dict(),
        "calibration": _calibration(split, table, own, subject),
        **_choice(split, table, subject),
        # With the very probabilities that were written, whatever they were fitted on.
        "log_loss_as_written": float(metrics.losses(labels, written).mean()),
        # Before temperature and clip: what the training loop reports too, so that the two can be compared.
        "log_loss_plain": float(metrics.losses_from_logits(labels, logits).mean()),
    }


def _choice(split: str, table: pa.Table, subject: Subject) -> dict[str, Any]:
    """Says what chose the model, and what it is worth where that did not judge it."""
    info = subject.info
    if info.chosen_on == "none":
        return {"chosen_on": "nothing"}
    count = int(subject.chosen_on(split, table).sum())
    if count == len(table):
        names = [name for name in _CROSS_CHOSEN if name in info.validation]
        return {"chosen_on": "these images"} | {name: info.validation[name] for name in names}
    if count:
        return {"chosen_on": f"{count} of these {len(table)} images"}
    if subject.known(table) or (subject.is_own_set and split != "valid"):
        return {"chosen_on": "other photos"}
    return {"chosen_on": "photos that are not known; these may be among them"}


def _is_cross_fitted(own: np.ndarray, subject: Subject) -> bool:
    # Halves fit something to the mean of several models' logits, which is not what was written if that is a mean.
    return own.sum() >= calibration.MIN_IMAGES and subject.applied.origin != "mean"


def _calibration(split: str, table: pa.Table, own: np.ndarray, subject: Subject) -> str:
    """Says what the judged probabilities were fitted on."""
    count, origin = int(own.sum()), subject.applied.origin
    if origin == "none":
        return "none"
    crossed = _is_cross_fitted(own, subject)
    if count == len(own):
        several = "the mean of the models' own, " if origin == "mean" else ""
        return "cross-fitted on halves" if crossed else f"{several}fitted on these images"
    if crossed:
        return f"cross-fitted on halves for {count} of {len(own)} images, fitted on other photos for the rest"
    if count:
        return f"fitted on other photos, and on {count} of these {len(own)}"
    if subject.known(table):
        return "fitted on other photos"
    if split != "valid" and (subject.is_own_set or origin == "refitted"):
        return "fitted on the validation split"
    return "fitted on photos that are not known; these may be among them"
