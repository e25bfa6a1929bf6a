"""Training's batches: each worker takes its images of every global batch, augmented, from the store that has them.

Which images make up a global batch, and how each is augmented, follows from seed, epoch and key; each worker takes
every `world`-th image of it. So one worker or four compute the same steps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from catdog import rng
from catdog.prefetch import prefetch
from catdog.training import augmentation, orders
from catdog.training.config import ResolvedConfig
from catdog.training.request import Augmentation
from catdog.training.stores import ImageStore


@dataclass
class Batches:
    """One worker's share of every global batch.

    Attributes:
        config: its seed, batch size, augmentation and what else changes images.
        pixels: of the training images.
        labels: int64, N, 0 or 1.
        hashes: uint64, N: of the images' keys, which all that is drawn for an image follows from.
        blocks: int64, N: the block that each image is in, for the block shuffle.
        rank: of this worker.
        world: how many workers there are.
        threads: that make batches ready.
    """

    config: ResolvedConfig
    pixels: ImageStore
    labels: np.ndarray
    hashes: np.ndarray
    blocks: np.ndarray
    rank: int
    world: int
    threads: int = 1

    @property
    def size(self) -> int:
        """Images in a global batch: fewer than asked for where there are not so many."""
        return min(self.config.data.batch_size, len(self.pixels.readable))

    @property
    def steps(self) -> int:
        """Global batches in an epoch; images left over wait for the next one's order."""
        return len(self.pixels.readable) // self.size

    def epoch(self, epoch: int, first: int = 0) -> Iterator[list[np.ndarray]]:
        """Gathers an epoch's batches, each while those before are trained on.

        Args:
            epoch: counted from 0.
            first: the step to begin with, counted from 0.

        Yields:
            Of this worker's n images: augmented uint8 pixels n×T×T×3, where T is the size to train at, float32 labels
            n, float32 weights of their losses n, and float32 shares in MixUp n. With MixUp the images to mix in, and
            all that goes with them, follow in a second half.
        """
        size, order = self.size, self._order(epoch)
        mixup = self.config.data.mixup

        def share(step: int) -> list[np.ndarray]:
            batch = order[step * size : (step + 1) * size]
            mine = batch[self.rank :: self.world]
            if mixup:
                mine = np.concatenate([mine, np.roll(batch, 1)[self.rank :: self.world]])
            labels = self.labels[mine].astype(np.float32)
            return [self._augmented(mine, epoch), labels, self._weights(labels), self._shares(mine, epoch)]

        yield from prefetch(share, range(first, self.steps), self.threads)

    def _order(self, epoch: int) -> np.ndarray:
        rows, seed = self.pixels.readable, self.config.run.seed
        if self.config.data.shuffle == "blocks":
            return rows[orders.block_shuffle(self.hashes[rows], self.labels[rows], self.blocks[rows], seed, epoch)]
        return rows[orders.full_shuffle(self.hashes[rows], seed, epoch)]

    @functools.cached_property
    def _mean_label(self) -> np.float32:
        return self.labels.astype(np.float32).mean()

    def _weights(self, labels: np.ndarray) -> np.ndarray:
        if not self.config.data.balance:
            return np.ones(len(labels), np.float32)
        mean = self._mean_label
        return np.where(labels == 1, 0.5 / mean, 0.5 / (1 - mean)).astype(np.float32)

    def _shares(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        alpha = self.config.data.mixup
        if not alpha:
            return np.ones(len(rows), np.float32)
        from scipy import stats

        drawn = rng.uniform(rng.Stream.MIXUP + self.config.run.seed, epoch, self.hashes[rows], 1)[:, 0]
        return stats.beta.ppf(drawn, alpha, alpha).astype(np.float32)

    def _augmented(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        config, size = self.config, self.config.train_size
        if config.augmentation == Augmentation() and size == config.model.image_size:
            return self.pixels.take(rows)
        seed = 2 * config.run.seed + rng.Stream.AUGMENTATION
        random = rng.uniform(seed, epoch, self.hashes[rows], augmentation.DRAWS)
        changes = augmentation.draw_changes(random, config.augmentation, config.model.image_size, size)
        out = np.empty((len(rows), size, size, 3), np.uint8)
        for image, change, place in zip(self.pixels.images(rows), changes, out, strict=True):
            augmentation.apply_change(image, change, config.augmentation, place)
        return out
