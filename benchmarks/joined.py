"""The features of several networks joined for one logistic head, against a probe of each and the mean of the probes.

    python benchmarks/log_loss.py joined runs/probe-a runs/probe-b …

Each RUN is a finished cross-validation of a linear probe on the same photos and folds; its cached features are read
and nothing is computed again. The head is fitted as a probe's is, its penalty chosen within the training folds.
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import typer

from catdog.cli.display import out
from catdog.errors import UsageError
from catdog.evaluation import metrics
from catdog.experiments import cross_validation
from catdog.experiments.cross_validation import OutOfFold
from catdog.training import feature_cache
from catdog.training.recipes import get_recipe


def join(probes: list[OutOfFold]) -> OutOfFold:
    """Fits one head to the features of all probes, fold by fold.

    Args:
        probes: of the same photos and folds.

    Returns:
        Its predictions, the mean of the views' logits.
    """
    started, first = time.monotonic(), probes[0]
    seen = []
    for view in get_recipe("linear-probe").options["views"]:
        read = [feature_cache.read_features(probe.features, first.keys, view) for probe in probes]
        if any(len(at) != len(first.keys) for _, at in read):
            raise UsageError(f"a cache lacks features of {view}; expected a photo's features of every network")
        seen.append(np.concatenate([features for features, _ in read], axis=1))
    logits = np.empty(len(first.keys))
    for fold in np.unique(first.folds):
        rest, held_out = first.folds != fold, first.folds == fold
        weights, bias = feature_cache.fit_logistic([view[rest] for view in seen], first.labels[rest])
        logits[held_out] = np.mean([(view[held_out] @ weights + bias)[:, 0] for view in seen], axis=0)
    return OutOfFold("joined", first.keys, first.labels, first.folds, logits, time.monotonic() - started)


def main(runs: Annotated[list[str], typer.Argument(help="Finished cross-validations of linear probes.")]) -> None:
    """Compares one head for all networks with a head for each."""
    probes = [cross_validation.read_out_of_fold(run) for run in runs]
    mean, joined = cross_validation.average_out_of_fold(probes), join(probes)
    out.print("| | log loss (95 % interval) | accuracy | better than the mean of the probes by |")
    out.print("|---|---|---|---|")
    for name, each in [*zip(runs, probes, strict=True), ("mean of the probes", mean), ("one head", joined)]:
        gain, figures = mean.losses - each.losses, each.figures
        low, high = metrics.difference_interval(gain)
        out.print(
            f"| {name} | {figures.log_loss:.4f} ({figures.log_loss_low:.4f} to {figures.log_loss_high:.4f}) | "
            f"{figures.accuracy:.4f} | {gain.mean():+.4f} ({low:+.4f} to {high:+.4f}) |",
            markup=False,
        )
