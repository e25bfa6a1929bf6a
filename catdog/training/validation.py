"""Validation in training: the logits of the validation images, predicted by all workers together, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from catdog import stall
from catdog.choices import View
from catdog.evaluation import metrics
from catdog.inference.views import apply_view
from catdog.training.distributed import WorkerGroup
from catdog.training.stores import ImageStore


class Validator:
    """Predicts the validation images, each worker its share of them.

    Attributes:
        pixels: of the validation images.
        labels: int64, N, 0 or 1.
    """

    def __init__(
        self,
        pixels: ImageStore,
        labels: np.ndarray,
        prior: float,
        predict: Callable[[Any], Any],
        group: WorkerGroup,
        batch_size: int,
    ) -> None:
        """Takes what stays the same in all epochs.

        Args:
            pixels: of the validation images.
            labels: int64, N, 0 or 1.
            prior: the probability that an unreadable image gets, in (0, 1).
            predict: from uint8 n×S×S×3 to logits n×1, in TensorFlow.
            group: the workers.
            batch_size: at most so many images at a time.
        """
        import tensorflow as tf

        self.pixels, self.labels = pixels, labels
        self._prior, self._group, self._batch_size = prior, group, batch_size
        # There is no control flow on tensors, and AutoGraph's search for it takes a third of the tracing.
        self._predict = tf.function(predict, autograph=False)

    def logits(self, views: Sequence[View]) -> np.ndarray:
        """Predicts every validation image; an unreadable one gets the prior.

        Args:
            views: how each image is shown.

        Returns:
            float64, N: the mean over the views; the same on all workers.
        """
        readable, group = self.pixels.readable, self._group
        mine = readable[group.rank :: group.size]
        share = -(-len(readable) // group.size)
        size = min(self._batch_size, share)
        logits = np.zeros(share)
        for start in range(0, len(mine), size):
            rows = mine[start : start + size]
            # Padded to one size, because each further size would be traced anew.
            batch = self.pixels.take(np.pad(rows, (0, size - len(rows)), mode="edge"))
            stall.beat()
            seen = [self._predict(apply_view(batch, view)).numpy()[: len(rows), 0] for view in views]
            logits[start : start + len(rows)] = np.mean(seen, axis=0)
        every = group.gather(logits)
        all_logits = np.full(len(self.labels), metrics.logit(self._prior))
        for rank in range(group.size):
            rows = readable[rank :: group.size]
            all_logits[rows] = every[rank, : len(rows)]
        return all_logits

    def judge(self, logits: np.ndarray) -> tuple[float, float]:
        """Log loss, in nats, and accuracy of logits N."""
        loss = float(metrics.losses_from_logits(self.labels, logits).mean())
        return loss, float(((logits > 0) == (self.labels == 1)).mean())
