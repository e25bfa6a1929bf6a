"""What is behind a log loss: calibration by bins, curves, the clip, the worst images, drift; pure functions.

Labels are 0 or 1, probabilities are of label 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catdog.evaluation import metrics

BINS = 10
_NORMAL_95 = 1.959964
# Smirnov's asymptotic bound: 5 % of pairs of samples of one distribution are further apart.
_SMIRNOV_95 = 1.358102


@dataclass(frozen=True)
class Bin:
    """Images whose probabilities lie in one interval.

    Attributes:
        start: of the interval; included in the first one only.
        stop: of it, included.
        n: number of images, at least 1.
        predicted: mean probability.
        observed: share of label 1.
        low: low end of the 95 % interval of that share (Wilson, 1927).
        high: high end of it.
    """

    start: float
    stop: float
    n: int
    predicted: float
    observed: float
    low: float
    high: float


@dataclass(frozen=True)
class Curves:
    """ROC curve and precision-recall curve.

    Attributes:
        false_positive_rate: N, ascending from 0 to 1.
        true_positive_rate: N, of the same thresholds.
        recall: M, descending from 1 to 0.
        precision: M, of the same thresholds.
        average_precision: area under the precision-recall curve, as a sum of steps.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    average_precision: float


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Compares probabilities with observed shares, in bins of equal width; empty bins are left out.

    Args:
        labels: 0 or 1, N.
        probabilities: float in [0, 1], N.
        bins: number of bins.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    places = np.searchsorted(edges[1:-1], probabilities)
    found = []
    for place in np.unique(places):
        chosen = places == place
        count, share = int(chosen.sum()), float(labels[chosen].mean())
        low, high = _wilson(share, count)
        mean = float(probabilities[chosen].mean())
        found.append(Bin(float(edges[place]), float(edges[place + 1]), count, mean, share, low, high))
    return found


def _wilson(share: float, count: int) -> tuple[float, float]:
    square = _NORMAL_95**2 / count
    centre = (share + square / 2) / (1 + square)
    half = np.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def curves(labels: np.ndarray, probabilities: np.ndarray) -> Curves | None:
    """Computes the ROC curve and the precision-recall curve.

    Args:
        labels: 0 or 1, N.
        probabilities: float in [0, 1], N.

    Returns:
        The curves, or None where all labels are the same, so that there are none.
    """
    from sklearn import metrics as sklearn_metrics  # takes long to import

    labels = np.asarray(labels)
    if len(np.unique(labels)) < 2:
        return None
    false_rate, true_rate, _ = sklearn_metrics.roc_curve(labels, probabilities)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, probabilities, drop_intermediate=True)
    average = float(sklearn_metrics.average_precision_score(labels, probabilities))
    return Curves(false_rate, true_rate, recall, precision, average)


def losses_by_clip(labels: np.ndarray, probabilities: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Mean log loss, in nats, if the probabilities were kept so far away from 0 and 1.

    Args:
        labels: 0 or 1, N.
        probabilities: float in [0, 1], N, not clipped.
        clips: float in (0, 0.5), C.

    Returns:
        float64, C.
    """
    right = np.where(np.asarray(labels) == 1, probabilities, 1.0 - np.asarray(probabilities, np.float64))
    return np.array([-np.log(np.clip(right, clip, 1.0 - clip)).mean() for clip in clips])


def cumulative_shares(losses: np.ndarray) -> np.ndarray:
    """Share of the summed loss that the worst 1, 2, … images have: float64 in [0, 1], N.

    Args:
        losses: at least 0, N.
    """
    total = np.cumsum(np.sort(np.asarray(losses, np.float64))[::-1])
    return total / total[-1] if len(total) and total[-1] > 0 else np.zeros(len(total))


def distribution_gap(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The greatest distance between two samples' cumulative distributions (Kolmogorov and Smirnov).

    Args:
        one: float, N, N at least 1.
        other: float, M, M at least 1.

    Returns:
        The distance in [0, 1], and what samples of this size from a single distribution exceed in 5 % of cases.
    """
    one, other = np.sort(one), np.sort(other)
    places = np.concatenate([one, other])
    shares = [np.searchsorted(each, places, side="right") / len(each) for each in (one, other)]
    bound = _SMIRNOV_95 * np.sqrt((len(one) + len(other)) / (len(one) * len(other)))
    return float(np.abs(shares[0] - shares[1]).max()), float(min(1.0, bound))


def uncalibrated(logits: np.ndarray, prior: float) -> np.ndarray:
    """Probabilities before temperature and clip; an unreadable image, whose logit is NaN, has the prior."""
    return np.where(np.isnan(logits), prior, metrics.calibrated(np.nan_to_num(logits)))
