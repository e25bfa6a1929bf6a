"""Early stopping: when a run is over, and which epoch's weights it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from catdog.choices import Keep
from catdog.training.checkpoint import Progress


@dataclass(frozen=True)
class EarlyStopping:
    """The rules of one run.

    Attributes:
        epochs: at most this many.
        keep: the epoch of the "best" validation log loss, or the "last".
        patience: stop after this many epochs without a better one; for `keep` "best".
    """

    epochs: int
    keep: Keep
    patience: int

    def is_over(self, progress: Progress) -> bool:
        """Tells whether no further epoch is to be trained."""
        impatient = self.keep == "best" and progress.epoch - progress.best_epoch >= self.patience
        return progress.epoch >= self.epochs or impatient

    def is_kept(self, progress: Progress, log_loss: float) -> bool:
        """Tells whether an epoch's weights replace those that were kept so far.

        Args:
            progress: of the epochs before.
            log_loss: of the epoch's validation, in nats.
        """
        return self.keep == "last" or log_loss < progress.best_log_loss
