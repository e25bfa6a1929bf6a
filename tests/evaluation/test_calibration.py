"""Temperature and clip against scikit-learn's log loss and SciPy's minimiser."""

from __future__ import annotations

import numpy as np
from scipy import optimize, special
from sklearn import metrics as sklearn_metrics

from catdog.evaluation import calibration, metrics


def overconfident(count: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits that are `temperature` times as certain as they should be."""
    random = np.random.default_rng(seed)
    honest = random.normal(0, 2, count)
    return (random.random(count) < special.expit(honest)).astype(int), honest * temperature


def test_temperature_is_the_one_of_least_log_loss() -> None:
    labels, logits = overconfident(4000, 2.0)
    best = optimize.minimize_scalar(
        lambda t: sklearn_metrics.log_loss(labels, special.expit(logits / t)), bounds=(0.5, 4), method="bounded"
    )
    temperature, _ = calibration.fit_calibration(labels, logits)
    assert abs(temperature / best.x - 1) < 0.03


def test_temperature_and_clip_are_the_most_probable_ones() -> None:
    """Few images, so that the prior counts."""
    labels, logits = overconfident(150, 2.0)

    def unlikely(x: np.ndarray, spread: float = 0.1) -> float:
        clip = np.exp(x[1])
        probabilities = np.clip(special.expit(logits / np.exp(x[0])), clip, 1 - clip)
        loss = sklearn_metrics.log_loss(labels, probabilities, normalize=False)
        return float(loss + (x[0] / spread) ** 2 / 2 - 0.25 * x[1])

    best = optimize.brute(unlikely, ((0.0, 1.0), (np.log(1e-5), np.log(0.02))), Ns=30, finish=None, full_output=True)
    found = calibration.fit_calibration(labels, logits, spread=0.1)
    assert unlikely(np.log(found)) < best[1] + 0.05
    assert found[0] < 0.9 * calibration.fit_calibration(labels, logits, spread=np.inf)[0]


def test_a_few_hundred_images_do_not_spoil_a_model_that_is_calibrated_already() -> None:
    """A hundred certain and right predictions, and a few doubtful ones, say little of the next mistake."""
    fitted, plain, free = [], [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        honest = random.normal(0, 8, 10_300)
        labels = (random.random(10_300) < special.expit(honest)).astype(int)
        few, new = slice(0, 300), slice(300, None)
        plain.append(sklearn_metrics.log_loss(labels[new], special.expit(honest[new])))
        for losses, prior in ((fitted, {}), (free, {"spread": np.inf, "mistakes": 1})):
            found = calibration.fit_calibration(labels[few], honest[few], **prior)
            losses.append(sklearn_metrics.log_loss(labels[new], metrics.calibrated(honest[new], *found)))
    assert np.mean(fitted) - np.mean(plain) < 0.6 * (np.mean(free) - np.mean(plain))
    assert np.max(fitted) < np.max(free)


def test_clip_follows_the_share_of_certain_mistakes() -> None:
    labels = np.arange(2000) % 2
    logits = np.where(labels == 1, 20.0, -20.0)
    # A quarter of a mistake is always reckoned with, beside those that are there.
    for wrong, mistakes, expected in ((0, 0.25, 0.25 / 2000.25), (8, 0.25, 8.25 / 2000.25), (0, 1, 1 / 2001)):
        flipped = labels.copy()
        flipped[:wrong] = 1 - flipped[:wrong]
        _, clip = calibration.fit_calibration(flipped, logits, mistakes=mistakes)
        assert expected / 1.3 < clip < expected * 1.3


def test_cross_fitting_never_uses_a_fold_for_itself() -> None:
    labels, logits = overconfident(600, 1.7)
    folds = np.arange(600) % 3
    before = calibration.cross_fitted(labels, logits, folds)
    turned = np.where((folds == 1) & (np.arange(600) < 60), 1 - labels, labels)
    after = calibration.cross_fitted(turned, logits, folds)
    assert (before[folds == 1] == after[folds == 1]).all()
    assert not np.allclose(before[folds == 0], after[folds == 0])
    raw = sklearn_metrics.log_loss(labels, special.expit(logits))
    assert metrics.losses(labels, before).mean() < raw - 0.01


def test_models_calibrated_together_beat_the_mean_of_their_own() -> None:
    """Two models that err on different images: their mean is less certain than either of them, and rightly so."""
    together, apart = [], []
    for seed in range(8):
        random = np.random.default_rng(seed)
        labels, honest = overconfident(6000, 1.0, seed)
        each = np.stack([honest + random.normal(0, 2, 6000) for _ in range(2)])
        fitted, new = slice(0, 2000), slice(2000, None)
        own = np.array([calibration.fit_calibration(labels[fitted], logits[fitted]) for logits in each])
        mean = each.mean(axis=0)
        for found, (temperature, clip) in (
            (together, calibration.fit_calibration(labels[fitted], mean[fitted])),
            (apart, (np.exp(np.log(own[:, 0]).mean()), own[:, 1].mean())),
        ):
            found.append(sklearn_metrics.log_loss(labels[new], metrics.calibrated(mean[new], temperature, clip)))
    assert np.mean(together) < np.mean(apart) - 0.003


def test_halves_are_even_and_always_the_same() -> None:
    keys = [f"cat.{n}" for n in range(101)]
    half = calibration.halves(keys)
    assert sorted(np.bincount(half)) == [50, 51]
    assert (calibration.halves(keys) == half).all()
