"""Log loss of a choice that did not judge itself: by simulation, and against a choice written out."""

from __future__ import annotations

import numpy as np
from scipy import special
from sklearn import metrics as sklearn_metrics

from catdog.evaluation import calibration, selection


def epochs(count: int, candidates: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, and logits of models that are all worth the same but err on different images."""
    random = np.random.default_rng(seed)
    honest = random.normal(0, 2, count)
    labels = (random.random(count) < special.expit(honest)).astype(int)
    return labels, honest + random.normal(0, 1, (candidates, count)), [f"{seed}/{n}.jpg" for n in range(count)]


def test_the_best_of_many_looks_better_than_it_is_and_is_not_when_halves_judge() -> None:
    best, judged, true = [], [], []
    for seed in range(60):
        labels, logits, keys = epochs(200, 30, seed)
        each = [sklearn_metrics.log_loss(labels, special.expit(one)) for one in logits]
        best.append(min(each))
        true.append(np.mean(each))
        judged.append(selection.judge_selection(labels, logits, keys, calibrated=False).log_loss)
    assert np.mean(best) < np.mean(true) - 0.03
    assert abs(np.mean(judged) - np.mean(true)) < 0.006


def test_each_half_is_judged_by_what_the_other_chose_and_calibrated() -> None:
    labels, logits, keys = epochs(400, 6, 1)
    half = calibration.halves(keys)
    for calibrated in (False, True):
        found = selection.judge_selection(labels, logits, keys, calibrated)
        for number, other in ((0, 1), (1, 0)):
            scores = [
                sklearn_metrics.log_loss(labels[half == other], special.expit(one[half == other])) for one in logits
            ]
            best = logits[int(np.argmin(scores))]
            probabilities = special.expit(best[half == number])
            if calibrated:
                temperature, clip = calibration.fit_calibration(labels[half == other], best[half == other])
                probabilities = np.clip(special.expit(best[half == number] / temperature), clip, 1 - clip)
            assert np.isclose(found.halves[number], sklearn_metrics.log_loss(labels[half == number], probabilities))
            assert found.chosen[number] == np.argmin(scores)
        assert np.isclose(found.log_loss, np.mean(found.halves))
