"""Sources of images: scanning a folder, bucket or archive, including archives inside it.

Every file is reported: as an image, or as skipped with a reason.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from catdog import storage
from catdog.data import archives, formats, parquet_images
from catdog.errors import CatdogError

SPLIT_FOLDERS = {
    name + ending: split
    for split, names in {
        "train": ("train", "training"),
        "valid": ("valid", "validation", "val", "dev"),
        "test": ("test", "testing", "test1"),
    }.items()
    for name in names
    for ending in ("", "_set", "_images")
}
# Limit for one image; files are read into memory, several at a time.
MAX_FILE_BYTES = 512 << 20
_MAX_ARCHIVE_DEPTH = 2
_SAMPLE_NAME = re.compile(r"sample[ _-]?submission\.csv", re.IGNORECASE)
# Tables that may hold labels. A submission, also a sample of one, holds predictions.
_TABLE_NAME = re.compile(r"(?!.*submission).*\.(csv|tsv)", re.IGNORECASE | re.DOTALL)


class Given(NamedTuple):
    """What the file that holds an image says of it.

    Attributes:
        label: name of its class, or None.
        split: train, valid or test, or None.
    """

    label: str | None
    split: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a source.

    Attributes:
        path: path within the source, in UTF-8, with invalid bytes escaped as %XX.
        size: in bytes, or None for a folder that is named like an image.
        problem: reason why it cannot be an image, whatever its content, or "".
        read: reads that many bytes, or all for -1; in a tar this works only before the iterator is advanced.
        given: what a Parquet file says of its image, or None.
    """

    path: str
    size: int | None
    problem: str
    read: Callable[[int], bytes]
    given: Given | None = None


@dataclass
class Survey:
    """The files of a source.

    Attributes:
        images: paths of the images.
        skipped: path and reason of every other file.
        sample: content of its sample submission, or None.
        tables: content of each CSV that may hold labels, by path.
        given: what Parquet files say of their images, by path.
    """

    images: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    sample: bytes | None = None
    tables: dict[str, bytes] = field(default_factory=dict)
    given: dict[str, Given] = field(default_factory=dict)


def scan_source(source: str, scratch: Path, ignore: list[str] | None = None) -> Survey:
    """Lists the images of a source, recognized by suffix or first bytes, and all other files.

    Args:
        source: URI of a folder or archive.
        scratch: local folder for copies of inner archives.
        ignore: shell patterns; a file is skipped if its path, its name or a folder above it matches.

    Raises:
        CatdogError: a folder, file or archive cannot be read, or an archive is unsafe (`archives.iter_members`).
    """
    found, sample_path, held = Survey(), "", 0
    for entry in _walk(source, scratch):
        name = PurePosixPath(entry.path).name
        if any(_matches(entry.path, pattern) for pattern in ignore or []):
            found.skipped.append((entry.path, "ignored"))
        elif _is_hidden(entry.path):
            found.skipped.append((entry.path, "hidden"))
        elif entry.problem:
            found.skipped.append((entry.path, entry.problem))
        elif _SAMPLE_NAME.fullmatch(name) and entry.size is not None and entry.size <= MAX_FILE_BYTES:
            if found.sample is None or len(entry.path) < len(sample_path):
                found.sample, sample_path = entry.read(-1), entry.path
        elif _TABLE_NAME.fullmatch(name) and entry.size and entry.size <= MAX_FILE_BYTES - held:
            found.tables[entry.path] = entry.read(-1)
            held += entry.size  # all tables are kept in memory
        elif PurePosixPath(name).suffix.lower() in formats.SUFFIXES or (
            entry.size and formats.sniff(entry.read(formats.HEAD_BYTES)) is not None
        ):
            if (entry.size or 0) > MAX_FILE_BYTES:
                raise CatdogError(
                    f"{entry.path} in {source} has {entry.size:,} bytes, expected an image of {MAX_FILE_BYTES:,} at "
                    f"most; leave it out with --ignore {entry.path!r}"
                )
            found.images.append(entry.path)
            if entry.given is not None:
                found.given[entry.path] = entry.given
        elif name.lower().endswith(archives.FOREIGN_SUFFIXES):
            found.skipped.append((entry.path, "an unsupported kind of archive: unpack it first"))
        else:
            found.skipped.append((entry.path, "not an image" if entry.size else "empty"))
    return found


def split_of(path: str) -> str | None:
    """The split that a folder of a path names; None if none does."""
    folders = path.lower().split("/")[:-1]
    return next((SPLIT_FOLDERS[folder] for folder in folders if folder in SPLIT_FOLDERS), None)


def read_images(source: str, scratch: Path, wanted: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
    """Reads images of a source, in the order of the source.

    Args:
        source: as for `scan_source`.
        scratch: as for `scan_source`.
        wanted: paths of the images, from `scan_source`.

    Yields:
        Path and bytes of each image; None instead of bytes for a folder that is named like an image.

    Raises:
        CatdogError: as `scan_source`.
    """
    for entry in iter_entries(source, scratch, wanted):
        yield entry.path, None if entry.size is None else entry.read(-1)


def iter_entries(source: str, scratch: Path, wanted: Collection[str]) -> Iterator[Entry]:
    """The wanted files of a source, in its order, unread; arguments and errors as for `read_images`."""
    return (entry for entry in _walk(source, scratch) if entry.path in wanted)


def _walk(source: str, scratch: Path) -> Iterator[Entry]:
    if storage.kind(source) == "file":
        if parquet_images.is_parquet(source):
            yield from _walk_parquet(source, storage.name(source))
        else:
            yield from _walk_archive(source, storage.name(source), scratch, depth=1)
        return
    entries = sorted(_local_entries(source) if storage.is_local(source) else _bucket_entries(source), key=_path)
    folders = {folder.as_posix().lower() for entry in entries for folder in PurePosixPath(entry.path).parents}
    for entry in entries:
        suffix = archives.suffix_of(entry.path)
        if parquet_images.is_parquet(entry.path) and not _is_hidden(entry.path) and entry.size and not entry.problem:
            yield from _walk_parquet(storage.join(source, entry.path), entry.path)
        elif suffix is None or _is_hidden(entry.path) or entry.problem:
            yield entry
        elif entry.path[: -len(suffix)].lower() in folders:
            # An inner archive that was unpacked into the same folder is skipped in favour of its files.
            yield replace(entry, problem="an archive that is already unpacked next to it")
        else:
            uri = storage.join(source, entry.path)
            yield from _beside(entry.path, suffix, _walk_archive(uri, entry.path, scratch, depth=1))


def _path(entry: Entry) -> str:
    return entry.path


def _local_entries(source: str) -> Iterator[Entry]:
    """Files below a local folder, following links; a folder that is named like an image counts as a file."""

    def refuse(error: OSError) -> None:
        raise CatdogError(f"could not read the folder {error.filename}: {error.strerror}") from error

    seen: set[str] = set()
    for folder, folders, files in os.walk(source, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        named_like_images = [name for name in folders if Path(name).suffix.lower() in formats.SUFFIXES]
        folders[:] = [name for name in folders if name not in named_like_images]
        for name in files + named_like_images:
            place = Path(folder) / name
            relative = os.path.relpath(place, source).replace(os.sep, "/")
            try:
                status = place.stat()
            except OSError as error:
                if not place.is_symlink():
                    raise _cannot_read(str(place), error) from error
                yield Entry(escape_path(relative), 0, f"a link that leads nowhere: {error.strerror}", _nothing)
                continue
            size = None if stat.S_ISDIR(status.st_mode) else status.st_size
            regular = size is None or stat.S_ISREG(status.st_mode)
            reader = _local_reader(str(place))  # a Path would take much more memory
            yield Entry(escape_path(relative), size, "" if regular else "not a regular file", reader)


def _local_reader(place: str) -> Callable[[int], bytes]:
    def read(count: int) -> bytes:
        try:
            with open(place, "rb") as stream:
                return stream.read(count)
        except OSError as error:
            raise _cannot_read(place, error) from error

    return read


def _bucket_entries(source: str) -> Iterator[Entry]:
    for path, info in storage.list_files(source).items():
        if info.is_file:
            if ".." in path.split("/"):  # a bucket's keys are plain text
                raise CatdogError(f"{source} holds {path!r}, a path that leads outside: expected plain relative paths")
            yield Entry(path, info.size, "", _bucket_reader(storage.join(source, path)))


def _bucket_reader(uri: str) -> Callable[[int], bytes]:
    def read(count: int) -> bytes:
        try:
            if count < 0:
                return storage.read_bytes(uri)
            with storage.open_seekable(uri) as stream:
                return stream.read(count)
        except OSError as error:
            raise _cannot_read(uri, error) from error

    return read


def _cannot_read(place: str, error: OSError) -> CatdogError:
    return CatdogError(f"could not read {escape_path(place)}: {error.strerror or error}")


def _beside(path: str, suffix: str, entries: Iterator[Entry]) -> Iterator[Entry]:
    """Paths of an archive's files as if it were unpacked in place, below a folder named after it unless it has one."""
    place = PurePosixPath(path[: -len(suffix)])
    for entry in entries:
        first = entry.path.split("/", 1)[0].lower() if "/" in entry.path else ""
        own = first == place.name.lower() or first in SPLIT_FOLDERS
        yield replace(entry, path=(place.parent if own else place).joinpath(entry.path).as_posix())


def _walk_archive(uri: str, name: str, scratch: Path, depth: int) -> Iterator[Entry]:
    with storage.open_seekable(uri) as stream:
        for member in archives.iter_members(stream, name):
            path, suffix = escape_path(member.path), archives.suffix_of(member.path)
            if parquet_images.is_parquet(path) and not _is_hidden(path) and member.regular:
                yield from _walk_parquet(str(_copy_to_scratch(member, name, scratch)), path)
            elif suffix is None or _is_hidden(path) or not member.regular:
                problem = "" if member.regular else "not a regular file"
                yield Entry(path, member.size, problem, _member_reader(member, name))
            elif depth >= _MAX_ARCHIVE_DEPTH:
                yield Entry(path, member.size, "an archive nested too deeply: unpack it first", lambda _count: b"")
            else:
                copy = _copy_to_scratch(member, name, scratch)
                yield from _beside(path, suffix, _walk_archive(str(copy), f"{name}/{path}", scratch, depth + 1))


def _walk_parquet(uri: str, path: str) -> Iterator[Entry]:
    """The images in a Parquet file, as files beside it that are named after their rows; or the file, without images."""
    place = PurePosixPath(path)
    # Hugging Face writes train-00000-of-00002.parquet, or train/0000.parquet.
    split = SPLIT_FOLDERS.get(re.split(r"[-.]", place.name.lower())[0]) or split_of(path)
    with storage.open_seekable(uri) as stream:
        rows = parquet_images.read_rows(stream, path)
        if rows is None:
            yield Entry(
                path, stream.seek(0, 2), "not an image, and a Parquet file without a column of images", _nothing
            )
            return
        for row in rows:
            if row.split and row.split not in SPLIT_FOLDERS:
                raise CatdogError(f"{path} row {row.number}: split {row.split!r}; expected train, valid or test")
            problem = "" if row.held else "named in a Parquet file, which does not hold it"
            name = f"{place.stem}-{row.number:06d}{row.suffix}"
            given = Given(row.label, SPLIT_FOLDERS.get(row.split, split))
            yield Entry(place.with_name(name).as_posix(), len(row.data), problem, _bytes_reader(row.data), given)


def _nothing(_count: int) -> bytes:
    return b""


def _bytes_reader(data: bytes) -> Callable[[int], bytes]:
    return lambda count: data if count < 0 else data[:count]


def _member_reader(member: archives.Member, name: str) -> Callable[[int], bytes]:
    return lambda count: archives.read_member(member, name, count)


def _copy_to_scratch(member: archives.Member, name: str, scratch: Path) -> Path:
    """Copies an inner archive to the scratch folder once, because reading it needs random access."""
    copy = scratch / hashlib.sha256(f"{name}/{member.path}".encode(errors="surrogateescape")).hexdigest()
    if not copy.exists():
        require_space(str(scratch), member.size)
        try:
            with open(copy, "wb") as out:
                out.writelines(archives.read_pieces(member, name))
        except OSError as error:
            raise CatdogError(f"could not unpack {member.path} to {scratch}: {error.strerror or error}") from error
    return copy


def _matches(path: str, pattern: str) -> bool:
    pattern = pattern.rstrip("/")
    above = [parent.as_posix() for parent in PurePosixPath(path).parents][:-1]
    return any(fnmatch.fnmatchcase(each, pattern) for each in (path, *above)) or any(
        fnmatch.fnmatchcase(part, pattern) for part in path.split("/")
    )


def escape_path(path: str) -> str:
    """Escapes bytes of a path that are not valid UTF-8 as %XX."""
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", path)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def require_space(folder: str, size: int) -> None:
    """Checks that a local disk has enough free space.

    Args:
        folder: folder to write to, which need not exist.
        size: needed bytes.

    Raises:
        CatdogError: there is too little space.
    """
    if not storage.is_local(folder):
        return
    place = Path(folder)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise CatdogError(f"the disk of {folder} is full: {size / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
