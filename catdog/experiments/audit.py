"""The label audit: probably wrong labels, photos that show neither class or both, and near-duplicates.

Labels are checked with out-of-fold predictions, from models that never saw the photo. Duplicates are found by
perceptual hashes over all splits, because a training photo that is also in validation or test makes figures too good.
The audit only lists and draws; `catdog train --leave-out` excludes listed keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catdog import spreadsheets, storage
from catdog.data import images, thumbnails
from catdog.data.catalog import Catalog
from catdog.errors import UsageError
from catdog.experiments import duplicates
from catdog.experiments.cross_validation import OutOfFold
from catdog.reporting import contact_sheet
from catdog.reporting.contact_sheet import Tile

COLUMNS = ("key", "split", "label", "issue", "score", "other", "leaks")
ISSUES = ("label", "ambiguous", "outlier", "duplicate")
# Nearest neighbours for outlier scores, and so the least number of photos.
_NEIGHBOURS = 10
_TILE = 160


@dataclass(frozen=True)
class Finding:
    """One line of the audit.

    Attributes:
        key: key of the image.
        split: its split.
        label: name of its class, or "".
        issue: "label" (probably wrong), "ambiguous" (both classes, or unclear), "outlier" (perhaps neither class) or
            "duplicate".
        score: for "label" the predicted probability of the given class, for "ambiguous" that of the likelier class, for
            "outlier" the similarity of its features to others (0 to 1), for "duplicate" the number of different bits.
        other: key of the duplicate, or "".
        leaks: whether the duplicates are in different splits.
    """

    key: str
    split: str
    label: str
    issue: str
    score: float
    other: str = ""
    leaks: bool = False


def audit_labels(
    data: Catalog, found: OutOfFold, features: tuple[np.ndarray, list[str]] | None = None, distance: int = 4
) -> list[Finding]:
    """Audits the labels of a data set.

    Args:
        data: the catalog.
        found: out-of-fold predictions of its labelled images.
        features: float32, M×D, and their M keys, to find outliers; None to skip outliers.
        distance: the most of the 64 bits of their perceptual hashes in which duplicates may differ.

    Returns:
        Findings by issue, the most severe first.

    Raises:
        UsageError: the predictions belong to another data set.
        CatdogError: hashing failed.
    """
    if found.catalog_fingerprint != data.fingerprint:
        raise UsageError(f"{found.name} has predictions of another data set than {data.root}; expected this one's")
    keys, splits, labels = (data.table[name] for name in ("key", "split", "label"))

    def finding(row: int, issue: str, score: float, other: int | None = None) -> Finding:
        key, split, label = (column[int(row)].as_py() for column in (keys, splits, labels))
        name, score = "" if label is None else data.class_names[label], round(float(score), 4)
        if other is None:
            return Finding(key, split, name, issue, score)
        return Finding(key, split, name, issue, score, keys[int(other)].as_py(), split != splits[int(other)].as_py())

    wrong, ambiguous = _label_issues(found)
    rows = _rows_of(found.keys, data)
    findings = [finding(rows[row], "label", score) for row, score in wrong]
    findings += [finding(rows[row], "ambiguous", score) for row, score in ambiguous]
    if features is not None and len(features[0]) > _NEIGHBOURS:
        rows = _rows_of(features[1], data)
        findings += [finding(rows[row], "outlier", score) for row, score in _outliers(features[0])]
    hashes, readable = duplicates.perceptual_hashes(data)
    for one, other, bits in duplicates.near_duplicates(hashes, distance).tolist():
        findings.append(finding(readable[one], "duplicate", bits, readable[other]))
    return findings


def _rows_of(keys: list[str], data: Catalog) -> np.ndarray:
    """The catalog's rows of keys: int, N."""
    return pc.index_in(pa.array(keys, pa.string()), data.table["key"]).to_numpy()


def _label_issues(found: OutOfFold) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Rows with probably wrong labels, by confident learning (Northcutt et al., 2021), and with unclear predictions."""
    from cleanlab.filter import find_label_issues

    probabilities = np.stack([1 - found.probabilities, found.probabilities], axis=1)
    wrong = find_label_issues(found.labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    known = set(wrong)
    given = probabilities[np.arange(len(found.labels)), found.labels]
    likelier = probabilities.max(axis=1)
    undecided = [row for row in np.argsort(likelier) if likelier[row] < 0.7 and row not in known]
    return [(int(row), given[row]) for row in wrong], [(int(row), likelier[row]) for row in undecided]


def _outliers(features: np.ndarray, share: float = 0.005) -> list[tuple[int, float]]:
    """Rows whose features are farthest from their nearest neighbours (Kuan and Mueller, 2022), and their scores."""
    from cleanlab.outlier import OutOfDistribution

    scores = OutOfDistribution({"k": _NEIGHBOURS}).fit_score(features=features, verbose=False)
    order = np.argsort(scores)[: max(1, int(share * len(scores)))]
    return [(int(row), scores[row]) for row in order]


def write_findings(findings: list[Finding], uri: str) -> None:
    """Writes the findings as CSV with the columns `COLUMNS`."""
    rows = [[getattr(finding, column) for column in COLUMNS] for finding in findings]
    storage.write_text(uri, spreadsheets.csv_text([COLUMNS, *rows]))


def draw_findings(findings: list[Finding], data: Catalog, uri: str, each: int = 20) -> None:
    """Draws the most severe findings of each issue as a PNG: rows of photos for each issue, duplicates side by side.

    Args:
        findings: from `audit_labels`.
        data: the catalog.
        uri: URI of the PNG.
        each: the most photos for each issue.
    """
    shown: list[list[Finding]] = []
    for issue in ISSUES:
        chosen = [finding for finding in findings if finding.issue == issue]
        shown.append(chosen[: each // 2 if issue == "duplicate" else each])
    keys = {key for chosen in shown for finding in chosen for key in (finding.key, finding.other)}
    drawn = data.table.filter(pc.is_in(data.table["key"], pa.array(keys, pa.string())))
    places = dict(zip(drawn["key"].to_pylist(), drawn["uri"].to_pylist(), strict=True))

    def tile(key: str, caption: str) -> Tile:
        found = images.fetch(places[key])
        pixels = None if isinstance(found, str) else thumbnails.thumbnail(found, _TILE)
        return Tile(pixels, [caption, key])

    rows: list[list[Tile]] = []
    for chosen in shown:
        tiles = []
        for finding in chosen:
            tiles.append(tile(finding.key, f"{finding.issue}: {finding.label or finding.split} {finding.score:g}"))
            if finding.other:
                tiles.append(tile(finding.other, "= in another split" if finding.leaks else "= in the same split"))
        rows += contact_sheet.in_rows(tiles, 10)
    storage.write_bytes(uri, contact_sheet.draw_sheet(rows, _TILE))
