"""Selection: an unbiased log loss of the best of several epochs or trials.

The least of several log losses is too good, because the same images chose it. So one half of the images chooses and the
other half judges, then the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catdog import rng
from catdog.evaluation import calibration, metrics


@dataclass(frozen=True)
class Judged:
    """Log loss of a choice on images that did not take part in it.

    Attributes:
        log_loss: over all images, in nats.
        halves: of each half, in nats, judged by the candidate that is best on the other half.
        chosen: the candidate that judges each half.
    """

    log_loss: float
    halves: tuple[float, float]
    chosen: tuple[int, int]


def judge_selection(labels: np.ndarray, candidates: np.ndarray, keys: rng.Keys, calibrated: bool) -> Judged:
    """Judges each half of the images by the candidate that has the least log loss on the other half.

    Args:
        labels: 0 or 1, N, N at least 2.
        candidates: float, C×N: each one's logits.
        keys: N.
        calibrated: fit temperature and clip on the half that chooses, as is done on all images in the end.
    """
    losses = np.stack([metrics.losses_from_logits(labels, logits) for logits in candidates])
    half_of = calibration.halves(keys)
    found, chosen = np.empty(len(labels)), []
    for half in range(calibration.HALVES):
        judged = half_of == half
        best = int(losses[:, ~judged].mean(axis=1).argmin())
        chosen.append(best)
        found[judged] = losses[best, judged]
        if calibrated:
            fitted = calibration.fit_calibration(labels[~judged], candidates[best, ~judged])
            found[judged] = metrics.losses(labels[judged], metrics.calibrated(candidates[best, judged], *fitted))
    means = [float(found[half_of == half].mean()) for half in range(calibration.HALVES)]
    return Judged(float(found.mean()), (means[0], means[1]), (chosen[0], chosen[1]))
