"""The report's JSON and text table, against ones that are written down here: what reads them must go on working."""

from __future__ import annotations

import json
from math import log

import numpy as np
import pyarrow as pa
import pytest
from helpers import saved_info

from catdog.data.catalog import Catalog
from catdog.evaluation import metrics
from catdog.evaluation.calibration import Applied
from catdog.inference import bundle
from catdog.inference.bundle import BundleInfo
from catdog.inference.provenance import Provenance
from catdog.reporting import render, report
from catdog.reporting.report import Report, Subject

# Of six images: the model was trained on the last, and the fifth could not be read.
LABELS = [0, 0, 1, 1, 0, 1]
WRITTEN = [0.2, 0.7, 0.6, 0.9, 0.5, 0.8]
TABLE = pa.table(
    {
        "key": [f"{number}.jpg" for number in range(6)],
        "label": pa.array(LABELS, pa.int8()),
        "logit": pa.array([log(p / (1 - p)) for p in WRITTEN], mask=np.array(WRITTEN) == 0.5),
        "probability": WRITTEN,
        "status": ["ok", "recovered", "ok", "ok", "unreadable", "ok"],
        "digest": pa.array(range(1, 7), pa.uint64()),
    }
)
COUNTS = {"ok": 4, "recovered": 1, "unreadable": 1}
LOSS = -(log(0.8) + log(0.3) + log(0.6) + log(0.9) + log(0.5)) / 5
FIGURES = {
    "n": 5,
    "log_loss": LOSS,
    "log_loss_low": metrics.loss_interval(np.array(LABELS[:5]), np.array(WRITTEN[:5]))[0],
    "log_loss_high": metrics.loss_interval(np.array(LABELS[:5]), np.array(WRITTEN[:5]))[1],
    "accuracy": 0.8,
    "roc_auc": 5 / 6,
    "brier_score": (0.2**2 + 0.7**2 + 0.4**2 + 0.1**2 + 0.5**2) / 5,
    "true_negative": 2,
    "false_positive": 1,
    "false_negative": 0,
    "true_positive": 2,
}


def model(data: Catalog) -> BundleInfo:
    crossed = {"log_loss_cross_searched": 0.25, "log_loss_cross_chosen": 0.125}
    return saved_info(data, chosen_on="validation", validation=crossed, class_names=("cat", "dog"))


def build(data: Catalog, splits: list[str], train: range = range(6, 7), known: bool = True) -> Report:
    provenance = Provenance(np.array(train, np.uint64), np.arange(1, 6, dtype=np.uint64), known)
    subject = Subject(model(data), provenance, data, Applied(1.0, 1e-6, "none"))
    return report.build_report(dict.fromkeys(splits, TABLE), dict.fromkeys(splits, COUNTS), subject)


def rest(data: Catalog) -> dict[str, object]:
    """The part of a section that does not depend on its images."""
    return {
        "unreadable": 1,
        "recovered": 1,
        "clip": 1e-6,
        "temperature": 1.0,
        "precision": "float32",
        "class_names": ["cat", "dog"],
        "positive_class": "dog",
        "bundle_fingerprint": bundle.fingerprint_of(model(data)),
        "catalog_fingerprint": data.fingerprint,
    }


def test_the_json_has_these_keys_in_this_order(drawn: Catalog) -> None:
    section = FIGURES | {
        "calibration": "none",
        "chosen_on": "these images",
        "log_loss_cross_chosen": 0.125,
        "log_loss_cross_searched": 0.25,
        "log_loss_as_written": LOSS,
        "log_loss_plain": LOSS,
        "trained_on": {"n": 1, "log_loss": -log(0.8), "accuracy": 1.0},
        **rest(drawn),
    }
    text = render.to_json(build(drawn, ["test", "valid"]))
    content = json.loads(text)
    assert list(content) == [*section, "test"]
    assert list(content["test"]) == list(section)
    test = content.pop("test")
    assert content == approximately(section)
    assert test == approximately(section)
    assert text == json.dumps(json.loads(text), indent=2) + "\n"
    assert "1.jpg" not in text


def approximately(section: dict[str, object]) -> dict[str, object]:
    """The same with each number up to its last digits."""
    found = {name: pytest.approx(value) if isinstance(value, float) else value for name, value in section.items()}
    return found | {"trained_on": pytest.approx(section["trained_on"])}


def test_the_json_of_a_split_that_is_not_judged_or_not_there(drawn: Catalog) -> None:
    all_seen = json.loads(render.to_json(build(drawn, ["valid"], range(1, 7))))
    assert list(all_seen) == ["n", "trained_on", *rest(drawn)]
    assert (all_seen["n"], all_seen["trained_on"]["n"]) == (0, 6)
    assert list(json.loads(render.to_json(build(drawn, ["test"])))) == ["test"]
    assert json.loads(render.to_json(build(drawn, ["valid"], range(0))))["trained_on"] == {"n": 0}
    assert json.loads(render.to_json(build(drawn, ["valid"], range(0), known=False)))["trained_on"] is None


def test_the_text_table(drawn: Catalog) -> None:
    [section] = build(drawn, ["valid"]).sections
    crossed = "where each half is judged by the {} that the other half chose"
    assert render.table_rows(section) == [
        ("images", "5"),
        ("left out", "1 of 6 images were trained on (log loss of them 0.2231)"),
        ("log loss", "0.5473  (95 % interval 0.2730 to 1.0858; wide, with so few mistakes to tell from: 1)"),
        ("accuracy", "0.8000"),
        ("ROC AUC", "0.8333"),
        ("Brier score", "0.1900"),
        ("unreadable", "1"),
        ("chosen on", f"these images; 0.1250 {crossed.format('epoch')}; 0.2500 {crossed.format('trial')}"),
        ("calibration", "none"),
        ("temperature", "1.0000"),
        ("clip", "1e-06"),
        ("precision", "float32"),
        ("label is the probability of", "dog"),
        ("cat: right / taken for dog", "2 / 1"),
        ("dog: right / taken for cat", "2 / 0"),
    ]


def test_a_section_has_a_row_for_each_image(drawn: Catalog) -> None:
    [section] = build(drawn, ["valid"]).sections
    assert section.images.column_names == ["key", "label", "logit", "probability", "status", "judged"]
    assert section.images.drop_columns("judged").equals(TABLE.drop_columns("digest"))
    assert section.images["judged"].to_pylist() == [*WRITTEN[:5], None]
    [all_seen] = build(drawn, ["valid"], range(1, 7)).sections
    assert all_seen.images["judged"].to_pylist() == [None] * 6
