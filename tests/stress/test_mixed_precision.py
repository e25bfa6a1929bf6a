"""Two workers with GPUs that Ray only counts train in float16, on the CPU, and leave a bundle like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import bundle_json, in_process

from catdog.data.catalog import Catalog

COMMANDS = """
import contextlib, sys, ray
from catdog.cli import main
ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
for words in ALL_WORDS:
    sys.argv = ["catdog", *words]
    with contextlib.suppress(SystemExit):
        main.main()
ray.shutdown()
"""


def test_a_run_in_float16_on_two_logical_gpus(drawn: Catalog, tmp_path: Path) -> None:
    run, out = tmp_path / "low", tmp_path / "results.csv"
    train = f"train --data {drawn.root} --arch small_resnet --image-size 48 --epochs 3 --batch-size 8 --gpu --workers 2"
    train += f" --set precision=float16 --runs {tmp_path} --name low"
    score = f"score --cpu --model {run}/model --data {drawn.root} --split valid --out {out}"
    printed = in_process(f"ALL_WORDS = {[train.split(), score.split()]!r}\n{COMMANDS}", timeout=900)
    assert "Training on 2 workers\nPrecision: float16\n" in printed
    training = bundle_json(str(run))["training"]
    assert training["precision"] == "float16"
    losses = [entry["loss"] for entry in training["history"]]
    assert losses[-1] < losses[0]
    assert len(set(training["variables_sha256"])) == 1
    report = json.loads((tmp_path / "results.report.json").read_text())
    assert report["log_loss_plain"] == pytest.approx(bundle_json(str(run))["validation"]["log_loss"], abs=1e-4)
