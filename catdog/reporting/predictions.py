"""Predictions of single photos for people and scripts: a row each, as JSON and as CSV."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from catdog import spreadsheets
from catdog.inference.imagenet import Likeliest
from catdog.inference.predictor import Predictions

# Below it, the likelier class is said to be a guess.
UNSURE_BELOW = 0.75


@dataclass(frozen=True)
class PhotoRow:
    """What is said of one photo.

    Attributes:
        file: its name.
        class_name: the likelier class; None for an unreadable photo.
        probability: of that class, calibrated and clipped; None likewise.
        probabilities: of both classes by name, or of ImageNet's likeliest, the likeliest first; empty likewise.
        logit: plain logit of the second class, before temperature and clip; None likewise, and of ImageNet.
        status: "ok", "recovered" or "unreadable".
        remarks: what is odd about the file, and whether the class is a guess; often none.
        novelty: as of `novelty.NoveltyScorer.scores`; None where it is not known.
    """

    file: str
    class_name: str | None
    probability: float | None
    probabilities: dict[str, float]
    logit: float | None
    status: str
    remarks: list[str]
    novelty: float | None = None


def photo_rows(
    files: list[str], found: Predictions, class_names: tuple[str, str], novelty: np.ndarray | None = None
) -> list[PhotoRow]:
    """Says what was predicted of each photo.

    Args:
        files: N names.
        found: predictions of these N photos.
        class_names: of labels 0 and 1.
        novelty: float, N: from `novelty.NoveltyScorer`; None where it is not known.
    """
    rows = []
    for at, file in enumerate(files):
        status, remarks = found.statuses[at], [found.details[at]] if found.details[at] else []
        if status == "unreadable":
            rows.append(PhotoRow(file, None, None, {}, None, status, remarks))
            continue
        second = float(found.probabilities[at])
        probabilities = dict(zip(class_names, (1 - second, second), strict=True))
        label = int(second >= 0.5)
        probability = probabilities[class_names[label]]
        if probability < UNSURE_BELOW:
            remarks.append("unsure")
        score = None if novelty is None else float(novelty[at])
        if score is not None and score > 1:
            remarks.append(f"perhaps neither {class_names[0]} nor {class_names[1]}")
        logit = float(found.logits[at])
        rows.append(PhotoRow(file, class_names[label], probability, probabilities, logit, status, remarks, score))
    return rows


def likeliest_rows(files: list[str], found: list[Likeliest]) -> list[PhotoRow]:
    """Says which of ImageNet's classes are the likeliest of each photo.

    Args:
        files: N names.
        found: of these N photos.
    """
    rows = []
    for file, (probabilities, status, detail) in zip(files, found, strict=True):
        first = next(iter(probabilities), None)
        probability = None if first is None else probabilities[first]
        rows.append(PhotoRow(file, first, probability, probabilities, None, status, [detail] if detail else []))
    return rows


def rows_to_json(rows: list[PhotoRow], models: list[str], skipped: list[tuple[str, str]]) -> str:
    """Writes predictions as a JSON object.

    Args:
        rows: of the photos.
        models: URIs of the models that predicted them.
        skipped: name and reason of each file that was not taken for a photo.
    """
    content = {
        "models": models,
        "predictions": [
            {
                "file": row.file,
                "class": row.class_name,
                "probability": row.probability,
                "probabilities": row.probabilities,
                "logit": row.logit,
                "novelty": row.novelty,
                "status": row.status,
                "remarks": row.remarks,
            }
            for row in rows
        ],
        "skipped": [{"file": file, "reason": reason} for file, reason in skipped],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def rows_to_csv(rows: list[PhotoRow]) -> str:
    """Writes predictions as CSV, a line for each photo.

    Its columns are file, class and its probability, status and remarks; between them the probability of each of two
    classes, or the next of ImageNet's likeliest classes.
    """
    known = next((row.probabilities for row in rows if row.probabilities), {})
    if len(known) > 2:
        others = [f"{what}_{rank}" for rank in range(2, len(known) + 1) for what in ("class", "probability")]
    else:
        others = [f"probability_{name}" for name in known]
    lines: list[list[str | float]] = [["file", "class", "probability", *others, "status", "remarks"]]
    for row in rows:
        each: list[str | float] = [""] * len(others)
        if len(row.probabilities) > 2:
            each = [value for pair in list(row.probabilities.items())[1:] for value in pair]
        elif row.probabilities:
            each = [row.probabilities[name] for name in known]
        said = ["" if value is None else value for value in (row.class_name, row.probability)]
        lines.append([row.file, *said, *each, row.status, "; ".join(row.remarks)])
    return spreadsheets.csv_text(lines)
