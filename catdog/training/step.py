"""One training step: forward, loss, gradients, update, on all workers together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from catdog.models import batch_norm, surgery
from catdog.training import augmentation
from catdog.training.checkpoint import Precision
from catdog.training.config import ResolvedConfig
from catdog.training.distributed import WorkerGroup
from catdog.training.replica import Replica


def training_step(
    config: ResolvedConfig, replica: Replica, group: WorkerGroup, batch_size: int, precision: Precision
) -> Callable[[list[np.ndarray]], Any]:
    """Makes the function that trains on one batch.

    With a teacher, the targets are its probabilities of the very pixels that the model sees, mixed ones with MixUp, and
    what `teacher_share` leaves is the labels'. Label smoothing is of the labels only; the weights that balance the
    classes follow the labels. The loss is the cross-entropy with these targets, never below their entropy; its gradient
    is that of the Kullback-Leibler divergence.

    Args:
        config: its loss and MixUp, and whether XLA compiles the gradients.
        replica: whose model and optimizer are updated, and whose teacher teaches.
        group: adds up the workers' gradients.
        batch_size: of the global batch, in images.
        precision: of the matrix products; on CPUs bfloat16 only if the replica folds batch-norm.

    Returns:
        A function of this worker's share of a batch, as `ingest.Batches.epoch` yields it. It returns this share's part
        of the batch's mean loss, in nats: a tensor, which on a GPU is computed only after the function has returned.
    """
    import tensorflow as tf

    model, optimizer = replica.model, replica.optimizer

    def forward(pixels: Any) -> Any:
        if precision == "bfloat16" and replica.folds_batch_norm:
            return batch_norm.apply_folded(model, pixels)
        if config.model.spec.pretrained:
            return surgery.forward_in_inference_mode(model, pixels)
        return model(pixels, training=True)

    def differentiate(pixels: Any, labels: Any, weights: Any, shares: Any) -> tuple[Any, list[Any]]:
        if config.data.mixup:
            pixels, labels, weights = augmentation.mixup(shares, pixels, labels, weights)
        labels = labels * (1 - config.optimizer.label_smoothing) + config.optimizer.label_smoothing / 2
        if replica.teacher is not None:
            taught = config.optimizer.teacher_share
            labels = taught * replica.teacher(pixels, precision) + (1 - taught) * labels
        with tf.GradientTape() as tape:
            logits = forward(pixels)[:, 0]
            each = weights * tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
            # Gradients are summed over the workers, so each divides by the whole batch.
            loss = tf.reduce_sum(each) / batch_size
            scaled = optimizer.scale_loss(loss)  # in float16; else the same
        return loss, tape.gradient(scaled, [variable.value for variable in model.trainable_variables])

    # Not the rest of the step: XLA knows no exchange with other workers.
    if config.optimizer.xla:
        differentiate = tf.function(differentiate, autograph=False, jit_compile=True)

    def step(*batch: Any) -> Any:
        loss, gradients = differentiate(*batch)
        optimizer.apply(group.sum_gradients(gradients), model.trainable_variables)
        return loss

    # There is no control flow on tensors, and AutoGraph's search for it takes a third of the tracing.
    traced = tf.function(step, autograph=False)
    return lambda batch: traced(*map(tf.constant, batch))
