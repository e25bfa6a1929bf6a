"""Input and output of a training worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from catdog.inference.provenance import Provenance
from catdog.lease import Lease
from catdog.resources import TrainPlan
from catdog.rng import Keys
from catdog.training.config import ResolvedConfig
from catdog.training.distillation import Teacher
from catdog.training.stores import LoadedImages


@dataclass(frozen=True)
class SplitData:
    """The images of one split, in the order of the catalog.

    Attributes:
        images: those, in shared memory.
        keys: catalog keys, N.
        labels: int64, N, 0 or 1.
        blocks: int64, N: the block of the catalog that each row is in.
    """

    images: LoadedImages
    keys: Keys
    labels: np.ndarray
    blocks: np.ndarray


@dataclass(frozen=True)
class WorkerJob:
    """The training run, as each worker is given it.

    Attributes:
        config: what to do.
        plan: workers, and CPUs and GPUs of each.
        train: the images to train on.
        valid: the images to validate with.
        weights: a reference to the bytes of the backbone's weights file, or None for random weights.
        head: values of the head's variables, or None for random ones.
        prior: share of class 1 among the training images, in (0, 1).
        class_names: of classes 0 and 1.
        catalog_fingerprint: of the data set.
        provenance: digests of both splits' images, and of those that made the teacher.
        lease: of the run's folder, which another process may take over while this one is cut off.
        events: a queue, from `launch.listening`.
        started: time at which the run was started or resumed, in seconds since 1970.
        teacher: what the model is distilled from, or None.
    """

    config: ResolvedConfig
    plan: TrainPlan
    train: SplitData
    valid: SplitData
    weights: ray.ObjectRef | None
    head: list[np.ndarray] | None
    prior: float
    class_names: tuple[str, str]
    catalog_fingerprint: str
    provenance: Provenance
    lease: Lease
    events: Any
    started: float
    teacher: Teacher | None = None


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run.

    Attributes:
        run: URI of the run.
        bundle: URI of the model bundle.
        validation: epoch, n, log_loss and accuracy of the kept weights, and what `BundleInfo.validation` has beside.
        chosen_on: "validation" where the validation images chose the epoch, else "none".
        epochs: how many were run.
        history: the figures of each epoch.
        int8: what came of the int8 version, in a line; "" where there is none and none was refused.
    """

    run: str
    bundle: str
    validation: dict[str, float | int]
    chosen_on: str
    epochs: int
    history: list[dict[str, Any]]
    int8: str = ""


@dataclass(frozen=True)
class Failure:
    """An error that would only come again, so that Ray need not start the workers again.

    Attributes:
        message: one line.
    """

    message: str
