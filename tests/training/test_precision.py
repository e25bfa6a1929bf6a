"""Which precision a run takes, and that finding out leaves no trace in what is trained."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import ray.train

from catdog import rng
from catdog.inference.provenance import Provenance
from catdog.lease import Lease
from catdog.models import batch_norm
from catdog.resources import TrainPlan
from catdog.training import checkpoint
from catdog.training.checkpoint import Precision, Progress
from catdog.training.config import ResolvedConfig, resolve
from catdog.training.distributed import WorkerGroup
from catdog.training.ingest import Batches
from catdog.training.job import SplitData, WorkerJob
from catdog.training.precision import choose_precision, possible_precisions
from catdog.training.replica import Replica, build_replica
from catdog.training.request import TrainConfig
from catdog.training.stores import DecodedStore, LoadedImages

COUNT, SIZE = 16, 48


class WithSlowWorker(WorkerGroup):
    """This worker, and another one that is slow in one precision and as fast as can be in the other."""

    size = 2

    def __init__(self, slow: Precision) -> None:
        self.seconds = [1e6, 0.0] if slow == "float32" else [0.0, 1e6]

    def gather(self, value: np.ndarray) -> np.ndarray:
        return np.stack([value, self.seconds if value.dtype == np.float64 else value])


def config(**options: Any) -> ResolvedConfig:
    given = {"arch": "mobilenet", "epochs": 30, "batch_size": 8, "image_size": SIZE, "alpha": 0.25, "dropout": 0.5}
    return resolve(TrainConfig(**{"data": "d", "weights": "imagenet", "recipe": "fine-tune"} | given | options))


def build(config: ResolvedConfig, group: WorkerGroup) -> tuple[Replica, Batches]:
    """A worker's replica, of random weights that are always the same, and batches of noise."""
    keys, labels = [str(number) for number in range(COUNT)], np.arange(COUNT) % 2
    split = SplitData(LoadedImages([], ray.ObjectRef.nil(), SIZE, "decoded"), keys, labels, np.arange(COUNT))
    plan = TrainPlan(1, 1, False)
    nothing = Provenance(), Lease("", "testing"), None
    keras.utils.set_random_seed(3)
    job = WorkerJob(config, plan, split, split, None, None, 0.5, ("cat", "dog"), "", *nothing, 0.0)
    noise = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    where = np.stack([np.zeros(COUNT, int), np.arange(COUNT)], axis=1)
    batches = Batches(config, DecodedStore([noise], where, []), labels, rng.key_hash(keys), np.arange(COUNT), 0, 1)
    return build_replica(job, group, batches.steps * config.optimizer.epochs), batches


def train(config: ResolvedConfig, group: WorkerGroup) -> tuple[Precision, dict[str, float], list[np.ndarray]]:
    """The precision, the measured rates, and all variables after two epochs."""
    replica, batches = build(config, group)
    chosen = choose_precision(config, replica, group, batches, Progress())
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            assert np.isfinite(chosen.step(batch))
    return chosen.precision, chosen.rates, [*map(np.asarray, replica.model.variables + replica.optimizer.variables)]


@pytest.mark.parametrize(("precision", "other"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_measuring_changes_no_bit_and_the_slowest_worker_decides(
    precision: Precision, other: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_norm, "has_bfloat16", lambda: True)
    options = {"ema": 0.9, "mixup": 0.4, "layer_decay": 0.8}
    chosen, rates, ours = train(config(**options), WithSlowWorker(other))
    assert chosen == precision
    assert rates[precision] > rates[other] == pytest.approx(8 / 1e6)
    named, nothing, theirs = train(config(**options, precision=precision), WorkerGroup())
    assert (named, nothing) == (precision, {})
    assert [one.tobytes() for one in ours] == [one.tobytes() for one in theirs]


def test_what_a_run_has_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    group = WorkerGroup()
    folding = Replica(None, None, None, False, folds_batch_norm=True)
    other = dataclasses.replace(folding, folds_batch_norm=False)
    usual, lite = config(), config(arch="efficientnet_lite0", alpha=None)

    def found(
        config: ResolvedConfig = usual, replica: Replica = folding, steps: int = 50, **progress: Any
    ) -> list[str]:
        return [*possible_precisions(config, replica, group, steps, Progress(**progress))]

    monkeypatch.setattr(batch_norm, "has_bfloat16", lambda: True)
    assert found() == found(lite) == ["float32", "bfloat16"]
    assert found(steps=49) == found(replica=other) == ["float32"]
    assert found(config(precision="bfloat16"), steps=1) == ["bfloat16"]
    assert found(config(precision="float32")) == ["float32"]
    # What it did before a restart, on whatever machine it goes on; an older version did not write it down.
    assert found(epoch=1, precision="float32") == found(lite, epoch=1) == ["float32"]
    assert found(epoch=1) == ["bfloat16"]
    monkeypatch.setattr(batch_norm, "has_bfloat16", lambda: False)
    assert found() == found(epoch=1) == ["float32"]
    assert found(epoch=1, precision="bfloat16") == ["bfloat16"]


def test_a_checkpoint_keeps_the_precision_and_older_ones_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD()
    optimizer.build(model.trainable_variables)
    folder = tmp_path / "checkpoint"
    monkeypatch.setattr(ray.train, "report", lambda _, checkpoint: shutil.copytree(checkpoint.path, folder))
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(folder))
    progress = Progress(1, 1, 0.5, [{"epoch": 1}], "bfloat16", [np.zeros(3, np.float32)])
    checkpoint.report_checkpoint(progress, model, optimizer, checkpoint.variable_values(model), 0)
    assert checkpoint.restore_checkpoint(model, optimizer)[0].precision == checkpoint.saved_precision() == "bfloat16"
    stands = json.loads((folder / "progress.json").read_text())
    del stands["precision"]
    (folder / "progress.json").write_text(json.dumps(stands))
    restored, _ = checkpoint.restore_checkpoint(model, optimizer)
    assert (restored.epoch, restored.precision) == (1, None)
    assert checkpoint.saved_precision() == "float32"  # by which GPUs go on
