"""A random picture: from a folder, or from a prepared data set."""

from __future__ import annotations

import random
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol

from catdog import storage
from catdog.data import catalog, formats, images
from catdog.errors import CatdogError, UsageError

# A file that has gone since the start is passed over.
_ATTEMPTS = 5


class Picture(NamedTuple):
    """A picture that the server chose.

    Attributes:
        name: of its file.
        data: the bytes of the file.
        label: the class that it is known to have; None if that is unknown.
        credit: who made it; None if that is unknown.
        source: address of a page about it; None if there is none.
    """

    name: str
    data: bytes
    label: str | None = None
    credit: str | None = None
    source: str | None = None


class Pictures(Protocol):
    """Where random pictures come from."""

    def pick(self) -> Picture:
        """Takes one.

        Raises:
            CatdogError: there is none now.
        """


class FolderPictures:
    """The pictures of a folder or of a prepared data set."""

    def __init__(self, files: list[tuple[str, str | None]], most_bytes: int) -> None:
        """Takes a list of pictures.

        Args:
            files: URI of each, and the class that it is known to have.
            most_bytes: larger files are passed over.
        """
        self._files = files
        self._most_bytes = most_bytes

    def pick(self) -> Picture:
        """Takes one.

        Raises:
            CatdogError: none could be read.
        """
        reason = ""
        for uri, label in random.SystemRandom().sample(self._files, min(_ATTEMPTS, len(self._files))):
            data = images.fetch(uri)
            if len(data) > self._most_bytes:
                data = f"has more than {self._most_bytes / 1e6:g} MB"
            if isinstance(data, bytes):
                return Picture(PurePosixPath(storage.name(uri)).name, data, label)
            reason = f"{storage.name(uri)} {data}"
        raise CatdogError(f"the folder of pictures cannot be read: {reason}")


def open_folder(folder: str, most_bytes: int) -> FolderPictures:
    """Lists the pictures of a folder.

    Args:
        folder: URI of a prepared data set, or of any folder, whose files are found by their suffixes.
        most_bytes: larger files are left out.

    Raises:
        UsageError: there are none.
    """
    folder = storage.absolute(folder)
    files: list[tuple[str, str | None]]
    if catalog.has_catalog(folder):
        data = catalog.read_catalog(folder)
        names = (*data.class_names, None)
        rows = data.table.select(["uri", "label", "split"]).to_pylist()
        # A model is right about the photos that it was trained on, which shows nothing.
        rows = [row for row in rows if row["split"] != "train"] or rows
        files = [(row["uri"], names[2 if row["label"] is None else row["label"]]) for row in rows]
    else:
        files = [
            (storage.join(folder, path), None)
            for path, info in storage.list_files(folder).items()
            if PurePosixPath(path).suffix.lower() in formats.SUFFIXES and 0 < (info.size or 0) <= most_bytes
        ]
    if not files:
        raise UsageError(f"--pictures received {folder}, which has no pictures; expected a folder of images")
    return FolderPictures(files, most_bytes)
