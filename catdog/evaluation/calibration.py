"""Calibration: temperature and clip fitted to a model's logits, and an unbiased estimate of the log loss they give.

Both are fitted on predictions of photos that the model was not trained on. The log loss with them is then estimated by
cross-fitting: each half of those photos is calibrated with what was fitted on the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from catdog import rng
from catdog.evaluation import metrics

HALVES = 2
# With fewer images temperature and clip are not fitted, or not judged by halves.
MIN_IMAGES = 10
DEFAULT_CLIP = 1e-6
# Chosen on out-of-fold predictions of seven models (benchmarks/log_loss.md).
SPREAD = 0.2
MISTAKES = 0.25
_TEMPERATURES = np.geomspace(1 / 3, 3.0, 89)
_CLIPS = np.geomspace(1e-5, 0.02, 67)


@dataclass(frozen=True)
class Applied:
    """Temperature and clip of the probabilities that scoring writes.

    Attributes:
        temperature: divisor of the logit.
        clip: least distance of a probability from 0 and 1.
        origin: "none", nothing was fitted; "own", the model's; "mean", the mean of several models' own; "refitted", on
            the mean of several models' logits.
        digests: of the images that they were refitted on: uint64, null where unknown; None unless refitted.
    """

    temperature: float
    clip: float
    origin: Literal["none", "own", "mean", "refitted"]
    digests: pa.ChunkedArray | None = None

    @property
    def words(self) -> str:
        """Origin in words, for people."""
        if self.origin == "refitted":
            assert self.digests is not None
            return f"refitted on the mean of the models' logits for {len(self.digests)} validation images"
        return {
            "none": "none",
            "own": "the model's own",
            "mean": "the mean of the models' own, for want of scored validation images to fit them on together",
        }[self.origin]


def fit_calibration(
    labels: np.ndarray, logits: np.ndarray, spread: float = SPREAD, mistakes: float = MISTAKES
) -> tuple[float, float]:
    """Finds the most probable temperature and clip (maximum a posteriori), as validation photos are few.

    A few hundred predictions that happen to be right would otherwise lead to a temperature far below 1 and no clip at
    all, and the first wrong one after them would cost without bound. So the logarithm of the temperature has a normal
    prior about 0, and a part of one more image is added that is a certain mistake. Thousands of photos outweigh both.

    Args:
        labels: 0 or 1, N.
        logits: float, N.
        spread: standard deviation of the prior of log temperature, above 0; infinite is none.
        mistakes: certain mistakes that are added, from 0; a fraction is part of an image.

    Returns:
        Temperature and clip.
    """
    towards_label = np.where(np.asarray(labels) == 1, 1.0, -1.0) * np.asarray(logits, np.float64)
    best = (np.inf, 1.0, _CLIPS[0])
    for temperature in _TEMPERATURES:
        log_right = -np.logaddexp(0.0, -towards_label / temperature)
        unlikely = (np.log(temperature) / spread) ** 2 / 2
        for clip in _CLIPS:
            loss = unlikely - np.clip(log_right, np.log(clip), np.log1p(-clip)).sum() - mistakes * np.log(clip)
            if loss < best[0]:
                best = (loss, temperature, clip)
    return float(best[1]), float(best[2])


def cross_fitted(labels: np.ndarray, logits: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Calibrates each fold with what was fitted on all the others.

    Args:
        labels: 0 or 1, N.
        logits: float, N.
        folds: int, N: the fold of each prediction; at least two.

    Returns:
        Probabilities, float64, N.
    """
    probabilities = np.empty(len(labels))
    for fold in np.unique(folds):
        held_out = folds == fold
        temperature, clip = fit_calibration(labels[~held_out], logits[~held_out])
        probabilities[held_out] = metrics.calibrated(logits[held_out], temperature, clip)
    return probabilities


def halves(keys: rng.Keys) -> np.ndarray:
    """Splits keys into two halves at random, but always the same way: int, N, of 0 and 1."""
    order = np.argsort(rng.uniform(rng.Stream.CROSS_FIT, 0, rng.key_hash(keys), 1)[:, 0], kind="stable")
    fold = np.empty(len(keys), np.int64)
    fold[order] = np.arange(len(keys)) % HALVES
    return fold


def judge_and_calibrate(
    labels: np.ndarray, logits: np.ndarray, keys: rng.Keys, fitted: bool
) -> tuple[dict[str, float | int], float, float]:
    """Computes the figures on validation photos, the temperature and the clip that a bundle is saved with.

    Args:
        labels: 0 or 1, N.
        logits: float, N.
        keys: N.
        fitted: fit temperature and clip; else they are 1 and `DEFAULT_CLIP`, which change next to nothing.

    Returns:
        Figures (n, log_loss and accuracy of the plain logits and, if fitted, log_loss_calibrated, cross-fitted on
        halves), temperature and clip.
    """
    figures: dict[str, float | int] = {
        "n": len(labels),
        "log_loss": float(metrics.losses_from_logits(labels, logits).mean()),
        "accuracy": float(((logits > 0) == (labels == 1)).mean()),
    }
    if not fitted:
        return figures, 1.0, DEFAULT_CLIP
    figures["log_loss_calibrated"] = float(metrics.losses(labels, cross_fitted(labels, logits, halves(keys))).mean())
    return figures, *fit_calibration(labels, logits)
