"""A training run's checkpoints: all that going on needs, and the best weights so far."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray.train

Precision = Literal["float32", "bfloat16", "float16"]
_PROGRESS_NAME, _LOGITS_NAME, _MOVING_NAME = "progress.json", "valid-logits.npz", "moving.npz"


@dataclass
class Progress:
    """Progress of a run; with the variables, all that resuming needs.

    Attributes:
        epoch: how many are done.
        best_epoch: the one that is kept.
        best_log_loss: its validation log loss.
        history: the figures of each epoch.
        precision: of the matrix products, which decides the bits of what follows. None at the start, and in a
            checkpoint that held none.
        valid_logits: float32, N, of each epoch, in the order of the validation split. None are of epochs before a
            checkpoint that held none.
        step: how many steps of the next epoch are done.
        losses: of these steps, of each worker's images, in nats.
        spent: seconds that they took.
        moving: float64, workers × M: each worker's statistics of batch-norm after them, which differ within an epoch.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_log_loss: float = float("inf")
    history: list[dict[str, Any]] = field(default_factory=list)
    precision: Precision | None = None
    valid_logits: list[np.ndarray] = field(default_factory=list)
    step: int = 0
    losses: list[list[float]] = field(default_factory=list)
    spent: float = 0.0
    moving: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    def begin_epoch(self) -> None:
        """Forgets the steps of the epoch that has ended."""
        self.step, self.losses, self.spent, self.moving = 0, [], 0.0, np.empty((0, 0))


def variable_values(model: Any) -> list[np.ndarray]:
    """Copies of all variables of a Keras model or optimizer, in its order."""
    return [np.asarray(variable).copy() for variable in model.variables]


def assign_variables(model: Any, arrays: list[np.ndarray]) -> None:
    """Puts arrays, in the order of `variable_values`, into a Keras model's or optimizer's variables."""
    for variable, value in zip(model.variables, arrays, strict=True):
        variable.assign(value)


def saved_precision() -> Precision | None:
    """The precision in Ray Train's latest checkpoint, by which the model is built that takes the rest of it.

    Returns:
        None without a checkpoint; float32 for one that does not say, since GPUs knew no other then.
    """
    latest = ray.train.get_checkpoint()
    if latest is None:
        return None
    with latest.filesystem.open_input_stream(f"{latest.path}/{_PROGRESS_NAME}") as file:
        return json.loads(file.read()).get("precision") or "float32"


def restore_checkpoint(model: Any, optimizer: Any) -> tuple[Progress, list[np.ndarray]]:
    """Puts what Ray Train's latest checkpoint holds into the model and its optimizer; the same in every worker.

    Args:
        model: of Keras, built.
        optimizer: of Keras, built.

    Returns:
        Where the run stands, and the best values so far. Without a checkpoint: at the start, the model's own values.
    """
    latest = ray.train.get_checkpoint()
    if latest is None:
        return Progress(), variable_values(model)
    with latest.as_directory() as folder:
        progress = Progress(**json.loads((Path(folder) / _PROGRESS_NAME).read_text()))
        with np.load(Path(folder) / "variables.npz", allow_pickle=False) as saved:
            for at, variable in enumerate([*model.variables, *optimizer.variables]):
                variable.assign(saved[f"v{at}"])
        with np.load(Path(folder) / "best.npz", allow_pickle=False) as saved:
            best = [saved[f"v{at}"] for at in range(len(model.variables))]
        if (Path(folder) / _LOGITS_NAME).exists():
            with np.load(Path(folder) / _LOGITS_NAME, allow_pickle=False) as saved:
                progress.valid_logits = [saved[f"v{at}"] for at in range(len(saved.files))]
        if (Path(folder) / _MOVING_NAME).exists():
            with np.load(Path(folder) / _MOVING_NAME, allow_pickle=False) as saved:
                progress.moving = saved["v0"]
    return progress, best


def report_checkpoint(progress: Progress, model: Any, optimizer: Any, best: list[np.ndarray], rank: int) -> None:
    """Hands Ray Train a checkpoint: to be called in every worker; the one of rank 0 makes it.

    Args:
        progress: of the run; the numbers of the last epoch are what Ray Train shows.
        model: of Keras.
        optimizer: of Keras.
        best: the best values so far, in the order of `variable_values`.
        rank: of this worker.
    """
    last = progress.history[-1] if progress.history else {}
    figures = {name: value for name, value in last.items() if isinstance(value, int | float)}
    if rank != 0:
        ray.train.report(figures)
        return
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder) / "variables.npz", variable_values(model) + variable_values(optimizer))
        _save(Path(folder) / "best.npz", best)
        _save(Path(folder) / _LOGITS_NAME, progress.valid_logits)
        if progress.moving.size:
            _save(Path(folder) / _MOVING_NAME, [progress.moving])
        stands = {name: value for name, value in vars(progress).items() if name not in ("valid_logits", "moving")}
        (Path(folder) / _PROGRESS_NAME).write_text(json.dumps(stands))
        ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _save(path: Path, arrays: list[np.ndarray]) -> None:
    named: dict[str, Any] = {f"v{at}": array for at, array in enumerate(arrays)}
    np.savez(path, **named)
