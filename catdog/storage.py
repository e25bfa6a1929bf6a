"""Every path is a URI: a local path or a bucket (`s3://…`, `gs://…`), through pyarrow.fs, with atomic writes.

A file that this module writes is either there in full or not there at all: locally it is written under another
name, synced and renamed; an object store shows an object only once it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from catdog.errors import CatdogError, UsageError

# Ray sets it in the process of a submitted job (ray._private.runtime_env.constants.RAY_JOB_CONFIG_JSON_ENV_VAR).
_SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"

# Images in a row group of a shard: what is read at once, a few megabytes.
PACKED_GROUP = 128
_PACKED = re.compile(r"(.+\.parquet)#(\d+)(\?.*)?")


class NotPackedError(OSError):
    """A packed image that has no bytes: its file was absent when the data set was packed, and always will be."""


def is_local(uri: str) -> bool:
    """Tells whether a URI names a file of this machine (a plain path or `file://`) rather than a bucket."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """Makes a URI independent of the working folder.

    Args:
        uri: a local path, relative or not, `~` allowed; or a URI with a scheme.

    Returns:
        An absolute local path, or the URI without a trailing slash.
    """
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    if is_local(uri):
        return str(Path(uri).expanduser().absolute())
    base, mark, query = uri.partition("?")
    return base.rstrip("/") + mark + query


def absolute_output(uri: str, option: str) -> str:
    """Makes an output's URI absolute, and refuses a relative one inside a submitted Ray job.

    Args:
        uri: where something will be written.
        option: the option it came from, for the message.

    Raises:
        UsageError: a relative path in a submitted job, whose working folder Ray deletes when the job is over.
    """
    if is_local(uri) and not uri.startswith("file://") and _SUBMITTED_JOB_VARIABLE in os.environ:
        path = Path(uri).expanduser()
        if not path.is_absolute():
            raise UsageError(
                f"{option} received the relative path {uri!r} in a submitted job, whose working folder is a temporary "
                "copy that Ray deletes; give an absolute path on storage that every node sees, or a bucket"
            )
    return absolute(uri)


def join(uri: str, *parts: str) -> str:
    """Appends path parts to a URI, keeping a bucket's `?options` at the end.

    A "?" in a part would begin such options, so it is written as %3F there, as in any URI.
    """
    base, mark, query = (uri, "", "")
    if not is_local(uri):
        base, mark, query = uri.partition("?")
        parts = tuple(re.sub("%(?=25|3F)", "%25", part).replace("?", "%3F") for part in parts)
    return "/".join([base.rstrip("/") or "", *parts]) + mark + query


def relative(uri: str, folder: str) -> str:
    """A URI below a folder as a path from that folder; any other stays as it is."""
    base, prefix = (each if is_local(each) else each.partition("?")[0] for each in (uri, join(folder, "")))
    return base.removeprefix(prefix) if base.startswith(prefix) else uri


def parent(uri: str) -> str:
    """The folder that holds what a URI names."""
    base, mark, query = uri.partition("?") if not is_local(uri) else (uri, "", "")
    head, slash, _ = base.rstrip("/").rpartition("/")
    return (head if head or not slash else "/") + mark + query


def name(uri: str) -> str:
    """The last part of a URI, without a bucket's `?options`."""
    base = uri if is_local(uri) else uri.partition("?")[0]
    return base.rstrip("/").rpartition("/")[2]


@functools.lru_cache(maxsize=32)
def _bucket_filesystem(scheme: str, bucket: str, query: str) -> pafs.FileSystem:
    options = f"?{query}" if query else ""
    return pafs.FileSystem.from_uri(f"{scheme}://{bucket}/{options}")[0]


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system a URI belongs to, and the path within it.

    Raises:
        UsageError: pyarrow knows no file system for the URI.
    """
    if is_local(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    # Not urlsplit: a "#" is part of a key.
    scheme, _, rest = uri.partition("://")
    path, _, query = rest.partition("?")
    try:
        filesystem = _bucket_filesystem(scheme, path.partition("/")[0], query)
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise UsageError(f"received {uri!r}, expected a local path or an s3:// or gs:// URI: {error}") from error
    return filesystem, re.sub("%(25|3F)", lambda found: {"25": "%", "3F": "?"}[found[1]], path)


def kind(uri: str) -> str:
    """What a URI names: "file", "folder" or "absent"."""
    filesystem, path = resolve(uri)
    found = filesystem.get_file_info(path).type
    return {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}.get(found, "absent")


def exists(uri: str) -> bool:
    """Tells whether a URI names a file or folder that is there."""
    return kind(uri) != "absent"


def list_names(uri: str) -> list[str]:
    """The names of all files and folders directly in a folder, sorted; an absent folder has none."""
    filesystem, path = resolve(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found)


def list_files(uri: str) -> dict[str, pafs.FileInfo]:
    """All files and folders below a folder, by their path from it; an absent folder has none."""
    filesystem, path = resolve(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return {info.path.lstrip("/").removeprefix(path.lstrip("/")).lstrip("/"): info for info in found}


def read_bytes(uri: str) -> bytes:
    """All bytes of one file, or of one packed in a shard (`SHARD.parquet#ROW`).

    Raises:
        OSError: it is absent, a folder, or cannot be read.
    """
    if "#" in uri and (found := _PACKED.fullmatch(uri)):
        return _read_packed(found[1] + (found[3] or ""), int(found[2]))
    if is_local(uri):
        place = Path(absolute(uri))
        if not stat.S_ISREG(mode := place.stat().st_mode) and not stat.S_ISDIR(mode):
            # A FIFO would be waited for without end, and a device may have no end.
            raise OSError(errno.EINVAL, "is not a regular file")
        return place.read_bytes()
    filesystem, path = resolve(uri)
    with filesystem.open_input_file(path) as stream:
        return stream.read()


@functools.lru_cache(maxsize=1)
def _row_group(shard: str, group: int) -> pa.Array:
    """Those who read a shard read it in order, so what was read last is what is wanted next."""
    stream = open_seekable(shard)
    with stream:
        return pq.ParquetFile(stream).read_row_group(group, columns=["bytes"])["bytes"].combine_chunks()


def _read_packed(shard: str, row: int) -> bytes:
    try:
        data = _row_group(shard, row // PACKED_GROUP)[row % PACKED_GROUP].as_py()
    except (pa.ArrowException, IndexError, KeyError) as error:
        raise OSError(f"{name(shard)} is damaged: {error}") from error
    if data is None:
        raise NotPackedError("was not there when the data set was packed")
    return data


def is_packed(uri: str) -> bool:
    """Tells whether a URI names a row of a shard, whose neighbours come with it when it is read."""
    return _PACKED.fullmatch(uri) is not None


def packed(shard: str, row: int) -> str:
    """The URI of a row of a shard, which `read_bytes` takes."""
    base, mark, query = (shard, "", "") if is_local(shard) else shard.partition("?")
    return f"{base}#{row}{mark}{query}"


def open_seekable(uri: str) -> BinaryIO:
    """Opens a file for random reading, as zipfile needs."""
    if is_local(uri):
        return open(absolute(uri), "rb")
    filesystem, path = resolve(uri)
    return filesystem.open_input_file(path)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes one file atomically, making the folders above it.

    Raises:
        CatdogError: it could not be written (a full disk, no permission); nothing is left of it.
    """
    with writing(uri) as stream:
        stream.write(data)


@contextlib.contextmanager
def writing(uri: str) -> Iterator[BinaryIO]:
    """Opens one file to be written bit by bit, making the folders above it; it appears when all is written.

    Raises:
        CatdogError: it could not be written (a full disk, no permission); nothing is left of it.
    """
    if not is_local(uri):
        filesystem, path = resolve(uri)
        # Whole on this disk first: a bucket keeps what was sent before an error.
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            try:
                with filesystem.open_output_stream(path) as stream:
                    shutil.copyfileobj(spool, stream, 1 << 20)
            except OSError as error:
                raise CatdogError(f"could not write {uri}: {error}") from error
        return
    target = Path(absolute(uri))
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except OSError as error:
        raise CatdogError(f"could not write {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # a file where a folder should be hides what went wrong
            temporary.unlink()


def create_text(uri: str, text: str) -> bool:
    """Writes a text file that must not be there yet; of several callers on one machine, one succeeds.

    Returns:
        False where the file was there already.
    """
    if not is_local(uri):
        if exists(uri):
            return False
        write_text(uri, text)
        return True
    target = Path(absolute(uri))
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        try:
            # A link, because it fails where the file is there, and never shows half a text.
            target.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with open(target, "x") as stream:
                stream.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise CatdogError(f"could not write {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return True


def write_text(uri: str, text: str) -> None:
    """Writes one UTF-8 text file atomically."""
    write_bytes(uri, text.encode())


def delete_folder(uri: str) -> None:
    """Deletes a folder and all in it; an absent one is no error."""
    if exists(uri):
        filesystem, path = resolve(uri)
        filesystem.delete_dir(path)


def delete_file(uri: str) -> None:
    """Deletes one file; an absent one is no error."""
    if kind(uri) == "file":
        filesystem, path = resolve(uri)
        filesystem.delete_file(path)
