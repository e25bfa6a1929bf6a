"""When a checkpoint within an epoch is due: every few minutes, and when a node is about to be taken away."""

from __future__ import annotations

import time

import numpy as np
import ray.train

from catdog.training.distributed import WorkerGroup

# Steps after which the workers agree on whether a checkpoint is due, and seconds between questions about preemption:
# Ray hears of it up to 5 s late, and there may be 30 s in all (RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S).
_STEPS, _ASK_SECONDS = 8, 2.0


class CheckpointClock:
    """Tells when a checkpoint within an epoch is due, the same to all workers."""

    def __init__(self, minutes: float, group: WorkerGroup) -> None:
        """Starts the clock.

        Args:
            minutes: between checkpoints.
            group: the workers; the one of rank 0 has the clock.
        """
        self._seconds, self._group = 60 * minutes, group
        self._last = self._asked = time.monotonic()
        self._notice: object = None

    def restart(self) -> None:
        """Takes note of a checkpoint."""
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Tells whether a checkpoint is due after a step; to be called in every worker after each step.

        It is due after so many minutes, and once when a node is about to be taken away.
        """
        if step % _STEPS:
            return False
        now = time.monotonic()
        wishes = np.array([now - self._last >= self._seconds, now - self._asked >= _ASK_SECONDS], np.int64)
        due, asks = self._group.gather(wishes)[0]
        if asks:
            self._asked = now
            notice = ray.train.get_preemption_info()
            due = due or (notice is not None and notice != self._notice)
            self._notice = notice
        return bool(due)
