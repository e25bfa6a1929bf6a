"""What training and scoring would make of a cluster, with the plans of the runs themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import ray

from catdog import resources, waiting
from catdog.choices import EngineName
from catdog.data.catalog import Catalog
from catdog.doctor.facts import Images, Model
from catdog.errors import UsageError
from catdog.inference.bundle import VERIFIED, SavedBundle
from catdog.resources import ScorePlan, TrainPlan
from catdog.scoring.parts import PART_ROWS
from catdog.training import stores
from catdog.training.config import default_options

Plan = TypeVar("Plan")

# Of MobileNet and most other backbones.
DEFAULT_SIZE = 224
_ENGINES: tuple[EngineName, ...] = ("onnx", "tensorflow")


@dataclass(frozen=True)
class Plans:
    """What would be done.

    Attributes:
        batch_size: images of a training step.
        training: None if there can be no training.
        scoring: None if there can be no scoring.
        refused: why there can be none, without repetition.
        waiting: what a training that began now would wait for, and who holds it; None if nothing.
        images: those of the data set that was named, or None.
        model: the one that was named, or None.
    """

    batch_size: int
    training: TrainPlan | None
    scoring: ScorePlan | None
    refused: list[str]
    waiting: str | None
    images: Images | None
    model: Model | None


def make_plans(may_grow: bool, data: Catalog | None, saved: SavedBundle | None, image_size: int | None) -> Plans:
    """Plans a training and a scoring run with default options on the cluster that this process is connected to.

    Args:
        may_grow: the cluster may have an autoscaler.
        data: the data set's catalog, or None.
        saved: the model, or None.
        image_size: S of the images that are trained on; None is the model's, or 224.
    """
    batch_size = int(default_options()["batch_size"])
    refused: list[str] = []
    training = _planned(lambda: resources.plan_training(batch_size, may_grow=may_grow), refused)
    scoring = _planned(lambda: resources.plan_scoring(_parts(data, saved), may_grow=may_grow), refused)
    images = None
    if data is not None:
        size = image_size or (saved.info.image_size if saved else DEFAULT_SIZE)
        used = pc.is_in(data.table["split"], pa.array(["train", "valid"]))
        uris = data.table.filter(used)["uri"]
        if len(uris):
            images = Images(data.root, len(uris), size, *stores.choose_store(None, uris, size))
    return Plans(batch_size, training, scoring, refused, _wait(training), images, _model(saved))


def _planned(plan: Callable[[], Plan], refused: list[str]) -> Plan | None:
    try:
        return plan()
    except UsageError as error:
        if str(error) not in refused:
            refused.append(str(error))
        return None


def _parts(data: Catalog | None, saved: SavedBundle | None) -> dict[EngineName, int]:
    """How many parts each engine could make, the fastest on CPUs first."""
    engines = saved.info.engines if saved else _ENGINES
    if data is None:  # as many as would keep every actor busy
        held = ray.cluster_resources()
        return dict.fromkeys(engines, int(held.get("CPU", 0) + held.get("GPU", 0)) or 1)
    parts = sum(-(-data.count(split) // PART_ROWS) for split in ("valid", "test"))
    return dict.fromkeys(engines, parts or 1)


def _wait(plan: TrainPlan | None) -> str | None:
    if plan is None:
        return None
    bundles = [plan.worker_resources] * plan.workers
    free = ray.available_resources()
    short = any(free.get(name, 0.0) < amount * plan.workers for name, amount in bundles[0].items())
    return waiting.describe_need(bundles) if short else None


def _model(saved: SavedBundle | None) -> Model | None:
    if saved is None:
        return None
    why = None if saved.info.onnx == VERIFIED else saved.info.onnx
    return Model(saved.uri, saved.info.architecture, saved.info.image_size, list(saved.info.engines), why)
