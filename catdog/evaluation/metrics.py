"""Metrics of predictions: log loss with its interval, accuracy, ROC AUC, Brier score, confusion; pure functions.

Labels are 0 or 1, probabilities are of label 1. Logits are turned into probabilities in one place, here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Figures:
    """Metrics of one set of predictions.

    Attributes:
        n: number of images, at least 1.
        log_loss: mean, in nats.
        log_loss_low: low end of its 95 % interval (`loss_interval`).
        log_loss_high: high end of it.
        accuracy: share of images on the right side of 0.5.
        roc_auc: area under the ROC curve; None where all images are of one class.
        brier_score: mean squared error of the probabilities.
        true_negative: images of label 0 that were taken for label 0, at 0.5.
        false_positive: images of label 0 that were taken for label 1.
        false_negative: images of label 1 that were taken for label 0.
        true_positive: images of label 1 that were taken for label 1.
    """

    n: int
    log_loss: float
    log_loss_low: float
    log_loss_high: float
    accuracy: float
    roc_auc: float | None
    brier_score: float
    true_negative: int
    false_positive: int
    false_negative: int
    true_positive: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Figures by name, in the order of the report's JSON."""
        return dataclasses.asdict(self)


def calibrated(logits: np.ndarray, temperature: float = 1.0, clip: float = 0.0) -> np.ndarray:
    """Turns logits into probabilities: sigmoid(logit / temperature), kept `clip` away from 0 and 1.

    Args:
        logits: float, N.
        temperature: above 0; greater is less certain.
        clip: in [0, 0.5).

    Returns:
        float64 in [clip, 1 - clip], N.
    """
    scaled = np.asarray(logits, np.float64) / temperature
    # exp of a negative number only, so that no logit overflows.
    small = np.exp(-np.abs(scaled))
    probabilities = np.where(scaled >= 0, 1.0, small) / (1.0 + small)
    return np.clip(probabilities, clip, 1.0 - clip)


def logit(probability: float) -> float:
    """The logit of a probability in (0, 1), such as of a prior: the logarithm of its odds."""
    return float(np.log(probability / (1 - probability)))


def losses_from_logits(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Log loss of each prediction in nats, exact for logits of any size.

    Args:
        labels: 0 or 1, N.
        logits: float, N.

    Returns:
        float64, N.
    """
    logits = np.asarray(logits, np.float64)
    return np.logaddexp(0.0, logits) - logits * np.asarray(labels, np.float64)


def losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Log loss of each prediction in nats, infinite for a certain mistake.

    Args:
        labels: 0 or 1, N.
        probabilities: float in [0, 1], N.

    Returns:
        float64, N.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    with np.errstate(divide="ignore"):
        return -np.log(np.where(labels == 1, probabilities, 1.0 - probabilities))


def loss_interval(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean log loss, also where there are few mistakes.

    A model that errs on 1 in 100 images makes two or three mistakes in 250, or none by luck, and nearly all of its loss
    is in them. An interval computed from the losses alone (the percentile bootstrap, BCa, bootstrap-t) then misses the
    true mean too often, always by calling the model too good. But the predictions also say what a mistake would have
    cost. So the high end is that of the normal interval with one more image added, whose loss is the mean loss of all
    images if they were wrong. This is wider, and with one or two mistakes much wider. The low end is that of the normal
    interval of the mean's logarithm, since losses are skewed.

    Coverage in 2,000 simulated sets each (six kinds of models: well calibrated, overconfident, with wrong labels):
    97 to 98 % at n = 100 and 96 to 98 % at 250, where the percentile bootstrap has 65 to 94 % and 77 to 94 %;
    94 to 97 % at 1,000, 94 to 96 % at 2,500 and 95 % at 5,000.

    Args:
        labels: 0 or 1, N, N at least 1.
        probabilities: float in (0, 1), N.

    Returns:
        The interval's low and high end, in nats.
    """
    values = losses(labels, probabilities)
    mean, count = values.mean(), len(values)
    low = 0.0
    if count > 1 and mean > 0:
        low = mean * np.exp(-_NORMAL_95 * values.std(ddof=1) / np.sqrt(count) / mean)
    mistake = np.maximum(losses(np.zeros(count), probabilities), losses(np.ones(count), probabilities)).mean()
    more = np.append(values, mistake)
    return float(low), float(more.mean() + _NORMAL_95 * more.std(ddof=1) / np.sqrt(count + 1))


def difference_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean paired difference, such as of two models' losses on the same images.

    The normal interval, its variance as if one more image differed by the greatest difference seen, either way: where
    few images make the difference, one more or less of them changes it much. In 400 simulated sets each it covers 97 to
    99 % at n = 100, 95 to 98 % at 250 and 95 to 96 % at 1,000; the percentile bootstrap 89 to 90 %, 92 to 94 % and
    94 to 95 %, BCa and bootstrap-t less.

    Args:
        values: float, N, N at least 1.

    Returns:
        The interval's low and high end, in the values' unit.
    """
    values = np.asarray(values, np.float64)
    mean = values.mean()
    error = np.sqrt(((values - mean) ** 2).sum() + np.abs(values).max() ** 2) / len(values)
    return float(mean - _NORMAL_95 * error), float(mean + _NORMAL_95 * error)


def summarise(labels: np.ndarray, probabilities: np.ndarray) -> Figures:
    """Computes every figure that follows from labels and probabilities.

    Args:
        labels: 0 or 1, N, N at least 1.
        probabilities: float in [0, 1], N.

    Raises:
        ValueError: there are no labels.
    """
    # Here, because it takes longer to import than all else that scoring needs.
    from sklearn import metrics as sklearn_metrics

    labels, probabilities = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    if not len(labels):
        raise ValueError("received no labels, expected at least one")
    each = losses(labels, probabilities)
    low, high = loss_interval(labels, probabilities)
    predicted = probabilities > 0.5
    confusion = sklearn_metrics.confusion_matrix(labels, predicted, labels=[0, 1])
    both = 0 < labels.sum() < len(labels)
    return Figures(
        n=len(labels),
        log_loss=float(each.mean()),
        log_loss_low=low,
        log_loss_high=high,
        accuracy=float((predicted == labels).mean()),
        roc_auc=float(sklearn_metrics.roc_auc_score(labels, probabilities)) if both else None,
        brier_score=float(((probabilities - labels) ** 2).mean()),
        true_negative=int(confusion[0, 0]),
        false_positive=int(confusion[0, 1]),
        false_negative=int(confusion[1, 0]),
        true_positive=int(confusion[1, 1]),
    )
