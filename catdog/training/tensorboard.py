"""TensorBoard's curves of one training run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from catdog import storage


class TensorBoardWriter:
    """The scalars of one run; for a bucket they are written on this machine and copied after each epoch."""

    def __init__(self, uri: str, epoch: int) -> None:
        # tensorboardX comes with ray[train]; TensorFlow's own writer would want all of TensorBoard installed.
        from tensorboardX import SummaryWriter

        self._uri = uri
        self._copy = None if storage.is_local(uri) else tempfile.TemporaryDirectory()
        self._folder = uri if self._copy is None else self._copy.name
        # A resumed run goes on in a file of its own, which TensorBoard shows as one curve.
        self._writer = SummaryWriter(self._folder, filename_suffix=f".from-epoch-{epoch}")

    def add(self, entry: dict[str, Any]) -> None:
        """Adds one epoch."""
        names = {
            "loss": "loss/train",
            "valid_log_loss": "loss/valid",
            "valid_accuracy": "accuracy/valid",
            "learning_rate": "learning_rate",
            "seconds": "seconds_per_epoch",
        }
        for key, name in names.items():
            self._writer.add_scalar(name, entry[key], entry["epoch"])
        self._writer.flush()
        if self._copy is not None:
            for path in Path(self._folder).iterdir():
                storage.write_bytes(storage.join(self._uri, path.name), path.read_bytes())
