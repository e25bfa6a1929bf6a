"""The report on predictions made here, without a cluster: what it judges a model by, and what it says of that."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import saved_info
from scipy import special
from sklearn import metrics as sklearn_metrics

from catdog.data import catalog
from catdog.data.catalog import Catalog
from catdog.evaluation import calibration, metrics
from catdog.evaluation.calibration import Applied
from catdog.inference.bundle import BundleInfo
from catdog.inference.provenance import Provenance
from catdog.reporting import render, report
from catdog.reporting.report import Choice, Judgement, Report, Section

COUNTS = {"ok": 400, "recovered": 0, "unreadable": 0}


def scored(count: int, clip: float = 1e-6) -> pa.Table:
    """A scored split as `actor.merge` gives it; image i has the digest i + 1."""
    random = np.random.default_rng(0)
    honest = random.normal(0, 3, count)
    logits = (1.8 * honest).astype(np.float32)
    return pa.table(
        {
            "key": [f"{number}.jpg" for number in range(count)],
            "label": pa.array((random.random(count) < special.expit(honest)).astype(int), pa.int8()),
            "logit": logits,
            "probability": metrics.calibrated(logits, 1.5, clip),
            "status": ["ok"] * count,
            "digest": pa.array(np.arange(1, count + 1), pa.uint64()),
        }
    )


@pytest.fixture
def info(drawn: Catalog) -> BundleInfo:
    return saved_info(drawn, calibration="validation", temperature=1.5)


def judge(
    info: BundleInfo,
    data: Catalog,
    table: pa.Table,
    train: range,
    valid: range,
    known: bool = True,
    split: str = "valid",
    applied: Applied | None = None,
) -> Section:
    provenance = Provenance(np.array(train, np.uint64), np.array(valid, np.uint64), known)
    applied = applied or Applied(info.temperature, info.clip, "own")
    content = report.build_report({split: table}, {split: COUNTS}, report.Subject(info, provenance, data, applied))
    [section] = content.sections
    assert section.split == split
    return section


def judgement(section: Section) -> Judgement:
    """The judgement of a section that has one."""
    assert section.judgement is not None
    return section.judgement


def other(data: Catalog) -> Catalog:
    """The same rows under another fingerprint."""
    return dataclasses.replace(data, options=data.options | {"content_sha256": "another"})


def test_images_that_were_trained_on_are_left_out_and_told(info: BundleInfo, drawn: Catalog) -> None:
    table = scored(400)
    section = judge(info, other(drawn), table, range(1, 301), range(9001, 9101))
    labels, written = table["label"].to_numpy(), table["probability"].to_numpy()
    figures, seen = judgement(section).figures, section.trained_on
    assert section.n == figures.n == 100
    assert figures.log_loss == pytest.approx(sklearn_metrics.log_loss(labels[300:], written[300:]))
    assert figures.accuracy == sklearn_metrics.accuracy_score(labels[300:], written[300:] > 0.5)
    assert seen is not None
    assert seen.n == 300
    assert seen.log_loss == pytest.approx(sklearn_metrics.log_loss(labels[:300], written[:300]))
    assert seen.accuracy == sklearn_metrics.accuracy_score(labels[:300], written[:300] > 0.5)
    assert judgement(section).calibration == "fitted on other photos"
    lines = dict(render.table_rows(section))
    assert lines["left out"].startswith("300 of 400 images were trained on (log loss of them 0.")
    assert lines["label is the probability of"] == section.positive_class == drawn.class_names[1]

    nothing = judge(info, other(drawn), table, range(1, 500), range(0))
    assert (nothing.n, nothing.judgement) == (0, None)
    assert nothing.trained_on is not None
    assert nothing.trained_on.n == 400
    assert "all 400 images were trained on" in dict(render.table_rows(nothing))["left out"]
    content = json.loads(render.to_json(Report(valid=nothing)))
    assert content["n"] == 0
    assert "log_loss" not in content


def test_only_images_that_calibrated_the_model_are_judged_cross_fitted(info: BundleInfo, drawn: Catalog) -> None:
    table = scored(400)
    labels, logits, written = (table[name].to_numpy() for name in ("label", "logit", "probability"))
    mixed = judge(info, other(drawn), table, range(0), range(1, 301))
    crossed = calibration.cross_fitted(labels[:300], logits[:300], calibration.halves(table["key"].to_pylist()[:300]))
    expected = sklearn_metrics.log_loss(labels, np.concatenate([crossed, written[300:]]))
    assert judgement(mixed).figures.log_loss == pytest.approx(expected)
    assert judgement(mixed).calibration == (
        "cross-fitted on halves for 300 of 400 images, fitted on other photos for the rest"
    )
    whole = judge(info, other(drawn), table, range(0), range(1, 401), split="test")
    assert judgement(whole).calibration == "cross-fitted on halves"
    few = judge(info, other(drawn), table, range(0), range(1, 4))
    assert judgement(few).calibration == "fitted on other photos, and on 3 of these 400"
    assert judgement(few).figures.log_loss == judgement(few).log_loss_as_written


def test_what_chose_is_told_and_what_it_is_worth_elsewhere(info: BundleInfo, drawn: Catalog) -> None:
    table = scored(400)
    chosen = info.model_copy(update={"chosen_on": "validation", "validation": {"log_loss_cross_chosen": 0.4321}})
    section = judge(chosen, other(drawn), table, range(0), range(1, 401))
    assert judgement(section).choice == Choice("these images", 0.4321, None)
    said = dict(render.table_rows(section))["chosen on"]
    assert said == "these images; 0.4321 where each half is judged by the epoch that the other half chose"
    part = judge(chosen, other(drawn), table, range(0), range(1, 101))
    assert judgement(part).choice == Choice("100 of these 400 images", None, None)
    elsewhere = judge(chosen, other(drawn), table, range(0), range(500, 600))
    assert judgement(elsewhere).choice.chosen_on == "other photos"
    nothing = judge(info, other(drawn), table, range(0), range(1, 401))
    assert judgement(nothing).choice.chosen_on == "nothing"
    old = judge(chosen, other(drawn), table, range(0), range(0), known=False)
    assert judgement(old).choice.chosen_on == "photos that are not known; these may be among them"


def test_several_models_are_judged_by_what_is_written(info: BundleInfo, drawn: Catalog) -> None:
    table = scored(400)
    everything = Applied(1.5, 1e-6, "refitted", table["digest"])
    valid = judge(info, other(drawn), table, range(0), range(0), applied=everything)
    assert judgement(valid).calibration == "cross-fitted on halves"
    assert judgement(valid).figures.log_loss != judgement(valid).log_loss_as_written
    other_half = Applied(1.5, 1e-6, "refitted", table["digest"][200:])
    test = judge(info, other(drawn), table[:200], range(0), range(1, 100), split="test", applied=other_half)
    assert judgement(test).calibration == "fitted on other photos"
    assert judgement(test).figures.log_loss == judgement(test).log_loss_as_written
    # Halves would be judged by a fit to the mean of the logits, and it is not that which is written.
    mean = judge(info, other(drawn), table, range(0), range(1, 401), applied=Applied(1.5, 1e-6, "mean"))
    assert judgement(mean).calibration == "the mean of the models' own, fitted on these images"
    assert judgement(mean).figures.log_loss == judgement(mean).log_loss_as_written


@pytest.mark.parametrize("unknown", ["model", "data"])
def test_without_digests_the_catalogs_fingerprint_decides(info: BundleInfo, drawn: Catalog, unknown: str) -> None:
    table = scored(400)
    if unknown == "data":
        table = table.set_column(5, "digest", pa.nulls(400, pa.uint64()))
    valid = range(9001, 9101) if unknown == "data" else range(0)
    known = unknown == "data"
    same = judge(info, drawn, table, range(0), valid, known)
    assert judgement(same).calibration == "cross-fitted on halves"
    assert same.n == 400
    test = judge(info, drawn, table, range(0), valid, known, "test")
    assert judgement(test).calibration == "fitted on the validation split"
    elsewhere = judge(info, other(drawn), table, range(0), valid, known)
    assert judgement(elsewhere).calibration == "fitted on photos that are not known; these may be among them"
    assert elsewhere.trained_on is None
    assert "not known" in dict(render.table_rows(elsewhere))["trained on"]
    # What is known of some images is used, though it is not all.
    part = judge(info, other(drawn), scored(400), range(1, 101), range(0), known=False)
    assert part.n == 300
    assert part.trained_on is not None
    assert part.trained_on.n == 100


def test_digests_come_from_the_catalog_and_survive_the_file(drawn: Catalog) -> None:
    made = Provenance.of(drawn.split("train"), drawn.split("valid"))
    again = Provenance.from_bytes(made.to_bytes(), known=True)
    for split in ("train", "valid"):
        expected = sorted({catalog.digest_of(Path(uri).read_bytes()) for uri in drawn.split(split)["uri"].to_pylist()})
        assert getattr(again, split).tolist() == expected
    assert again.trained_on(drawn.split("train")["digest"]).all()
    assert not again.trained_on(drawn.split("valid")["digest"]).any()
    both = Provenance.union([again, Provenance(np.array([5], np.uint64))])
    assert len(both.train) == len(again.train) + 1
    assert not both.known
    assert not made.trained_on(pa.chunked_array([pa.nulls(3, pa.uint64())])).any()
