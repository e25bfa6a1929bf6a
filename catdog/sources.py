"""Where images come from: a walk over a folder, a bucket or a zip, zips inside it unpacked, unsafe ones refused."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from pyarrow import fs as pafs

from catdog import storage
from catdog.errors import CatdogError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
SPLIT_FOLDERS = {
    name + ending: split
    for split, names in {
        "train": ("train", "training"),
        "valid": ("valid", "validation", "val"),
        "test": ("test", "testing", "test1"),
    }.items()
    for name in names
    for ending in ("", "_set")
}
_MAX_ZIP_DEPTH = 2


class SourceFile(NamedTuple):
    """One file of a source: its path within it and how to get its bytes; `data` None says it is a folder."""

    path: str
    data: bytes | None


def walk(source: str, scratch: Path, names_only: bool = False) -> Iterator[SourceFile]:
    """Yields every image file of a source, as if all zips in it were unpacked where they lie.

    Args:
        source: URI of a folder or of a zip.
        scratch: a local folder where inner zips may be unpacked to.
        names_only: leave the bytes out.

    Raises:
        CatdogError: a folder or zip cannot be read, or a zip holds a link or a path that leads outside.
    """
    if storage.kind(source) == "file":
        with storage.open_seekable(source) as stream:
            yield from _walk_zip(stream, storage.name(source), scratch, names_only, depth=1)
        return
    paths = list(_folder_paths(source))
    unpacked = {folder.as_posix().lower() for path in paths for folder in PurePosixPath(path).parents}
    for path in paths:
        uri = storage.join(source, path)
        if _is_zip_name(path):
            # People unpack the inner zips beside themselves; then the folder is what counts.
            if path.lower().removesuffix(".zip") not in unpacked:
                with storage.open_seekable(uri) as stream:
                    yield from _beside(path, _walk_zip(stream, path, scratch, names_only, depth=1))
        elif _is_image_name(path):
            if storage.is_local(source) and Path(uri).is_dir():
                yield SourceFile(path, None)
            else:
                try:
                    yield SourceFile(path, b"" if names_only else storage.read_bytes(uri))
                except OSError as error:
                    raise CatdogError(f"could not read {uri}: {error.strerror or error}") from error


def _folder_paths(source: str) -> Iterator[str]:
    """Yields the paths below a folder, sorted, following links; a folder named like an image counts as a file."""
    if not storage.is_local(source):
        filesystem, root = storage.resolve(source)
        found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
        yield from sorted(info.path.removeprefix(root).lstrip("/") for info in found if info.is_file)
        return

    def refuse(error: OSError) -> None:
        raise CatdogError(f"could not read the folder {error.filename}: {error.strerror}") from error

    seen: set[str] = set()
    paths = []
    for folder, folders, files in os.walk(source, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        named_like_images = [name for name in folders if _is_image_name(name)]
        folders[:] = [name for name in folders if name not in named_like_images]
        paths += [os.path.relpath(Path(folder) / name, source) for name in files + named_like_images]
    yield from sorted(path.replace(os.sep, "/") for path in paths)


def _beside(path: str, files: Iterator[SourceFile]) -> Iterator[SourceFile]:
    """Files of an inner zip, as if it were unpacked where it lies: below a folder of its name, unless it has that."""
    place = PurePosixPath(path)
    for file in files:
        first = file.path.split("/", 1)[0].lower() if "/" in file.path else ""
        own = first == place.stem.lower() or first in SPLIT_FOLDERS
        yield SourceFile((place.parent if own else place.with_suffix("")).joinpath(file.path).as_posix(), file.data)


def _walk_zip(stream: BinaryIO, name: str, scratch: Path, names_only: bool, depth: int) -> Iterator[SourceFile]:
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError) as error:
        raise CatdogError(f"{name} is not a readable zip ({error}); download it again") from error
    seen: set[str] = set()
    with archive:
        for member in archive.infolist():
            _refuse_unsafe(member, name)
            path = member.filename
            if member.is_dir():
                continue
            if path in seen:
                raise CatdogError(f"{name} holds {member.filename} twice; expected every path once")
            seen.add(path)
            is_zip = _is_zip_name(path)
            if not (is_zip or _is_image_name(path)) or (is_zip and depth >= _MAX_ZIP_DEPTH):
                continue
            try:
                if is_zip:
                    yield from _beside(path, _walk_inner_zip(archive, member, name, scratch, names_only, depth))
                else:
                    yield SourceFile(path, b"" if names_only else archive.read(member))
            except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
                # RuntimeError is what zipfile raises for an encrypted member.
                raise CatdogError(f"could not unpack {member.filename} from {name}: {error}") from error


def _walk_inner_zip(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, scratch: Path, names_only: bool, depth: int
) -> Iterator[SourceFile]:
    """Unpacks a zip inside a zip to scratch once, for zipfile needs to jump about in it."""
    copy = scratch / hashlib.sha256(f"{name}/{member.filename}".encode()).hexdigest()
    if not copy.exists():
        require_space(str(scratch), member.file_size)
        try:
            with archive.open(member) as inner, open(copy, "wb") as out:
                shutil.copyfileobj(inner, out, 1 << 20)
        except OSError as error:
            raise CatdogError(f"could not unpack {member.filename} to {scratch}: {error.strerror or error}") from error
    with open(copy, "rb") as stream:
        yield from _walk_zip(stream, f"{name}/{member.filename}", scratch, names_only, depth + 1)


def _refuse_unsafe(member: zipfile.ZipInfo, name: str) -> None:
    path = member.filename
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    outside = path.startswith(("/", "\\")) or re.match(r"^[A-Za-z]:", path) or ".." in re.split(r"[/\\]", path)
    if is_link or outside or "\\" in path or "\0" in path:
        what = "a link" if is_link else "a path that leads outside"
        raise CatdogError(f"{name} holds {path!r}, {what}; nothing was unpacked from it: expected plain relative paths")


def _is_image_name(path: str) -> bool:
    return not _is_hidden(path) and PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def _is_zip_name(path: str) -> bool:
    return not _is_hidden(path) and PurePosixPath(path).suffix.lower() == ".zip"


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def require_space(folder: str, size: int) -> None:
    """Makes sure that a local disk has room for some bytes.

    Raises:
        CatdogError: it has not; says how much is missing.
    """
    if not storage.is_local(folder):
        return
    place = Path(folder)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise CatdogError(f"the disk of {folder} is full: {size / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
