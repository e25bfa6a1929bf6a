"""Diagnostics against scikit-learn and SciPy, and on sets for which there is nothing to compute."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats
from sklearn import calibration as sklearn_calibration
from sklearn import metrics as sklearn_metrics

from catdog.evaluation import diagnostics, metrics


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of an overconfident model."""
    random = np.random.default_rng(3)
    honest = random.normal(0, 2, 500)
    return (random.random(500) < special.expit(honest)).astype(int), special.expit(1.7 * honest)


def test_bins_are_those_of_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scored
    probabilities[:3] = 0.0, 1.0, 0.1  # the ends belong to the outer bins
    found = diagnostics.reliability(labels, probabilities)
    observed, predicted = sklearn_calibration.calibration_curve(labels, probabilities, n_bins=10)
    assert [each.observed for each in found] == pytest.approx(observed)
    assert [each.predicted for each in found] == pytest.approx(predicted)
    assert sum(each.n for each in found) == 500
    for each in found:
        interval = stats.binomtest(round(each.observed * each.n), each.n).proportion_ci(0.95, "wilson")
        assert (each.low, each.high) == pytest.approx((interval.low, interval.high), abs=1e-5)


def test_empty_bins_are_left_out() -> None:
    found = diagnostics.reliability(np.array([0, 1]), np.array([0.05, 0.95]))
    assert [(each.start, each.n) for each in found] == [(0.0, 1), (pytest.approx(0.9), 1)]
    assert diagnostics.reliability(np.array([1]), np.array([0.5]))[0].observed == 1.0


def test_curves_have_scikit_learns_areas(scored: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scored
    found = diagnostics.curves(labels, probabilities)
    assert found is not None
    area = np.trapezoid(found.true_positive_rate, found.false_positive_rate)
    assert area == pytest.approx(sklearn_metrics.roc_auc_score(labels, probabilities))
    steps = -np.sum(np.diff(found.recall) * found.precision[:-1])
    assert steps == pytest.approx(found.average_precision, abs=1e-3)
    assert diagnostics.curves(np.ones(5, int), np.linspace(0, 1, 5)) is None


def test_clips_cost_what_scikit_learn_says(scored: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scored
    clips = np.array([1e-4, 0.01, 0.2])
    expected = [sklearn_metrics.log_loss(labels, np.clip(probabilities, clip, 1 - clip)) for clip in clips]
    assert diagnostics.losses_by_clip(labels, probabilities, clips) == pytest.approx(expected)


def test_shares_of_the_worst_images() -> None:
    assert diagnostics.cumulative_shares(np.array([1.0, 6.0, 3.0])) == pytest.approx([0.6, 0.9, 1.0])
    assert diagnostics.cumulative_shares(np.zeros(2)).tolist() == [0.0, 0.0]
    assert diagnostics.cumulative_shares(np.array([])).tolist() == []


def test_the_gap_is_scipys_and_its_bound_is_kept_by_chance() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(0, 1, 300).round(1), random.normal(0.3, 1, 200).round(1)
    gap, bound = diagnostics.distribution_gap(one, other)
    assert gap == pytest.approx(stats.ks_2samp(one, other).statistic)
    assert stats.kstwobign.sf(bound * np.sqrt(300 * 200 / 500)) == pytest.approx(0.05, abs=1e-4)
    assert diagnostics.distribution_gap(np.array([0.5]), np.array([0.5])) == (0.0, 1.0)


def test_an_unreadable_image_has_the_prior() -> None:
    found = diagnostics.uncalibrated(np.array([np.nan, 2.0]), 0.3)
    assert found == pytest.approx([0.3, metrics.calibrated(np.array([2.0]))[0]])
