"""Every figure against another implementation of it."""

import numpy as np
import pytest
import scipy.special
from sklearn import metrics as sklearn_metrics

from catdog.evaluation import metrics


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
    assert summary.log_loss == pytest.approx(sklearn_metrics.log_loss(labels, probabilities), rel=1e-12)
    assert summary.accuracy == sklearn_metrics.accuracy_score(labels, probabilities > 0.5)
    assert summary.brier_score == pytest.approx(sklearn_metrics.brier_score_loss(labels, probabilities))
    assert summary.roc_auc == pytest.approx(sklearn_metrics.roc_auc_score(labels, probabilities))
    right = summary.true_negative + summary.true_positive
    assert right == round(summary.accuracy * 600)
    assert summary.false_positive == int(((probabilities > 0.5) & (labels == 0)).sum())
    assert summary.n == 600


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


def predictions(kind: str, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of a model that is right about 985 times in 1,000."""
    temperature, clip, noise = {"calibrated": (1, 1e-6, 0), "overconfident": (2, 1e-4, 0), "noise": (1, 3e-3, 4e-3)}[
        kind
    ]
    honest = random.choice([-1, 1], count) * random.normal(7, 3, count)
    labels = (random.random(count) < scipy.special.expit(honest)) ^ (random.random(count) < noise)
    return labels.astype(int), metrics.calibrated(honest * temperature, clip=clip)


@pytest.mark.parametrize("kind", ["calibrated", "overconfident", "noise"])
def test_the_interval_of_a_log_loss_covers_it_where_mistakes_are_few(kind: str) -> None:
    random = np.random.default_rng(0)
    true = metrics.losses(*predictions(kind, 2_000_000, random)).mean()
    for count in (100, 250, 1000, 5000):
        sets = [predictions(kind, count, random) for _ in range(600)]
        intervals = np.array([metrics.loss_interval(*each) for each in sets])
        covered = ((intervals[:, 0] <= true) & (true <= intervals[:, 1])).mean()
        assert covered > 0.93, count
        if count == 100:
            # The percentile bootstrap, which this replaced, is why there must be more to it.
            each = np.array([metrics.losses(*one) for one in sets[:200]])
            means = np.stack([each[:, random.integers(0, count, count)].mean(axis=1) for _ in range(500)])
            low, high = np.quantile(means, [0.025, 0.975], axis=0)
            assert ((low <= true) & (true <= high)).mean() < 0.90
        if count == 5000:
            # With many images there is nothing to be wide about.
            normal = [2 * 1.96 * metrics.losses(*one).std() / count**0.5 for one in sets]
            assert np.median(intervals[:, 1] - intervals[:, 0]) < 1.08 * np.median(normal)


def test_the_interval_of_a_difference_covers_it_and_may_be_negative() -> None:
    random = np.random.default_rng(1)

    def differences(count: int) -> np.ndarray:
        labels, probabilities = predictions("calibrated", count, random)
        logits = scipy.special.logit(probabilities)
        one, other = (metrics.calibrated(logits + random.normal(0, wild, count), clip=2e-3) for wild in (2, 3))
        return metrics.losses(labels, one) - metrics.losses(labels, other)

    true = differences(2_000_000).mean()
    assert true < 0
    for count in (100, 250, 1000):
        intervals = np.array([metrics.difference_interval(differences(count)) for _ in range(600)])
        assert ((intervals[:, 0] <= true) & (true <= intervals[:, 1])).mean() > 0.94, count
    assert metrics.difference_interval(np.zeros(5)) == (0, 0)
    low, high = metrics.difference_interval(-differences(1000))
    assert 0 < low < -true * 2 < 2 * high


def test_one_class_has_no_roc_auc_and_nothing_no_summary() -> None:
    assert metrics.summarise(np.array([1, 1]), np.array([0.7, 0.9])).roc_auc is None
    alone = metrics.summarise(np.array([1]), np.array([0.9]))
    assert 0 <= alone.log_loss_low < alone.log_loss < alone.log_loss_high < np.inf
    with pytest.raises(ValueError, match="expected at least one"):
        metrics.summarise(np.array([]), np.array([]))


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.93])
def test_a_probability_is_that_of_its_logit(probability: float) -> None:
    assert metrics.calibrated(np.array([metrics.logit(probability)]))[0] == pytest.approx(probability, abs=1e-15)
