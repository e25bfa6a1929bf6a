"""`train --dry-run`: what a run would do, as the run then does it, and nothing written."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import keras
import pytest

from catdog.data.catalog import Catalog
from catdog.models import batch_norm
from catdog.training import TrainConfig, estimate

pytestmark = pytest.mark.usefixtures("two_cpus")


def test_it_says_what_the_run_then_does(drawn: Catalog, tmp_path: Path, catdog) -> None:
    """With a pretrained backbone, whose weights each measuring process gets."""
    weights = tmp_path / "mobilenet.weights.h5"
    keras.applications.MobileNet((32, 32, 3), alpha=0.25, include_top=False, weights=None).save_weights(weights)
    said = catdog(
        "train", "--data", drawn.root, "--arch", "mobilenet", "--alpha", 0.25, "--weights", weights, "--image-size", 48,
        "--epochs", 20, "--batch-size", 16, "--runs", tmp_path / "runs", "--name", "new", "--dry-run",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert not (tmp_path / "runs").exists()
    rows = {line[:9].strip(): line[10:] for line in said.out.splitlines()}
    assert rows["run"] == f"{tmp_path}/runs/new"
    assert rows["recipe"].startswith("fine-tune: ")
    assert rows["model"] == f"mobilenet 0.25 at 48 px, weights {weights}"
    assert {"epochs=20", "batch_size=16", "optimizer=adamw"} <= set(rows["options"].split("  "))
    assert "augmentation={crop=[0.75, 1.0], aspect=1.18" in rows["options"]
    assert rows["data"].startswith(f"{drawn.count('train')} training and {drawn.count('valid')} validation images")
    assert rows["workers"] == "2 with 1 CPU each, 16 images a step"
    assert rows["outputs"].split(", ")[0] == f"{tmp_path}/runs/new/model"
    speeds = re.findall(r"[\d,]+(?= images/s decoded by a CPU| predicted| trained on by all)", rows["measured"])
    assert len(speeds) == 3
    assert min(int(speed.replace(",", "")) for speed in speeds) > 1
    both = re.search(r" in (float32|bfloat16) \([\d,]+ in (float32|bfloat16)\)$", rows["measured"])
    assert bool(both) == batch_norm.has_bfloat16()
    assert re.match(r"about \d+:\d\d, an estimate: .*features .*starting workers", rows["time"])


def test_folds_and_members_take_their_share(drawn: Catalog, tmp_path: Path) -> None:
    options = {"arch": "small_resnet", "image_size": 32, "epochs": 100, "batch_size": 16}
    config = TrainConfig(data=drawn.root, **options, runs=str(tmp_path), name="x")
    rates = estimate.Rates(start=8.0, decode=50.0, forward=100.0, train=20.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "_measure", lambda *_: rates)
        one = estimate.estimate_training(config).seconds
        folds = estimate.estimate_training(config, 4).seconds
        members = estimate.estimate_training(config.model_copy(update={"members": [{}, {"epochs": 50}]})).seconds
        fast = dataclasses.replace(rates, train=200.0)
        patch.setattr(estimate, "_measure", lambda run, *_: rates if run.model.arch == "small_resnet" else fast)
        kinds = [{}, {"arch": "workshop_cnn", "epochs": 50}]
        mixed = estimate.estimate_training(config.model_copy(update={"members": kinds}))
    train_images, valid_images = drawn.count("train"), drawn.count("valid")
    assert one["training"] == pytest.approx(100 * (train_images / 20 + valid_images / 100))
    assert one["decoding"] == pytest.approx((train_images + valid_images) / (50 * 2))
    assert folds["starting workers"] == 4 * 8
    assert folds["training"] == pytest.approx(4 * 100 * (72 / 20 + 24 / 100))
    assert members["training"] == pytest.approx(1.5 * one["training"])
    # A member of another kind is measured by itself.
    assert mixed.seconds["training"] == pytest.approx(one["training"] + 50 * (train_images / 200 + valid_images / 100))
    assert mixed.what["model"].startswith("small_resnet + workshop_cnn at 32 px")
    assert re.match("small_resnet: .* 20 trained on .*; workshop_cnn: .* 200 trained on", mixed.what["measured"])


def test_what_the_run_would_refuse_is_refused(drawn: Catalog, tmp_path: Path, catdog) -> None:
    command = ["train", "--data", drawn.root, "--runs", str(tmp_path), "--name", "notes", "--dry-run"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    refused = catdog(*command)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is not a run" in refused.err
    refused = catdog("train", "--runs", tmp_path, "--name", "notes", "--resume", "--dry-run", "--data", drawn.root)
    assert refused.code == 2
