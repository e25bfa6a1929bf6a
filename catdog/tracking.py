"""Tracking of runs with MLflow, Weights & Biases or Trackio: options, curves, figures and files under one tracked run.

A tracker hears the events that reach the process that started the training, so workers know nothing of it. It talks to
its server in a thread of its own, and a server that fails ends the tracking, never the training. The tracked run's id
is kept in the run's folder: a run that is resumed goes on under it, and scoring adds to it.

The tests use MLflow's file store. Those of the other two run where their packages are installed, without their servers.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from catdog import storage
from catdog.errors import UsageError, first_line, unknown
from catdog.events import EpochDone, Event, RunOpened
from catdog.run_directory import RunDirectory

PROJECT = "catdog"
_PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb", "trackio": "trackio"}
# For the last uploads; after an interruption the process has to end soon.
_PATIENCE, _HASTE = 300.0, 5.0
_CURVES = ("loss", "valid_log_loss", "valid_accuracy", "learning_rate", "seconds", "images_per_second")


class _Client(Protocol):
    """What a tracking library does; each method may fail in any way."""

    def open(self, run: str | None, name: str, options: Mapping[str, Any]) -> str:
        """Starts a tracked run, or goes on with one; returns its id."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Adds figures."""

    def epochs(self) -> set[int] | None:
        """The epochs whose figures are there; None if the library cannot tell."""

    def keep(self, file: Path, folder: str) -> None:
        """Uploads a file into a folder of the tracked run."""

    def close(self, finished: bool) -> None:
        """Ends the tracked run."""


class Tracker:
    """Hears the events of one training, or takes the results of one scoring."""

    def __init__(self, where: str, warn: Callable[[str], None]) -> None:
        """Starts nothing yet.

        Args:
            where: "mlflow", "wandb" or "trackio", and perhaps ":" and a place: a tracking URI of MLflow, ENTITY/PROJECT
                or PROJECT of Weights & Biases, a Space or the URL of a server of Trackio.
            warn: is given one line if tracking fails.

        Raises:
            UsageError: another tracker, one whose package is not installed, or nobody is logged in.
        """
        kind, _, place = where.partition(":")
        if kind not in _CLIENTS:
            raise unknown("--track", kind, _CLIENTS)
        try:
            library = importlib.import_module(kind)
        except ImportError as error:
            raise UsageError(
                f"--track {kind} received, but {error.name or kind} is not installed: pip install {_PACKAGES[kind]}"
            ) from error
        self._where, self._warn = where, warn
        self._client: _Client = _CLIENTS[kind](library, place)
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._root = ""  # the run that is tracked
        self._inner = ""  # its member that is being trained
        self._broken = False

    def __enter__(self) -> Tracker:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.put(lambda: self._client.close(kind is None))
        self._tasks.put(None)
        self._thread.join(_PATIENCE if kind is None else _HASTE)
        if self._thread.is_alive():
            self._fail("the server did not take everything in time")

    def event(self, event: Event) -> None:
        """Takes note of an event."""
        match event:
            case RunOpened() if not self._root:
                self._root = event.run
                self._tasks.put(lambda: self._open(event.run))
            case RunOpened():
                self._inner = storage.relative(event.run, self._root) + "."
            case EpochDone():
                figures = {self._inner + name: float(getattr(event, name)) for name in _CURVES}
                self._tasks.put(lambda: self._client.log(figures, event.epoch))

    def finish(
        self,
        figures: Mapping[str, float],
        files: Mapping[str, Iterable[str]],
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Adds the results of a run.

        Args:
            figures: by name.
            files: URIs of files, or of folders whose files are meant, by the folder that they get in the tracked run.
            history: of the epochs; one is added that a process finished which was killed before it was tracked.
        """
        if self._root:
            self._tasks.put(lambda: self._complete(history))
            self._tasks.put(lambda: self._client.log(figures, 0))
            for folder, uris in files.items():
                for uri in uris:
                    self._tasks.put(lambda uri=uri, folder=folder: self._keep(uri, folder))  # type: ignore[misc]

    def go_on(self, run: str) -> None:
        """Goes on with the tracked run of a finished run, for `finish`.

        Raises:
            UsageError: the run was not tracked there.
        """
        if not _read_ids(run) and storage.name(run) == "model":
            run = storage.parent(run)  # of a bundle
        known = _read_ids(run)
        if self._where not in known:
            there = f"expected one of {', '.join(known)}" if known else "train it with --track first"
            raise UsageError(f"--track received {self._where}, but {run} was not tracked there; {there}")
        self._root = run
        self._tasks.put(lambda: self._open(run))

    def _open(self, run: str) -> None:
        known = _read_ids(run)
        options = (RunDirectory(run).read() or {}).get("options", {})
        tracked = self._client.open(known.get(self._where), storage.name(run), dict(_flat(options)))
        storage.write_text(RunDirectory(run).tracking, json.dumps(known | {self._where: tracked}, indent=2) + "\n")

    def _complete(self, history: Sequence[Mapping[str, Any]]) -> None:
        there = self._client.epochs()
        for entry in history:
            if there is not None and entry["epoch"] not in there:
                self._client.log({name: float(entry[name]) for name in _CURVES}, entry["epoch"])

    def _keep(self, uri: str, folder: str) -> None:
        if storage.kind(uri) == "folder":
            for name in storage.list_names(uri):
                self._keep(storage.join(uri, name), f"{folder}/{storage.name(uri)}".strip("/"))
        elif storage.is_local(uri):
            self._client.keep(Path(storage.absolute(uri)), folder)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                copy = Path(scratch) / storage.name(uri)
                copy.write_bytes(storage.read_bytes(uri))
                self._client.keep(copy, folder)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._broken:
                continue
            try:
                task()
            except Exception as error:  # of any library, server or disk
                self._fail(first_line(error))

    def _fail(self, why: str) -> None:
        self._broken = True
        self._warn(f"tracking with {self._where} ended, the run goes on without it: {why}")


def _read_ids(run: str) -> dict[str, str]:
    """Ids of the tracked runs of a run, by where they are tracked."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(storage.read_bytes(RunDirectory(run).tracking))
        return found if isinstance(found, dict) else {}
    return {}


def _flat(options: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """Options, those inside of others named OUTER.INNER."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


@dataclass
class _Mlflow:
    library: Any
    place: str
    _run: str = ""

    def __post_init__(self) -> None:
        # MLflow would try for minutes to reach a server.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        if storage.is_local(self.place):
            # Folders as stores are said to be in maintenance mode, and want this consent.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

    def open(self, run: str | None, name: str, options: Mapping[str, Any]) -> str:
        self._client = self.library.MlflowClient(self.place or None)
        if run is None:
            project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(project)
            number = self._client.create_experiment(project) if experiment is None else experiment.experiment_id
            self._run = self._client.create_run(number, run_name=name).info.run_id
            parameters = [self.library.entities.Param(key, str(value)[:500]) for key, value in options.items()]
            self._client.log_batch(self._run, params=parameters)
        else:
            self._run = run
            self._client.update_run(run, status="RUNNING")
        return self._run

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run, name, value, step=step)

    def epochs(self) -> set[int]:
        return {point.step for point in self._client.get_metric_history(self._run, _CURVES[0])}

    def keep(self, file: Path, folder: str) -> None:
        self._client.log_artifact(self._run, str(file), folder or None)

    def close(self, finished: bool) -> None:
        if self._run:
            self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


@dataclass
class _Wandb:
    library: Any
    place: str
    _run: Any = None

    def __post_init__(self) -> None:
        # It would ask on the terminal, in the middle of the training.
        if os.environ.get("WANDB_MODE", "online") in ("online", "shared") and not self.library.login(prompt=False):
            raise UsageError(
                "--track wandb received, but nobody is logged in: `wandb login`, or set WANDB_MODE=offline"
            )

    def open(self, run: str | None, name: str, options: Mapping[str, Any]) -> str:
        entity, _, project = self.place.rpartition("/")
        self._run = self.library.init(
            entity=entity or None,
            project=project or PROJECT,
            id=run or secrets.token_hex(8),
            name=name,
            config=dict(options),
            resume="allow",
            settings=self.library.Settings(console="off", silent=True),
        )
        return str(self._run.id)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if step:
            self._run.log({"epoch": step, **figures})
        else:
            self._run.summary.update(figures)

    def epochs(self) -> None:
        return None

    def keep(self, file: Path, folder: str) -> None:
        artifact = self.library.Artifact(f"{self._run.id}-{file.name}", type=folder.partition("/")[0])
        artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self, finished: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if finished else 1)


@dataclass
class _Trackio:
    library: Any
    place: str
    _run: Any = None

    def open(self, run: str | None, name: str, options: Mapping[str, Any]) -> str:
        # It knows a run by its name, so an id is part of that.
        known = run or f"{name}-{secrets.token_hex(4)}"
        server = "server_url" if "://" in self.place else "space_id"
        place = {server: self.place} if self.place else {}
        self._run = self.library.init(PROJECT, known, config=dict(options), resume="allow", embed=False, **place)
        return known

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step or None)

    def epochs(self) -> None:
        return None

    def keep(self, file: Path, folder: str) -> None:
        self._run.log_artifact(str(file), f"{self._run.name}-{file.name}", folder.partition("/")[0])

    def close(self, finished: bool) -> None:  # noqa: ARG002
        if self._run is not None:
            self._run.finish()


_CLIENTS: dict[str, Callable[[Any, str], _Client]] = {"mlflow": _Mlflow, "wandb": _Wandb, "trackio": _Trackio}
