"""The folder of a run: the paths of its files, and the rules for opening, resuming, overwriting and finishing it.

A folder is a run if it has a `config.json` of catdog; the run is finished if `model/bundle.json` exists. The
`config.json` of another program does not count, and a file that catdog did not write is never deleted.
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
from catdog.errors import CatdogError, UsageError, did_you_mean

CHECKPOINTS, BUNDLE = "checkpoints", "bundle.json"
TUNE, SEARCH = "tune", "search.json"
_CONFIG, _LEASE, _MODEL, _CURVES, _VALID = "config.json", "lease.json", "model", "tensorboard", "valid.parquet"
_PAGE, _TRACKING, _NO_INT8 = "report.html", "tracking.json", "int8.json"
# After the name of a bundle: that of its int8 version, in the same folder.
INT8_SUFFIX = "-int8"
# Options that `config.json` has in every version of catdog.
_ALWAYS = frozenset({"recipe", "arch", "image_size", "batch_size", "seed"})
# Files of a run and of cross-validation (in its folder and in each fold's).
_FILES = re.compile(
    r"valid\.parquet|report\.html|(seconds|tracking|int8)\.json|oof\.([a-z]+\.)?(csv|json|html|parquet)"
)
_RUNS = re.compile(r"(member|fold)-\d+")


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run.

    Attributes:
        uri: URI of the folder.
    """

    uri: str

    @property
    def config(self) -> str:
        """URI of `config.json`, the options of the run."""
        return storage.join(self.uri, _CONFIG)

    @property
    def model(self) -> str:
        """URI of the model bundle."""
        return storage.join(self.uri, _MODEL)

    @property
    def int8(self) -> str:
        """URI of the int8 version of the model."""
        return storage.join(self.uri, _MODEL + INT8_SUFFIX)

    @property
    def has_int8(self) -> bool:
        """Whether its int8 version is complete."""
        return storage.exists(storage.join(self.int8, BUNDLE))

    @property
    def no_int8(self) -> str:
        """URI of the file that says why there is no int8 version."""
        return storage.join(self.uri, _NO_INT8)

    @property
    def tensorboard(self) -> str:
        """URI of the folder of TensorBoard's curves."""
        return storage.join(self.uri, _CURVES)

    @property
    def valid(self) -> str:
        """URI of the validation logits."""
        return storage.join(self.uri, _VALID)

    @property
    def tracking(self) -> str:
        """URI of the file with the ids of tracked runs."""
        return storage.join(self.uri, _TRACKING)

    @property
    def holder(self) -> lease.Lease | None:
        """The lease of the process that works on the run, or None."""
        return lease.holder(storage.join(self.uri, _LEASE))

    @property
    def page(self) -> str:
        """URI of the report for people."""
        return storage.join(self.uri, _PAGE)

    @property
    def exists(self) -> bool:
        """Whether the folder is a run."""
        return self.read() is not None

    @property
    def finished(self) -> bool:
        """Whether its bundle is complete."""
        return storage.exists(storage.join(self.model, BUNDLE))

    def part(self, kind: str, number: int) -> RunDirectory:
        """The run of a member or fold (counted from 1) inside this run."""
        return RunDirectory(storage.join(self.uri, f"{kind}-{number}"))

    @contextlib.contextmanager
    def hold(self, what: str, patience: float = 0.0) -> Iterator[lease.Lease]:
        """Holds the lease of the run while the block runs.

        Args:
            what: the operation in progress, in a few words.
            patience: seconds to wait for another process to end.

        Raises:
            CatdogError: another process holds the lease.
        """
        before = storage.exists(self.uri)
        try:
            with lease.hold(storage.join(self.uri, _LEASE), what, patience) as held:
                yield held
        finally:
            if not before and not storage.list_names(self.uri, temporary=True):
                storage.delete_folder(self.uri)

    def require_idle(self) -> None:
        """Checks that no living process works on the run.

        Raises:
            CatdogError: one does; the message names it.
        """
        lease.require_free(storage.join(self.uri, _LEASE))

    def read(self) -> dict[str, Any] | None:
        """Content of `config.json`; None if it is absent or not written by catdog.

        Raises:
            CatdogError: it could not be read.
        """
        try:
            content = json.loads(storage.read_if_there(self.config) or b"")
        except ValueError:
            return None
        known = isinstance(content, dict) and isinstance(content.get("options"), dict)
        if not known or "catalog_fingerprint" not in content or not content["options"].keys() >= _ALWAYS:
            return None
        return content

    def require_run(self, runs: str) -> dict[str, Any]:
        """Content of `config.json`, for `--resume`.

        Args:
            runs: the folder of runs as the user gave it, for the message.

        Raises:
            UsageError: there is no such run.
            CatdogError: the file is damaged.
        """
        if storage.kind(self.config) != "file":
            name = storage.name(self.uri)
            raise UsageError(
                f"--resume received, but there is no run {name!r} in {runs}; expected {self.config}"
                f"{did_you_mean(name, storage.names_beside(self.uri))}"
            )
        content = self.read()
        if content is None:
            raise CatdogError(f"{self.config} is damaged or not catdog's; give another --name")
        return content

    def require_free(self, overwrite: bool, nested: bool = False) -> None:
        """Checks that a new run may start in this folder.

        Args:
            overwrite: an existing run may be deleted.
            nested: the folder is inside another run, so files that catdog did not write are tolerated.

        Raises:
            UsageError: the folder has a run and `overwrite` is off, or it has other content.
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
        """Writes `config.json`; with `overwrite`, first deletes what catdog wrote for the old run.

        Args:
            content: content of `config.json`.
            overwrite: as for `require_free`, which must be called first.

        Returns:
            Names of the files that were kept in an overwritten folder because catdog did not write them.
        """
        kept = self._clear() if overwrite and self.exists else []
        # Replaced, not deleted, so that the folder is recognizable as a run at every moment.
        storage.write_text(self.config, json.dumps(content, indent=2) + "\n")
        return kept

    def _clear(self) -> list[str]:
        """Deletes the files of catdog except `config.json` and the lease; returns the names of all others."""
        grid = self._search_grid()
        for name in storage.list_names(self.uri, temporary=True):
            place = storage.join(self.uri, name)
            if storage.kind(place) != "folder":
                if _FILES.fullmatch(name) or storage.is_temporary(name) or (name == SEARCH and grid):
                    storage.delete_file(place)
            elif (
                name in (CHECKPOINTS, _CURVES)
                or (name in (_MODEL, _MODEL + INT8_SUFFIX) and _is_model(place))
                or (name == TUNE and grid)
            ):
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
                    # Last, so that the folder stays recognizable as a run until then.
                    _delete_files(place, r"config\.json")
        return [name for name in storage.list_names(self.uri) if name not in (_CONFIG, _LEASE)]

    def _search_grid(self) -> list[str]:
        """Options of the search grid in this folder; trial folders are named after them. Empty without a search."""
        try:
            content = json.loads(storage.read_if_there(storage.join(self.uri, SEARCH)) or b"")
            return list(content["grid"]) if "catalog_fingerprint" in content else []
        except (ValueError, TypeError, KeyError):
            return []


def _is_model(uri: str) -> bool:
    """Returns whether a folder is a bundle, complete or incomplete."""
    names = storage.list_names(uri)
    return not names or BUNDLE in names or "model.keras" in names


def _delete_folder(uri: str) -> None:
    """Deletes a folder. Of a symbolic link it deletes the link alone, since its target may be in use elsewhere."""
    path = Path(storage.absolute(uri)) if storage.is_local(uri) else None
    if path is not None and path.is_symlink():
        path.unlink()
    else:
        # First, so that what a kill leaves of a model is none.
        storage.delete_file(storage.join(uri, BUNDLE))
        storage.delete_folder(uri)


def _delete_files(folder: str, pattern: str) -> None:
    """Deletes the files of a folder whose names match, then the folder if it is empty."""
    for name in storage.list_names(folder):
        if re.fullmatch(pattern, name):
            storage.delete_file(storage.join(folder, name))
    if not storage.list_names(folder):
        _delete_folder(folder)
