"""A run's folder: where its files are, and the rules for opening, resuming, overwriting and finishing it.

`config.json` makes a folder a run, `model/bundle.json` makes the run finished. Nothing else is trusted: a folder that
holds another program's `config.json` is not a run, and a file that catdog did not write is never deleted.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catdog import lease, storage
from catdog.errors import CatdogError, UsageError

CHECKPOINTS, BUNDLE = "checkpoints", "bundle.json"
TUNE, SEARCH = "tune", "search.json"
_CONFIG, _LEASE, _MODEL, _BOARD, _VALID = "config.json", "lease.json", "model", "tensorboard", "valid.parquet"
# Options that every run was started with, whatever version of catdog wrote them down.
_ALWAYS = frozenset({"recipe", "arch", "image_size", "batch_size", "seed"})
# Files of a run, of cross-validation (in its own folder and in each fold's), and writes that were cut short.
_FILES = re.compile(r"valid\.parquet|seconds\.json|oof\.([a-z]+\.)?(csv|json|html|parquet)|\..+\.\d+-[0-9a-f]{8}\.tmp")
_RUNS = re.compile(r"(member|fold)-\d+")


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run.

    Attributes:
        uri: of the folder.
    """

    uri: str

    @property
    def config(self) -> str:
        """URI of the file that says what the run is."""
        return storage.join(self.uri, _CONFIG)

    @property
    def model(self) -> str:
        """URI of the model bundle."""
        return storage.join(self.uri, _MODEL)

    @property
    def tensorboard(self) -> str:
        """URI of the folder of TensorBoard's curves."""
        return storage.join(self.uri, _BOARD)

    @property
    def valid(self) -> str:
        """URI of the validation logits."""
        return storage.join(self.uri, _VALID)

    @property
    def exists(self) -> bool:
        """Whether it is a run."""
        return self.read() is not None

    @property
    def finished(self) -> bool:
        """Whether its bundle is complete."""
        return storage.exists(storage.join(self.model, BUNDLE))

    def part(self, kind: str, number: int) -> RunDirectory:
        """The run of a member or of a fold, counted from 1, inside this one."""
        return RunDirectory(storage.join(self.uri, f"{kind}-{number}"))

    @contextlib.contextmanager
    def hold(self, what: str, patience: float = 0.0) -> Iterator[lease.Lease]:
        """Keeps other processes from working on the run while the block runs.

        Args:
            what: what is being done, in a few words.
            patience: how long to wait for another process to end, in seconds.

        Raises:
            CatdogError: another process works on it.
        """
        before = storage.exists(self.uri)
        try:
            with lease.hold(storage.join(self.uri, _LEASE), what, patience) as held:
                yield held
        finally:
            if not before and not storage.list_names(self.uri):
                storage.delete_folder(self.uri)

    def read(self) -> dict[str, Any] | None:
        """What `config.json` says; None where it is absent or not a run's."""
        try:
            content = json.loads(storage.read_bytes(self.config))
        except (OSError, ValueError):
            return None
        known = isinstance(content, dict) and isinstance(content.get("options"), dict)
        if not known or "catalog_fingerprint" not in content or not content["options"].keys() >= _ALWAYS:
            return None
        return content

    def require_run(self, runs: str) -> dict[str, Any]:
        """What `config.json` says, for `--resume`.

        Args:
            runs: the folder of runs, as it was given.

        Raises:
            UsageError: there is no such run.
            CatdogError: the file is damaged.
        """
        if storage.kind(self.config) != "file":
            name = storage.name(self.uri)
            raise UsageError(f"--resume received, but there is no run {name!r} in {runs}; expected {self.config}")
        content = self.read()
        if content is None:
            raise CatdogError(f"{self.config} is damaged or not catdog's; give another --name")
        return content

    def require_free(self, overwrite: bool, nested: bool = False) -> None:
        """Makes sure that a new run may start here.

        Args:
            overwrite: a run that is here will be deleted.
            nested: the folder belongs to a run around it, so strangers' files in it are no obstacle.

        Raises:
            UsageError: the folder holds a run that is not to be overwritten, or something that is no run.
        """
        found = storage.kind(self.uri)
        names = set(storage.list_names(self.uri)) - {_LEASE} if found == "folder" else set()
        if found == "absent" or (found == "folder" and not names):
            return
        if self.exists:
            if not overwrite:
                raise UsageError(
                    f"--name received {storage.name(self.uri)!r}, and {self.uri} exists; give another name, --resume "
                    "or --overwrite"
                )
        elif not nested:
            option = "--overwrite" if overwrite else f"--name {storage.name(self.uri)}"
            raise UsageError(
                f"{option} received, but {self.uri} is not a run (it has no {_CONFIG} that catdog wrote); left alone, "
                "give another --name"
            )

    def open(self, content: dict[str, Any], overwrite: bool = False) -> list[str]:
        """Writes down what the run is; with `overwrite` all that catdog left of the old one is deleted first.

        Args:
            content: for `config.json`.
            overwrite: as for `require_free`, which is to be called before.

        Returns:
            What stayed of an overwritten folder because catdog did not write it, relative to the folder.
        """
        strangers = self._clear() if overwrite and self.exists else []
        # Replaced, not deleted: at every moment it can be seen that this is a run.
        storage.write_text(self.config, json.dumps(content, indent=2) + "\n")
        return strangers

    def _clear(self) -> list[str]:
        """Deletes what catdog wrote, except `config.json` and the lease; returns the names of what is left."""
        grid = self._search_grid()
        for name in storage.list_names(self.uri):
            place = storage.join(self.uri, name)
            if storage.kind(place) != "folder":
                if _FILES.fullmatch(name) or (name == SEARCH and grid):
                    storage.delete_file(place)
            elif name in (CHECKPOINTS, _BOARD) or (name == _MODEL and _is_model(place)) or (name == TUNE and grid):
                _delete_folder(place)
            elif name == "oof.parts":
                _delete_files(place, r".*\.parquet|lease\.json")
            elif name == "data":
                for fold in storage.list_names(place):
                    if _RUNS.fullmatch(fold):
                        _delete_files(storage.join(place, fold), r"catalog\.parquet")
                _delete_files(place, r"left-out\.csv")
            elif _RUNS.fullmatch(name) or any(name.startswith(f"{option}=") for option in grid):
                inner = RunDirectory(place)
                if inner.exists:
                    with inner.hold("overwriting"):
                        inner._clear()
                    # Last: until then it can be seen that this is a run.
                    _delete_files(place, r"config\.json")
        return [name for name in storage.list_names(self.uri) if name not in (_CONFIG, _LEASE)]

    def _search_grid(self) -> list[str]:
        """The options that a search in this folder tries, after which its trials' folders are named."""
        try:
            content = json.loads(storage.read_bytes(storage.join(self.uri, SEARCH)))
            return list(content["grid"]) if "catalog_fingerprint" in content else []
        except (OSError, ValueError, TypeError, KeyError):
            return []


def _is_model(uri: str) -> bool:
    """Tells whether a folder is a bundle, or the beginning of one."""
    names = storage.list_names(uri)
    return not names or BUNDLE in names or "model.keras" in names


def _delete_folder(uri: str) -> None:
    """Deletes a folder; of a link to one only the link, since what it leads to may be used elsewhere."""
    path = Path(storage.absolute(uri)) if storage.is_local(uri) else None
    if path is not None and path.is_symlink():
        path.unlink()
    else:
        storage.delete_folder(uri)


def _delete_files(folder: str, pattern: str) -> None:
    """Deletes files of a folder by name, then the folder if it is empty."""
    for name in storage.list_names(folder):
        if re.fullmatch(pattern, name):
            storage.delete_file(storage.join(folder, name))
    if not storage.list_names(folder):
        _delete_folder(folder)
