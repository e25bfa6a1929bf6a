"""One worker's copy of the model: what is trained, what is validated and saved, and the optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from catdog.errors import CatdogError
from catdog.models import batch_norm, registry, surgery
from catdog.training import checkpoint, optimizers
from catdog.training.distributed import CommonError, WorkerGroup
from catdog.training.job import WorkerJob


@dataclass(frozen=True)
class Replica:
    """One worker's copy of the model.

    Attributes:
        model: of Keras, the one that is trained.
        validation_model: of Keras, the one that is validated and saved. It is another where training's images are
            smaller, and where batch-norm is fused, which plain Keras could not load.
        optimizer: of Keras, built for `model`.
        ema: whether the optimizer averages the weights, and the averages are what is validated and kept.
        folds_batch_norm: whether batch-norm that stays as it is may be folded into the convolution before it.
    """

    model: Any
    validation_model: Any
    optimizer: Any
    ema: bool
    folds_batch_norm: bool

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


def build_replica(job: WorkerJob, group: WorkerGroup, steps: int) -> Replica:
    """Builds the model and its optimizer in every worker.

    Args:
        job: what to train.
        group: the workers.
        steps: of the whole run.

    Raises:
        CommonError: the model cannot be built, or not as asked for.
    """
    config = job.config
    weights = ray.get(job.weights) if job.weights is not None else None
    built = _build(dataclasses.replace(config.model.spec, image_size=config.train_size), weights, group)
    model = built if config.model.spec.pretrained else batch_norm.fuse_batch_norm(built)
    validation_model = built if config.train_size == config.model.image_size else _build(config.model.spec, None, group)
    if [v.shape for v in model.variables] != [v.shape for v in validation_model.variables]:
        raise CommonError(
            f"train_scale received {config.data.train_scale}, but {config.model.arch} has other weights at another "
            "size; expected 1"
        )
    if job.head is not None:
        variables = [variable for layer in surgery.head_layers(model) for variable in layer.weights]
        for variable, value in zip(variables, job.head, strict=True):
            variable.assign(value)
    optimizer = optimizers.build_optimizer(config, model, steps)
    optimizer.build(model.trainable_variables)
    folds = config.model.spec.pretrained and batch_norm.can_fold_batch_norm(model) and not job.plan.gpu
    if config.optimizer.precision == "bfloat16" and not folds:
        raise CommonError(f"--precision bfloat16 received, but {config.model.arch} as asked for is not trained in it")
    return Replica(model, validation_model, optimizer, bool(config.optimizer.ema), folds)


def _build(spec: registry.ModelSpec, weights: bytes | None, group: WorkerGroup) -> Any:
    """Builds the model in every worker, or finds in every worker that it cannot be built."""
    try:
        model, error = registry.build_model(spec, weights), None
    except CatdogError as caught:
        model, error = None, caught
    if group.all_true(error is not None):
        raise CommonError(str(error))
    if error is not None:
        raise error
    return model
