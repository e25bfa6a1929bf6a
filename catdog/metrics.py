"""What a prediction is worth: log loss with its interval, accuracy, ROC AUC, Brier score, confusion; pure functions.

Labels are 0 or 1, probabilities are of label 1. Logits are turned into probabilities in one place, here.
"""

from __future__ import annotations

import numpy as np

BOOTSTRAP_ROUNDS = 2000
_CHUNK = 4_000_000


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


def bootstrap_interval(
    values: np.ndarray, rounds: int = BOOTSTRAP_ROUNDS, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean (Efron and Tibshirani, 1993, chapter 13).

    Args:
        values: float, N.
        rounds: how many resamples of N values are drawn.
        level: coverage, in (0, 1).
        seed: of the resampling.

    Returns:
        The interval's low and high end.
    """
    values = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    block = max(1, _CHUNK // len(values))
    means = np.concatenate(
        [
            values[random.integers(0, len(values), (min(block, rounds - start), len(values)))].mean(axis=1)
            for start in range(0, rounds, block)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | int | None]:
    """Every figure of the validation report that follows from labels and probabilities.

    Args:
        labels: 0 or 1, N, N at least 1.
        probabilities: float in [0, 1], N.

    Returns:
        n, log_loss with log_loss_low and log_loss_high (95 % bootstrap), accuracy, roc_auc (None with one class
        only), brier_score, and the confusion matrix at 0.5 as true_negative, false_positive, false_negative,
        true_positive.

    Raises:
        ValueError: nothing to summarise.
    """
    # Here, because it takes longer to import than all else that scoring needs.
    from sklearn import metrics as sklearn_metrics

    labels, probabilities = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    if not len(labels):
        raise ValueError("received no labels, expected at least one")
    each = losses(labels, probabilities)
    low, high = bootstrap_interval(each)
    predicted = probabilities > 0.5
    confusion = sklearn_metrics.confusion_matrix(labels, predicted, labels=[0, 1])
    both = 0 < labels.sum() < len(labels)
    return {
        "n": len(labels),
        "log_loss": float(each.mean()),
        "log_loss_low": low,
        "log_loss_high": high,
        "accuracy": float((predicted == labels).mean()),
        "roc_auc": float(sklearn_metrics.roc_auc_score(labels, probabilities)) if both else None,
        "brier_score": float(((probabilities - labels) ** 2).mean()),
        "true_negative": int(confusion[0, 0]),
        "false_positive": int(confusion[0, 1]),
        "false_negative": int(confusion[1, 0]),
        "true_positive": int(confusion[1, 1]),
    }
