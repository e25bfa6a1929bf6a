"""Selection: what the best of several epochs or trials is honestly worth.

The least of several log losses is too good: the images that it is of have chosen it. So one half of them chooses, the
other judges, and the other way about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catdog.evaluation import calibration, metrics


@dataclass(frozen=True)
class Judged:
    """What a choice is worth on images that did not take part in it.

    Attributes:
        log_loss: over all images, in nats.
        halves: of either half, judged by what is best on the other.
        chosen: the candidate that judges each half.
    """

    log_loss: float
    halves: tuple[float, float]
    chosen: tuple[int, int]


def judge_selection(labels: np.ndarray, candidates: np.ndarray, keys: list[str], calibrated: bool) -> Judged:
    """Judges each half of the images by the candidate that has the least log loss on the other half.

    Args:
        labels: 0 or 1, N, N at least 2.
        candidates: float, C×N: each one's logits.
        keys: N.
        calibrated: temperature and clip are fitted on the half that chooses, as they are on all images in the end.
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
