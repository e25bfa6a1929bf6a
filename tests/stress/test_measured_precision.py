"""A precision that was measured at the start of a run gives the bits of the same one that was asked for by name."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest
from helpers import bundle_json

from catdog.data.catalog import Catalog
from catdog.events import Event, TrainingStarted
from catdog.models import batch_norm
from catdog.training import train
from catdog.training.request import TrainConfig


@pytest.mark.usefixtures("two_cpus")
def test_the_measured_precision_gives_the_bits_of_the_same_one_by_name(drawn: Catalog, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    weights = tmp_path / "mobilenet.weights.h5"
    keras.applications.MobileNet(input_shape=(48, 48, 3), alpha=0.25, include_top=False, weights=None).save_weights(
        weights
    )
    config = TrainConfig(
        data=drawn.root, arch="mobilenet", alpha=0.25, weights=str(weights), image_size=48, epochs=6, batch_size=8,
        workers=2, head_first=False, views=["identity"], calibrate=False, dropout=0.5, runs=str(tmp_path), name="auto",
    )  # fmt: skip
    events: list[Event] = []
    train.train_model(config, events.append)
    (start,) = [event for event in events if isinstance(event, TrainingStarted)]
    # Where no CPU has bfloat16 there is nothing to measure.
    assert bool(start.rates) == batch_norm.has_bfloat16()
    assert start.precision == max(start.rates or {"float32": 1.0}, key=lambda name: start.rates.get(name, 0.0))
    measured = bundle_json(str(tmp_path / "auto"))["training"]
    assert measured["precision"] == start.precision
    train.train_model(config.model_copy(update={"name": "named", "precision": start.precision}), events.append)
    named = bundle_json(str(tmp_path / "named"))["training"]
    digests = [[entry["variables_sha256"] for entry in run["history"]] for run in (measured, named)]
    assert digests[0] == digests[1]
    assert len({digest for epoch in digests[0] for digest in epoch}) == len(measured["history"])
