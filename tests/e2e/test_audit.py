"""The audit finds what was planted: turned labels, a photo of nothing, copies in another split; then draws it."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from catdog import cluster
from catdog.data import catalog, datasets
from catdog.data.catalog import Catalog
from catdog.errors import UsageError
from catdog.experiments import audit
from catdog.experiments.cross_validation import OutOfFold


@pytest.fixture(scope="module")
def planted(drawn: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The drawn set, with one training photo in validation and test again, a little smaller and saved anew."""
    source = tmp_path_factory.mktemp("source") / "set"
    data = catalog.read_catalog(drawn.root)
    for split in ("train", "test"):
        shutil.copytree(Path(drawn.root) / split, source / split)
    places = {
        split: source / Path(data.split(split)["uri"][0].as_py()).relative_to(drawn.root) for split in catalog.SPLITS
    }
    with Image.open(places["train"]) as image:
        copy = image.resize((image.width * 9 // 10, image.height * 9 // 10))
    for split in ("valid", "test"):
        copy.save(places[split], "JPEG")
    return datasets.prepare_dataset(str(source), str(source.parent / "prepared"), 0.25, 0)


@pytest.mark.usefixtures("two_cpus")
def test_what_was_planted_is_found(planted: Catalog, tmp_path: Path) -> None:
    rows = planted.table.filter(pc.is_valid(planted.table["label"]))
    keys, labels = rows["key"].to_pylist(), rows["label"].to_numpy().astype(np.int64)
    random = np.random.default_rng(0)
    logits = np.where(labels == 1, 1, -1) * random.uniform(2, 6, len(labels))
    wrong, unsure = [3, 50], 20
    logits[wrong] = np.where(labels[wrong] == 1, -5, 5)  # of which the model is certain
    logits[unsure] = 0.1
    found = OutOfFold("oof", keys, labels, np.arange(len(keys)) % 3 + 1, logits, 0.0, "", planted.fingerprint)
    features = random.normal(0, 1, (len(keys), 8)).astype(np.float32) + np.where(labels == 1, 4, -4)[:, None]
    features[33] = 40.0 * (-1.0) ** np.arange(8)  # another direction than either class has
    with cluster.connect():
        findings = audit.audit_labels(planted, found, (features, keys), distance=6)
    by_issue = {issue: [finding for finding in findings if finding.issue == issue] for issue in audit.ISSUES}
    assert {finding.key for finding in by_issue["label"]} == {keys[row] for row in wrong}
    assert keys[unsure] in [finding.key for finding in by_issue["ambiguous"]]
    assert by_issue["outlier"][0].key == keys[33]
    leaks = [finding for finding in by_issue["duplicate"] if finding.leaks]
    assert {frozenset((one.split, split_of(planted, one.other))) for one in leaks} >= {frozenset(("train", "valid"))}

    audit.write_findings(findings, str(tmp_path / "a.csv"))
    lines = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert len(lines) == len(findings)
    assert lines[0]["issue"] == "label"
    assert lines[0]["label"] in planted.class_names
    audit.draw_findings(findings, planted, str(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as sheet:
        assert np.asarray(sheet).std() > 20


def split_of(data: Catalog, key: str) -> str:
    return data.table["split"][data.table["key"].to_pylist().index(key)].as_py()


def test_predictions_of_another_set_are_refused(drawn: Catalog) -> None:
    found = OutOfFold("cv", ["cat.777.jpg"], np.array([0]), np.array([1]), np.array([0.0]), 0.0, "", "another")
    with pytest.raises(UsageError, match="cv has predictions of another data set than .*; expected this one's"):
        audit.audit_labels(drawn, found)
