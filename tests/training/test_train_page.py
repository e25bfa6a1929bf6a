"""The page of a training run, from the files that a finished run has."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import save_untrained
from scipy import special
from sklearn import metrics as sklearn_metrics

from catdog import storage
from catdog.data.catalog import Catalog
from catdog.errors import UsageError
from catdog.inference.provenance import Provenance
from catdog.run_directory import RunDirectory
from catdog.training import page


@pytest.fixture
def run(drawn: Catalog, tmp_path: Path) -> str:
    """A run with a bundle, whose validation logits a test is to write."""
    uri = str(tmp_path / "first")
    history = [{"loss": 0.7, "valid_log_loss": 0.6, "valid_accuracy": 0.5}] * 3
    provenance = Provenance.of(drawn.split("train"), drawn.split("valid"))
    training = {"history": history, "options": {}}
    save_untrained(RunDirectory(uri).model, drawn, provenance=provenance, training=training, validation={"epoch": 3})
    return uri


def write_logits(run: str, rows: pa.Table, logits: np.ndarray, **more: object) -> None:
    columns = {"key": rows["key"], "label": rows["label"], "logit": logits} | more
    storage.write_table(RunDirectory(run).valid, pa.table(columns))


def test_it_has_curves_and_what_validation_says(drawn: Catalog, run: str) -> None:
    rows = drawn.split("valid")
    logits = np.random.default_rng(0).normal(0, 2, len(rows))
    details = ["is <empty>"] + [""] * (len(rows) - 1)
    write_logits(run, rows, logits, detail=details)
    written = page.write_train_page(run, drawn.root)
    assert written == f"{run}/report.html"
    text = Path(written).read_text()
    probabilities = np.append(0.5, special.expit(logits[1:]))
    expected = sklearn_metrics.log_loss(rows["label"].to_numpy(), probabilities)
    assert re.search(rf"<strong>log loss is\s{expected:.4f}</strong>", text)
    assert "3 epochs; the weights after epoch 3 are kept" in text
    assert "is &lt;empty&gt;" in text
    assert "drawn by the program" in text
    assert "What Kaggle may say" not in text
    assert Path(page.write_train_page(run, drawn.root)).read_text() == text

    # A run from before details were kept.
    write_logits(run, rows, logits)
    text = Path(page.write_train_page(run, drawn.root)).read_text()
    expected = sklearn_metrics.log_loss(rows["label"].to_numpy(), special.expit(logits))
    assert re.search(rf"<strong>log loss is\s{expected:.4f}</strong>", text)


def test_without_logits_of_these_images_it_says_so(drawn: Catalog, run: str) -> None:
    for prepare in (lambda: None, lambda: write_logits(run, drawn.split("train"), np.zeros(73))):
        prepare()
        text = Path(page.write_train_page(run, drawn.root)).read_text()
        assert "nothing says how good these predictions are" in text
        assert "3 epochs" in text
    shutil.rmtree(RunDirectory(run).model)
    with pytest.raises(UsageError, match="which holds no bundle.json"):
        page.write_train_page(run, drawn.root)
