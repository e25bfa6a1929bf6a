"""A program that dies, fails or is interrupted at any of its file-system calls, on a disk and on an object store.

`Calls` counts the calls and lets one go wrong. After a death every further call fails as well: what a `finally` would
still do is not done, as by `kill -9`.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import shutil
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
import pytest
from pyarrow import fs

from catdog import lease, storage

# What may happen at a call: death before it, after it, or with half of its work done; an error instead of it, or with
# half of it done (a full disk); Ctrl-C as it returns.
KINDS = ("before", "after", "half", "error", "full", "interrupt")
BUCKET = "s3://bucket/place"


class DeathError(BaseException):
    """The program was killed; nothing that it tries from now on happens."""


class Fault(NamedTuple):
    """What happens at a call.

    Attributes:
        at: number of the call, from 0.
        kind: one of `KINDS`.
    """

    at: int
    kind: str


class Calls:
    """The file-system calls of one life of a program.

    Attributes:
        count: how many were made.
        names: what they were.
        divisible: the numbers of those that may be half done.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self._fault, self._dead, self._interrupted = fault, False, False
        self._lock = threading.RLock()
        self.count = 0
        self.names: list[str] = []
        self.divisible: set[int] = set()

    @property
    def is_dead(self) -> bool:
        """Whether the program was killed."""
        return self._dead

    def make(self, name: str, call: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Makes a call, or lets it go wrong.

        Args:
            name: of the call, for messages.
            call: all of it.
            half: a half of it; None where there is none.
        """
        with self._lock:
            if self._dead:
                raise DeathError
            if self._interrupted and threading.current_thread() is threading.main_thread():
                self._interrupted = False
                raise KeyboardInterrupt
            number, self.count = self.count, self.count + 1
            self.names.append(name)
            if half is not None:
                self.divisible.add(number)
            kind = self._fault.kind if self._fault and self._fault.at == number else ""
            if kind in ("error", "full"):
                if kind == "full" and half is not None:
                    half()
                raise OSError(errno.EIO if kind == "error" else errno.ENOSPC, f"a fault at {name}")
            try:
                if kind in ("", "after", "interrupt"):
                    result = call()
                elif kind == "half" and half is not None:
                    half()
            finally:
                if kind in ("before", "after", "half"):
                    self._dead = True
                    raise DeathError
            if kind == "interrupt":  # as Python does: in the main thread only
                if threading.current_thread() is threading.main_thread():
                    raise KeyboardInterrupt
                self._interrupted = True
            return result


class Place:
    """Where the program writes: a folder or a bucket.

    Attributes:
        uri: of the place.
        calls: of the life that the program is in.
        links: False if the file system has no hard links.
    """

    def __init__(self, folder: Path | None, links: bool = True) -> None:
        """Args: folder: the folder; None for a bucket in memory. links: whether it has hard links."""
        self.folder, self.links = folder, links
        self.uri = BUCKET if folder is None else str(folder)
        self.objects: dict[str, bytes] = {}
        self.calls = Calls()
        self.lives = 0

    def files(self) -> dict[str, bytes]:
        """The content of every file, by its path in the place."""
        if self.folder is None:
            inner = BUCKET.removeprefix("s3://") + "/"
            return {path.removeprefix(inner): data for path, data in self.objects.items()}
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}

    def reset(self, files: dict[str, bytes]) -> None:
        """Makes these the only files."""
        if self.folder is None:
            inner = BUCKET.removeprefix("s3://")
            self.objects = {f"{inner}/{path}": data for path, data in files.items()}
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for path, data in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(data)

    @contextlib.contextmanager
    def life(self, fault: Fault | None = None) -> Iterator[Calls]:
        """The program runs in the block; death, interruption and faults end it there."""
        self.calls = Calls(fault)
        self.lives += 1
        with pytest.MonkeyPatch.context() as patch:
            _watch(self, patch)
            yield self.calls


def _watch(place: Place, patch: pytest.MonkeyPatch) -> None:
    """Leads the calls of `storage`, and of whoever writes beside it, through a place's `Calls`."""
    # Each life is a process of its own: a lease of an earlier one is a dead one's.
    born = 1000.0 * place.lives
    one = types.SimpleNamespace(create_time=lambda: born)
    patch.setattr(
        lease, "psutil", types.SimpleNamespace(Process=lambda *_: one, Error=psutil.Error, boot_time=psutil.boot_time)
    )
    original = storage.resolve
    handler = _Bucket(place) if place.folder is None else _Local(place)
    watched = fs.PyFileSystem(handler)
    patch.setattr(storage, "_bucket_filesystem", lambda *_: watched)
    if place.folder is None:
        return
    root = f"{place.folder}{os.sep}"

    def is_inside(path: Any) -> bool:
        return not isinstance(path, int) and os.fspath(path).startswith(root)

    def resolve(uri: str) -> tuple[fs.FileSystem, str]:
        return (watched, storage.absolute(uri)) if is_inside(uri) else original(uri)

    patch.setattr(storage, "resolve", resolve)
    for name in ("mkdir", "rmdir", "unlink", "replace", "rename", "link"):
        _watch_function(place, patch, name, is_inside)
    plain_open = io.open

    def watched_open(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if not is_inside(file):
            return plain_open(file, mode, *rest, **more)
        opened = place.calls.make(
            f"open {Path(file).name} {mode}", lambda: plain_open(file, mode.replace("t", "").replace("b", "") + "b", 0)
        )
        if mode.startswith("r"):
            return io.BufferedReader(opened) if "b" in mode else io.TextIOWrapper(io.BufferedReader(opened), "utf-8")
        written = _Written(place, opened, Path(file).name)
        return written if "b" in mode else io.TextIOWrapper(written, "utf-8", write_through=True)  # type: ignore[type-var]

    patch.setattr(io, "open", watched_open)
    patch.setattr(builtins, "open", watched_open)
    patch.setattr(os, "fsync", lambda _descriptor: place.calls.make("fsync", lambda: None))


def _watch_function(place: Place, patch: pytest.MonkeyPatch, name: str, is_inside: Callable[[Any], bool]) -> None:
    plain = getattr(os, name)

    def watched(path: Any, *rest: Any, **more: Any) -> Any:
        if not is_inside(path):
            return plain(path, *rest, **more)
        if name == "link" and not place.links:
            raise OSError(errno.EPERM, "no hard links here")
        return place.calls.make(f"{name} {Path(path).name}", lambda: plain(path, *rest, **more))

    patch.setattr(os, name, watched)


class _Written(io.RawIOBase):
    """A local file that is written; what was given to it is in the file at once, as if Python kept no buffer."""

    def __init__(self, place: Place, raw: Any, name: str) -> None:
        self._calls, self._raw, self._name = place.calls, raw, name

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = bytes(data)

        def put(some: bytes) -> int:
            while some:
                some = some[self._raw.write(some) :]
            return len(content)

        half = content[: len(content) // 2]
        return self._calls.make(f"write {self._name}", lambda: put(content), lambda: put(half))

    def fileno(self) -> int:
        return self._raw.fileno()

    def tell(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Handler(fs.FileSystemHandler):
    """What a disk and a bucket have in common."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        return "watched"

    def normalize_path(self, path: str) -> str:
        return path

    def make(self, name: str, path: str, call: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        return self._place.calls.make(f"{name} {path.rpartition('/')[2]}", call, half)

    def refuse(self, *_: Any) -> Any:
        raise AssertionError("a call that `storage` did not make so far: watch it as well")

    create_dir = delete_dir_contents = delete_root_dir_contents = move = copy_file = open_append_stream = refuse


class _Local(_Handler):
    """A disk, for what `storage` leaves to pyarrow there."""

    _disk = fs.LocalFileSystem()

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return self.make("look at", paths[0], lambda: self._disk.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return self.make("list", selector.base_dir, lambda: self._disk.get_file_info(selector))

    def delete_dir(self, path: str) -> None:
        files = sorted((each for each in Path(path).rglob("*") if each.is_file()), reverse=True)

        def half() -> None:
            for each in files[: len(files) // 2]:
                self._disk.delete_file(str(each))

        self.make("delete folder", path, lambda: self._disk.delete_dir(path), half)

    def delete_file(self, path: str) -> None:
        self.make("delete", path, lambda: self._disk.delete_file(path))

    def open_input_file(self, path: str) -> Any:
        return self.make("open", path, lambda: pa.PythonFile(io.BytesIO(Path(path).read_bytes()), mode="r"))

    open_input_stream = open_input_file
    open_output_stream = _Handler.refuse


class _Bucket(_Handler):
    """An object store: no rename, no folders but in names, and an object is there once it was put as a whole."""

    def _info(self, path: str) -> fs.FileInfo:
        objects = self._place.objects
        if path in objects:
            return fs.FileInfo(path, fs.FileType.File, size=len(objects[path]))
        below = any(key.startswith(f"{path}/") for key in objects)
        return fs.FileInfo(path, fs.FileType.Directory if below else fs.FileType.NotFound)

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return self.make("look at", paths[0], lambda: [self._info(path) for path in paths])

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        def found() -> list[fs.FileInfo]:
            start = f"{selector.base_dir}/"
            inner = [key.removeprefix(start) for key in self._place.objects if key.startswith(start)]
            return [self._info(start + name) for name in sorted(_paths_below(inner, selector.recursive))]

        return self.make("list", selector.base_dir, found)

    def delete_dir(self, path: str) -> None:
        keys = sorted((key for key in self._place.objects if key.startswith(f"{path}/")), reverse=True)

        def drop(some: list[str]) -> None:
            for key in some:
                del self._place.objects[key]

        self.make("delete folder", path, lambda: drop(keys), lambda: drop(keys[: len(keys) // 2]))

    def delete_file(self, path: str) -> None:
        self.make("delete", path, lambda: self._place.objects.pop(path))

    def open_input_file(self, path: str) -> Any:
        def opened() -> Any:
            if path not in self._place.objects:
                raise FileNotFoundError(errno.ENOENT, "no such object", path)
            return pa.PythonFile(io.BytesIO(self._place.objects[path]), mode="r")

        return self.make("open", path, opened)

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, _metadata: Any) -> Any:
        return self.make("upload", path, lambda: pa.PythonFile(_Upload(self, path), mode="w"))


def _paths_below(names: list[str], recursive: bool) -> set[str]:
    """The first parts of paths, or all that lead to them."""
    parts = [name.split("/") for name in names]
    return {"/".join(each[:depth]) for each in parts for depth in range(1, len(each) + 1 if recursive else 2)}


class _Upload(io.RawIOBase):
    """An object on its way. It is put when it is closed, with what it was given so far, unless giving it failed."""

    def __init__(self, bucket: _Bucket, path: str) -> None:
        # Of this life: what a dead one leaves to Python's garbage collection is not put in the next.
        self._objects, self._calls = bucket._place.objects, bucket._place.calls
        self._path, self._name = path, path.rpartition("/")[2]
        self._content, self._failed = b"", False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = bytes(data)

        def add(some: bytes) -> None:
            self._content += some

        try:
            self._calls.make(f"send {self._name}", lambda: add(content), lambda: add(content[: len(content) // 2]))
        except OSError:
            self._failed = True
            raise
        return len(content)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if self._failed:
            raise OSError(errno.EIO, "the upload failed")
        if not self._calls.is_dead:
            self._calls.make(f"put {self._name}", lambda: self._objects.update({self._path: self._content}))
