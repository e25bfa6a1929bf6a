"""One worker's copy of the model: what is trained, what is validated and saved, the optimizer, and a teacher."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from catdog.errors import CatdogError
from catdog.models import batch_norm, mixed_precision, registry, surgery
from catdog.training import checkpoint, gpu_precision, optimizers
from catdog.training.checkpoint import Precision
from catdog.training.config import ResolvedConfig
from catdog.training.distillation import build_teacher
from catdog.training.distributed import CommonError, WorkerGroup
from catdog.training.job import WorkerJob


@dataclass(frozen=True)
class Replica:
    """One worker's copy of the model.

    Attributes:
        model: of Keras, the one that is trained.
        validation_model: of Keras, the one that is validated and saved, in float32. It is another where training's
            images are smaller, where it is in mixed precision, and where batch-norm is fused, which plain Keras could
            not load.
        optimizer: of Keras, built for `model`.
        ema: whether the optimizer averages the weights, and the averages are what is validated and kept.
        folds_batch_norm: whether batch-norm that stays as it is may be folded into the convolution before it.
        mixed: the precision in which the layers of `model` compute.
        teacher: from `distillation.build_teacher`, or None.
    """

    model: Any
    validation_model: Any
    optimizer: Any
    ema: bool
    folds_batch_norm: bool
    mixed: Precision = "float32"
    teacher: Callable[[Any, Precision], Any] | None = None

    def predict(self, pixels: Any) -> Any:
        """Computes the logits of the validation model.

        Args:
            pixels: uint8, N×S×S×3, a tensor.

        Returns:
            float32, N×1.
        """
        if self.folds_batch_norm:
            return batch_norm.apply_folded(self.validation_model, pixels, bfloat16=False, training=False)
        return self.validation_model(pixels, training=False)

    @contextlib.contextmanager
    def validation_weights(self) -> Iterator[None]:
        """Puts the weights to be validated, averaged if they are to be, into both models; training's come back."""
        own = checkpoint.variable_values(self.model)
        if self.ema:
            self.optimizer.finalize_variable_values(self.model.trainable_variables)
        if self.validation_model is not self.model:
            checkpoint.assign_variables(self.validation_model, checkpoint.variable_values(self.model))
        yield
        if self.ema:
            checkpoint.assign_variables(self.model, own)

    def assign(self, values: list[np.ndarray]) -> None:
        """Puts values, in the order of `checkpoint.variable_values`, into both models."""
        for model in (self.model, self.validation_model):
            checkpoint.assign_variables(model, values)


def build_replica(job: WorkerJob, group: WorkerGroup, steps: int, saved: Precision | None = None) -> Replica:
    """Builds the model and its optimizer in every worker.

    Args:
        job: what to train.
        group: the workers.
        steps: of the whole run.
        saved: the precision in the checkpoint that the run goes on from, if it does.

    Raises:
        CommonError: the model or its teacher cannot be built, or not as asked for.
    """
    config = job.config
    weights = ray.get(job.weights) if job.weights is not None else None
    smaller = dataclasses.replace(config.model.spec, image_size=config.train_size)
    built = _build(lambda: registry.build_model(smaller, weights), group)
    folds = config.model.spec.pretrained and batch_norm.can_fold_batch_norm(built) and not job.plan.gpu
    if not job.plan.gpu:
        _require_on_cpus(config, folds, saved)
    mixed = gpu_precision.choose_gpu_precision(config, group, saved) if job.plan.gpu else "float32"
    model = built if config.model.spec.pretrained else batch_norm.fuse_batch_norm(built)
    if mixed != "float32":
        model = mixed_precision.to_mixed_precision(model, mixed)
    validation_model = built
    if config.train_size != config.model.image_size:
        validation_model = _build(lambda: registry.build_model(config.model.spec), group)
    if [v.shape for v in model.variables] != [v.shape for v in validation_model.variables]:
        raise CommonError(
            f"train_scale received {config.data.train_scale}, but {config.model.arch} has other weights at another "
            "size; expected 1"
        )
    if job.head is not None:
        variables = [variable for layer in surgery.head_layers(model) for variable in layer.weights]
        for variable, value in zip(variables, job.head, strict=True):
            variable.assign(value)
    optimizer = optimizers.build_optimizer(config, model, steps, scaled=mixed == "float16")
    optimizer.build(model.trainable_variables)
    teacher = None
    if (taught_by := job.teacher) is not None:
        # Last, so that the model's own random weights are those that it has without one.
        teacher = _build(lambda: build_teacher(taught_by, config.train_size, mixed, job.plan.gpu), group)
    return Replica(model, validation_model, optimizer, bool(config.optimizer.ema), folds, mixed, teacher)


def _require_on_cpus(config: ResolvedConfig, folds: bool, saved: Precision | None) -> None:
    """Makes sure that CPUs train in the precision that is asked for, or in which the run began.

    Raises:
        CommonError: they do not.
    """
    possible = ["float32", "bfloat16"] if folds else ["float32"]
    asked = config.optimizer.precision
    expected = f"{config.model.arch} as asked for trains on CPUs in {' or '.join(possible)} only"
    if asked not in ("auto", *possible):
        raise CommonError(
            f"precision received {asked}, but {expected}; expected {', '.join(['auto', *possible[:-1]])} or "
            f"{possible[-1]}, or --gpu"
        )
    if asked == "auto" and saved not in (None, *possible):
        raise CommonError(f"--resume: the run began in {saved}, but {expected}; resume it with --gpu")


def _build(build: Callable[[], Any], group: WorkerGroup) -> Any:
    """Builds a model in every worker, or finds in every worker that it cannot be built."""
    try:
        model, error = build(), None
    except CatdogError as caught:
        model, error = None, caught
    if group.all_true(error is not None):
        raise CommonError(str(error))
    if error is not None:
        raise error
    return model
