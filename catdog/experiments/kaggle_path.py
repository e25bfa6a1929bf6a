"""A competition from its data to its score, in one folder: each step is done once, and skipped when it is done.

DIR/download/            the archive
DIR/data/                the prepared data set
DIR/runs/NAME/           the run
DIR/submissions/NAME.csv the submission, its report, and what Kaggle said of it
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catdog import storage
from catdog.data import catalog, datasets
from catdog.data.catalog import Catalog
from catdog.data.splits import Remark
from catdog.errors import CatdogError, UsageError
from catdog.events import EventHandler
from catdog.kaggle import download
from catdog.kaggle.transfer import Progress
from catdog.run_directory import RunDirectory
from catdog.scoring import ScoreConfig, plan, score
from catdog.scoring.results import ScoreResult
from catdog.training import train
from catdog.training.config import resolve
from catdog.training.job import TrainResult
from catdog.training.request import TrainConfig

_ORIGIN = "source.json"
_PLACES = frozenset(("data", "runs", "name", "resume", "overwrite"))


@dataclass(frozen=True)
class KagglePath:
    """The steps of one submission, to be taken in their order.

    Attributes:
        folder: URI of the folder of everything.
        name: of the run and of the submission.
        competition: its name in Kaggle's URL.
        source: URI of an archive or a folder to use instead of a download; None to download.
    """

    folder: str
    name: str
    competition: str
    source: str | None = None

    @property
    def data(self) -> str:
        """URI of the prepared data set."""
        return storage.join(self.folder, "data")

    @property
    def runs(self) -> str:
        """URI of the folder of runs."""
        return storage.join(self.folder, "runs")

    @property
    def run(self) -> RunDirectory:
        """The run."""
        return RunDirectory(storage.join(self.runs, self.name))

    @property
    def csv(self) -> str:
        """URI of the submission."""
        return storage.join(self.folder, "submissions", f"{self.name}.csv")

    def find_source(self, on_progress: Callable[[Progress], None]) -> download.Archive | None:
        """Makes sure that the photos are there: downloads them, unless a source was given or the data set is prepared.

        Args:
            on_progress: told how far the download is.

        Returns:
            The archive, or None if none was wanted.

        Raises:
            UsageError: the source does not exist.
            CatdogError: the data set was prepared from another source, or the download failed.
        """
        if self.source is not None:
            if storage.kind(self.source) == "absent":
                raise UsageError(f"--source received {self.source!r}, which does not exist; expected Kaggle's zip")
            self._require_same_source(self.source)
        if self.source is not None or self.is_prepared:
            return None
        return download.download_archive("kaggle", storage.join(self.folder, "download"), on_progress, self.competition)

    @property
    def is_prepared(self) -> bool:
        """Whether the data set is complete."""
        return catalog.has_catalog(self.data)

    def prepare(self, source: str, on_remark: Callable[[Remark], None], on_event: EventHandler) -> Catalog:
        """Prepares the data set, unless it is complete.

        Args:
            source: URI of the archive, of a download or given.
            on_remark: as for `prepare_dataset`.
            on_event: likewise.
        """
        if self.is_prepared:
            return catalog.read_catalog(self.data)
        storage.write_text(storage.join(self.folder, _ORIGIN), json.dumps(_identity(source), indent=2) + "\n")
        return datasets.prepare_dataset(source, self.data, on_remark=on_remark, on_event=on_event)

    @property
    def is_trained(self) -> bool:
        """Whether the run is finished."""
        return self.run.finished

    def train(self, options: dict[str, Any], on_event: EventHandler) -> TrainResult:
        """Trains the run, or goes on with it; of a finished run it only checks that the options are its own.

        Args:
            options: for `TrainConfig`, without data and places.
            on_event: as for `train_model`.
        """
        return train.train_model(self._training(options), on_event)

    def require_options(self, options: dict[str, Any]) -> None:
        """Checks training options, as for `train`, before anything is downloaded.

        Raises:
            UsageError: options that cannot be, or that say where things are.
        """
        if wrong := sorted(options.keys() & _PLACES):
            raise UsageError(f"--set received {wrong[0]}, which DIR and --name decide; expected other training options")
        resolve(self._training(options))

    def _training(self, options: dict[str, Any]) -> TrainConfig:
        places = {"data": self.data, "runs": self.runs, "name": self.name, "resume": self.run.exists}
        return TrainConfig(**(options | places))

    def is_scored(self, options: dict[str, Any]) -> bool:
        """Whether the submission is there and is the run's; `options` as for `score`."""
        return plan.is_scored(self._scoring(options))

    def score(self, options: dict[str, Any], on_event: EventHandler) -> ScoreResult:
        """Scores validation and test images, and writes the submission and its report.

        Args:
            options: for `ScoreConfig`, without data and places.
            on_event: as for `score_dataset`.
        """
        return score.score_dataset(self._scoring(options), on_event)

    def _scoring(self, options: dict[str, Any]) -> ScoreConfig:
        return ScoreConfig(**(options | {"model": [self.run.uri], "data": self.data, "out": self.csv}))

    def _require_same_source(self, source: str) -> None:
        try:
            before = json.loads(storage.read_if_there(storage.join(self.folder, _ORIGIN)) or b"")
        except ValueError:
            return
        now = _identity(source)
        if self.is_prepared and (before.get("name"), before.get("bytes")) != (now["name"], now["bytes"]):
            raise CatdogError(
                f"{self.folder} was begun with {before.get('name')} ({before.get('bytes')} bytes), received "
                f"{now['name']} ({now['bytes']} bytes); give another DIR"
            )


def _identity(source: str) -> dict[str, Any]:
    local = storage.is_local(source) and storage.kind(source) == "file"
    return {"name": storage.name(source), "bytes": Path(source).stat().st_size if local else None, "uri": source}
