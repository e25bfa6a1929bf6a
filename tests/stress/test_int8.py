"""The int8 version of a model from end to end: made by training, and what scoring takes when it is allowed to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Outcome

from catdog.data.catalog import Catalog
from catdog.inference import quantised_bundle
from catdog.inference.predictor import Predictor
from catdog.scoring import results


@pytest.mark.usefixtures("two_cpus")
def test_training_makes_it_and_scoring_takes_it_where_it_may(
    catdog: Callable[..., Outcome], drawn: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised_bundle, "MOST_CHANGE", 0.1)
    small = ("--arch", "small_resnet", "--image-size", 32, "--epochs", 1, "--name", "r", "--runs", tmp_path)
    trained = catdog("train", "--data", drawn.root, *small, "--set", "int8=true")
    assert trained.code == 0, trained.err
    assert f"int8: kept in {tmp_path}/r/model-int8: log loss " in trained.out
    assert "small_resnet 32 + int8" in catdog("runs", "--runs", tmp_path).out
    uris = dict(zip(drawn.table["key"].to_pylist(), drawn.table["uri"].to_pylist(), strict=True))
    for precision, folder, computed in (("auto", "model", "float32"), ("int8", "model-int8", "int8")):
        out = tmp_path / precision / "results.csv"
        scored = catdog(
            "score", "--model", tmp_path / "r", "--data", drawn.root, "--out", out, "--precision", precision
        )
        assert scored.code == 0, scored.err
        meta = json.loads(out.with_suffix(".meta.json").read_text())
        assert (meta["model"], meta["precision"]) == ([f"{tmp_path}/r/{folder}"], computed)
        assert ("--precision int8" in out.with_suffix(".report.html").read_text()) == (precision == "int8")
        parts = results.read_parts(str(out)).sort_by("key")
        assert parts.num_rows == drawn.count("valid") + drawn.count("test")
        predictor = Predictor.load([f"{tmp_path}/r/{folder}"])
        files: list[bytes | str] = [Path(uris[key]).read_bytes() for key in parts["key"].to_pylist()]
        assert parts["logit"].to_pylist() == predictor.predict_files(files).logits.tolist()
