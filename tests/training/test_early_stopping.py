"""Early stopping: when a run ends, and which epoch it keeps."""

from __future__ import annotations

from typing import Literal

import pytest

from catdog.training.checkpoint import Progress
from catdog.training.early_stopping import EarlyStopping

LOSSES = [0.6, 0.5, 0.55, 0.5, 0.52, 0.4, 0.3]


@pytest.mark.parametrize(
    ("keep", "patience", "epochs", "ran", "kept"),
    [
        ("best", 2, 7, 4, 2),  # an equal loss is not a better one
        ("best", 4, 7, 7, 7),
        ("best", 4, 5, 5, 2),
        ("last", 1, 5, 5, 5),
        ("last", 1, 0, 0, 0),
    ],
)
def test_a_run_ends_at_its_last_epoch_or_when_patience_runs_out(
    keep: Literal["best", "last"], patience: int, epochs: int, ran: int, kept: int
) -> None:
    stopping, progress = EarlyStopping(epochs, keep, patience), Progress()
    while not stopping.is_over(progress):
        loss = LOSSES[progress.epoch]
        better = stopping.is_kept(progress, loss)
        progress.epoch += 1
        if better:
            progress.best_epoch, progress.best_log_loss = progress.epoch, loss
    assert (progress.epoch, progress.best_epoch) == (ran, kept)
