"""The page of a training run, from the files that a finished run has."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import Outcome, save_untrained
from scipy import special
from sklearn import metrics as sklearn_metrics

from catdog import tables
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.inference.provenance import Provenance
from catdog.run_directory import RunDirectory
from catdog.training import page, train
from catdog.training.bundle_writer import training_record
from catdog.training.config import ResolvedConfig, resolve
from catdog.training.request import PLACE_FIELDS, TrainConfig


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
    tables.write_table(RunDirectory(run).valid, pa.table(columns))


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": 48, "learning_rate": 0.01, "augmentation": {"rotation": 5}, "ema": 0.9, "keep": "last"},
        {"augment": False, "name": "it's a name", "seed": 3, "views": ["identity", "mirror"]},
        {"arch": "mobilenet", "alpha": 0.25},
        {"arch": "mobilenet", "recipe": "best", "dropout": 0.3, "trainable_from": None},
        {"arch": "mobilenet", "recipe": "linear-probe", "freeze": True},
        {"recipe": "scratch", "balance": True, "mixup": 0.1},
    ],
)
def test_the_command_that_a_bundle_keeps_decides_the_same(
    options: dict[str, object], catdog: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve(TrainConfig(**({"data": "/data/a set", "name": "first"} | options)))
    record = training_record(config)
    assert record["options"] == config.options()
    decided = []

    def what(config: ResolvedConfig) -> dict[str, object]:
        return {name: value for name, value in config.options().items() if name not in PLACE_FIELDS}

    def stop(again: ResolvedConfig, _on_event: object) -> None:
        decided.append(what(again))
        raise CatdogError("seen")

    monkeypatch.setattr(train, "train_model", stop)
    done = catdog(*shlex.split(record["command"])[1:])
    assert done.err == "catdog: seen\n"
    assert decided == [what(config)]
