"""What temperature and clip are worth when they are fitted on few photos, as a run's own validation split has.

    python benchmarks/log_loss.py calibration [--times 1.6] runs/a runs/b …

Each RUN is a finished cross-validation. Both are fitted on a part of one fold, drawn at random again and again, and
judged on all the other folds.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import numpy as np
import typer

from catdog.cli.display import out
from catdog.evaluation import calibration, metrics
from catdog.experiments import cross_validation
from catdog.experiments.cross_validation import OutOfFold

# Photos to fit on, and draws of so many from each fold.
SIZES = {300: 10, 900: 8, 2000: 1}
PRIORS: dict[str, dict[str, Any]] = {
    "no prior, one mistake": {"spread": np.inf, "mistakes": 1},
    "no prior, 1/4 mistake": {"spread": np.inf},
    "spread 0.1, 1/4 mistake": {"spread": 0.1},
    "spread 0.2, 1/4 mistake": {},
    "spread 0.2, 1/10 mistake": {"mistakes": 0.1},
}


def judge(run: OutOfFold, size: int, draws: int, prior: dict[str, Any]) -> float:
    """Mean log loss of the folds that calibrated nothing.

    Args:
        run: predictions out of fold.
        size: photos to fit on.
        draws: from each fold.
        prior: arguments of `fit_calibration`.
    """
    random, losses = np.random.default_rng(0), []
    for fold in np.unique(run.folds):
        (own,), others = np.nonzero(run.folds == fold), run.folds != fold
        for _ in range(draws):
            few = random.permutation(own)[:size]
            found = calibration.fit_calibration(run.labels[few], run.logits[few], **prior)
            judged = metrics.calibrated(run.logits[others], *found)
            losses.append(metrics.losses(run.labels[others], judged).mean())
    return float(np.mean(losses))


def main(
    runs: Annotated[list[str], typer.Argument(help="Finished cross-validations; and their mean.")],
    times: Annotated[float, typer.Option(help="Multiply the logits; above 1 as if the models were overconfident.")] = 1,
) -> None:
    """Fits temperature and clip on few photos, by several priors."""
    read = [cross_validation.read_out_of_fold(run) for run in runs]
    found = [dataclasses.replace(run, logits=times * run.logits) for run in read]
    if len(found) > 1:
        found.append(cross_validation.average_out_of_fold(found))
    out.print(f"| run | photos | not calibrated | {' | '.join(PRIORS)} |")
    out.print("|---" * (3 + len(PRIORS)) + "|")
    for run in found:
        plain = metrics.losses_from_logits(run.labels, run.logits).mean()
        for size, draws in SIZES.items():
            cells = [f"{judge(run, size, draws, prior):.4f}" for prior in PRIORS.values()]
            out.print(f"| {run.name} | {size} | {plain:.4f} | {' | '.join(cells)} |", markup=False)
