"""Every figure against somebody else's implementation of it."""

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sklearn_metrics

from catdog import metrics


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    labels = random.integers(0, 2, 600)
    logits = random.normal(0, 2, 600) + 3 * (labels - 0.5)
    return labels, logits


def test_summary_agrees_with_scikit_learn(scores: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = scores
    probabilities = metrics.calibrated(logits, clip=1e-6)
    summary = metrics.summarise(labels, probabilities)
    assert summary["log_loss"] == pytest.approx(sklearn_metrics.log_loss(labels, probabilities), rel=1e-12)
    assert summary["accuracy"] == sklearn_metrics.accuracy_score(labels, probabilities > 0.5)
    assert summary["brier_score"] == pytest.approx(sklearn_metrics.brier_score_loss(labels, probabilities))
    assert summary["roc_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, probabilities))
    right = summary["true_negative"] + summary["true_positive"]
    assert right == round(summary["accuracy"] * 600)
    assert summary["false_positive"] == int(((probabilities > 0.5) & (labels == 0)).sum())
    assert summary["n"] == 600


def test_calibration_is_the_sigmoid_at_any_size() -> None:
    logits = np.array([-800.0, -3.0, 0.0, 3.0, 800.0])
    assert metrics.calibrated(logits) == pytest.approx([0, 1 / (1 + np.exp(3)), 0.5, 1 / (1 + np.exp(-3)), 1])
    assert metrics.calibrated(logits, clip=0.01).tolist()[0::4] == [0.01, 0.99]
    assert metrics.calibrated(logits, temperature=2.0)[3] == pytest.approx(1 / (1 + np.exp(-1.5)))


def test_losses_from_logits_and_from_probabilities_agree(scores: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = scores
    plain = metrics.losses_from_logits(labels, logits)
    assert plain == pytest.approx(metrics.losses(labels, metrics.calibrated(logits)))
    assert metrics.losses_from_logits(np.array([0]), np.array([1000.0])) == [1000.0]
    assert metrics.losses(np.array([1]), np.array([0.0])) == [np.inf]


def test_the_bootstrap_interval_agrees_with_scipy(scores: tuple[np.ndarray, np.ndarray]) -> None:
    values = metrics.losses_from_logits(*scores)
    ours = metrics.bootstrap_interval(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.06 * spread)
    assert metrics.bootstrap_interval(values) == ours


def test_one_class_has_no_roc_auc_and_nothing_no_summary() -> None:
    assert metrics.summarise(np.array([1, 1]), np.array([0.7, 0.9]))["roc_auc"] is None
    with pytest.raises(ValueError, match="expected at least one"):
        metrics.summarise(np.array([]), np.array([]))
