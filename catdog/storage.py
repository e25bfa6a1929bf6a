"""File access by URI: a local path or a bucket (`s3://…`, `gs://…`) through pyarrow.fs, with atomic writes.

A file written by this module is either complete or absent. A local file is written under a temporary name, synced and
renamed; an object store shows an object only once it is complete.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from catdog import buckets
from catdog.errors import CatdogError, UsageError

# Set by Ray in the process of a submitted job (ray._private.runtime_env.constants.RAY_JOB_CONFIG_JSON_ENV_VAR).
_SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"

# Images in a row group of a shard; a group, a few megabytes, is read at once.
PACKED_GROUP = 128
_PACKED = re.compile(r"(.+\.parquet)#(\d{1,18})(\?.*)?")
# Of `temporary_name`.
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")


class NotPackedError(OSError):
    """A packed image without bytes: its file was absent when the data set was packed, so reading again cannot help."""


def is_local(uri: str) -> bool:
    """Returns whether a URI is local (a plain path or `file://`) rather than in a bucket."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """Makes a URI independent of the working folder.

    Args:
        uri: a local path, which may be relative or begin with `~`; or a URI with a scheme.

    Returns:
        An absolute local path, or the URI without a trailing slash.

    Raises:
        UsageError: the URI has credentials.
    """
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    if is_local(uri):
        return str(Path(uri).expanduser().absolute())
    buckets.require_no_secrets(uri)
    base, mark, query = uri.partition("?")
    return base.rstrip("/") + mark + query


def absolute_output(uri: str, option: str) -> str:
    """Makes an output's URI absolute; inside a submitted Ray job it rejects relative paths.

    Args:
        uri: URI of the output.
        option: name of the option, for the message.

    Raises:
        UsageError: a relative path in a submitted job, whose working folder Ray deletes at the end of the job.
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

    In a bucket, a "?" in a part is escaped as %3F, because it would otherwise start the options.
    """
    base, mark, query = (uri, "", "")
    if not is_local(uri):
        base, mark, query = uri.partition("?")
        parts = tuple(re.sub("%(?=25|3F)", "%25", part).replace("?", "%3F") for part in parts)
    return "/".join([base.rstrip("/") or "", *parts]) + mark + query


def relative(uri: str, folder: str) -> str:
    """A URI inside a folder as a path relative to the folder; any other URI unchanged."""
    base, prefix = (each if is_local(each) else each.partition("?")[0] for each in (uri, join(folder, "")))
    return base.removeprefix(prefix) if base.startswith(prefix) else uri


def parent(uri: str) -> str:
    """URI of the folder that contains a file or folder."""
    base, mark, query = uri.partition("?") if not is_local(uri) else (uri, "", "")
    head, slash, _ = base.rstrip("/").rpartition("/")
    return (head if head or not slash else "/") + mark + query


def name(uri: str) -> str:
    """The last part of a URI, without a bucket's `?options`."""
    base = uri if is_local(uri) else uri.partition("?")[0]
    return base.rstrip("/").rpartition("/")[2]


def _bucket_filesystem(scheme: str, bucket: str, query: str) -> pafs.FileSystem:
    return buckets.open_filesystem(scheme, bucket, query)


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a URI, and the path within it.

    Raises:
        UsageError: pyarrow has no file system for the URI, or it has credentials.
    """
    if is_local(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    buckets.require_no_secrets(uri)
    # `urlsplit` would cut the key at a "#".
    scheme, _, rest = uri.partition("://")
    path, _, query = rest.partition("?")
    try:
        filesystem = _bucket_filesystem(scheme, path.partition("/")[0], query)
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise UsageError(f"received {uri!r}, expected a local path or an s3:// or gs:// URI: {error}") from error
    return filesystem, re.sub("%(25|3F)", lambda found: {"25": "%", "3F": "?"}[found[1]], path)


def kind(uri: str) -> str:
    """Kind of a URI: "file", "folder" or "absent"."""
    filesystem, path = resolve(uri)
    found = filesystem.get_file_info(path).type
    return {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}.get(found, "absent")


def exists(uri: str) -> bool:
    """Returns whether a file or folder exists."""
    return kind(uri) != "absent"


def modified(uri: str) -> float | None:
    """When a file was last written by the storage's own clock, in seconds since 1970; None if it is absent."""
    filesystem, path = resolve(uri)
    stamp = filesystem.get_file_info(path).mtime_ns
    return None if stamp is None else stamp / 1e9


def list_names(uri: str, temporary: bool = False) -> list[str]:
    """Sorted names of the files and folders directly in a folder; empty for an absent folder.

    Args:
        uri: of the folder.
        temporary: list temporary files as well, which a killed process leaves behind.
    """
    filesystem, path = resolve(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if temporary or not is_temporary(info.base_name))


def temporary_name(name: str) -> str:
    """A name for a file that becomes another one, or is to be deleted; no two are equal."""
    return f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def is_temporary(name: str) -> bool:
    """Returns whether `temporary_name` made a name."""
    return _TEMPORARY.fullmatch(name) is not None


def names_beside(uri: str) -> list[str]:
    """Names in the folder that contains a file or folder, to find one that may be meant; empty if it is unreadable."""
    try:
        return list_names(parent(uri))
    except OSError:
        return []


def list_files(uri: str) -> dict[str, pafs.FileInfo]:
    """All files and folders below a folder, by their path relative to it; empty for an absent folder."""
    filesystem, path = resolve(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return {info.path.lstrip("/").removeprefix(path.lstrip("/")).lstrip("/"): info for info in found}


def read_bytes(uri: str, most: int | None = None) -> bytes:
    """Reads a file, or an image packed in a shard (`SHARD.parquet#ROW`).

    Args:
        uri: of the file.
        most: bytes that it may have, of a file that is not packed; None is no limit.

    Raises:
        OSError: the file is absent, a folder, too large, or unreadable.
    """
    if "#" in uri and (found := _PACKED.fullmatch(uri)):
        return _read_packed(found[1] + (found[3] or ""), int(found[2]))
    if is_local(uri):
        place = Path(absolute(uri))
        status = place.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            # Reading a FIFO could block forever, and a device may have no end.
            raise OSError(errno.EINVAL, "is not a regular file")
        _require_size(status.st_size, most)
        return place.read_bytes()
    return buckets.read(*resolve(uri), functools.partial(_require_size, most=most))


def read_if_there(uri: str) -> bytes | None:
    """Reads a file; None if there is none.

    Raises:
        CatdogError: it could not be read, which says nothing about whether it is there.
    """
    try:
        return read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise CatdogError(f"could not read {uri}: {error.strerror or error}; run the same command again") from error


def _require_size(size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise OSError(errno.EFBIG, f"has {size:,} bytes, expected {most:,} at most")


def keep_groups(count: int) -> None:
    """Sets how many row groups of shards this process keeps in memory, of those that it read last.

    Args:
        count: of groups; one is enough where shards are read in order.
    """
    global _row_group
    _row_group = functools.lru_cache(maxsize=count)(_read_row_group)


def _read_row_group(shard: str, group: int) -> pa.Array:
    stream = open_seekable(shard)
    with stream:
        return pq.ParquetFile(stream).read_row_group(group, columns=["bytes"])["bytes"].combine_chunks()


_row_group = functools.lru_cache(maxsize=1)(_read_row_group)


def _read_packed(shard: str, row: int) -> bytes:
    try:
        data = _row_group(shard, row // PACKED_GROUP)[row % PACKED_GROUP].as_py()
    except (pa.ArrowException, IndexError, KeyError, OverflowError) as error:
        raise OSError(f"{name(shard)} is damaged: {error}") from error
    if data is None:
        raise NotPackedError("was not there when the data set was packed")
    if not isinstance(data, bytes):
        raise OSError(f"{name(shard)} is damaged: its images are no bytes")
    return data


def is_packed(uri: str) -> bool:
    """Returns whether a URI names a row of a shard; reading it also loads its row group."""
    return _PACKED.fullmatch(uri) is not None


def packed_group(uri: str) -> tuple[str, int]:
    """Shard and number of the row group that a packed image is in."""
    found = _PACKED.fullmatch(uri)
    assert found is not None
    return found[1] + (found[3] or ""), int(found[2]) // PACKED_GROUP


def packed(shard: str, row: int) -> str:
    """URI of a row of a shard, for `read_bytes`."""
    base, mark, query = (shard, "", "") if is_local(shard) else shard.partition("?")
    return f"{base}#{row}{mark}{query}"


def open_seekable(uri: str) -> BinaryIO:
    """Opens a file for reading with seeks, as zipfile needs."""
    if is_local(uri):
        return open(absolute(uri), "rb")
    filesystem, path = resolve(uri)
    return filesystem.open_input_file(path)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file atomically and creates its parent folders.

    Raises:
        CatdogError: the file could not be written (a full disk, no permission); no part of it remains.
    """
    with writing(uri) as stream:
        stream.write(data)


@contextlib.contextmanager
def writing(uri: str) -> Iterator[BinaryIO]:
    """Opens a file for streaming writes and creates its parent folders; the file appears when the block ends.

    Raises:
        CatdogError: the file could not be written (a full disk, no permission); no part of it remains.
    """
    if not is_local(uri):
        filesystem, path = resolve(uri)
        # Written to this disk first, because a bucket would keep an incomplete upload after an error.
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            try:
                # In a thread, which Ctrl-C cannot interrupt: closing the stream would make a whole object of a half.
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(_upload, spool, filesystem, path).result()
            except OSError as error:
                raise CatdogError(f"could not write {uri}: {error}") from error
        return
    target = Path(absolute(uri))
    temporary = target.with_name(temporary_name(target.name))
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
        with contextlib.suppress(OSError):  # so that an error here does not hide the first one
            temporary.unlink()


def _upload(spool: BinaryIO, filesystem: pafs.FileSystem, path: str) -> None:
    with filesystem.open_output_stream(path) as stream:
        shutil.copyfileobj(spool, stream, 1 << 20)


def create_text(uri: str, text: str) -> bool:
    """Creates a text file unless it exists; of several callers, exactly one succeeds.

    Args:
        uri: of the file.
        text: its content, different for each caller.

    Returns:
        False if the file existed.

    Raises:
        CatdogError: the file could not be written.
    """
    if not is_local(uri):
        filesystem, path = resolve(uri)
        if filesystem.type_name in buckets.CONDITIONAL:
            return buckets.create(uri, path, text.encode())
        if exists(uri):
            return False
        write_text(uri, text)
        return True
    target = Path(absolute(uri))
    temporary = target.with_name(temporary_name(target.name))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        try:
            # A hard link fails if the file exists, and the file is never incomplete.
            target.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # the file system has no hard links
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


def replace_text(uri: str, before: bytes, text: str) -> bool:
    """Replaces a text file in a bucket if its content is still the expected one; of several callers one succeeds.

    Args:
        uri: of the file.
        before: the expected content.
        text: the new content, different for each caller.

    Returns:
        False if its content was another, or it was gone.

    Raises:
        CatdogError: the file could not be written.
    """
    filesystem, path = resolve(uri)
    if filesystem.type_name in buckets.CONDITIONAL:
        return buckets.replace(uri, path, before, text.encode())
    if not exists(uri) or read_bytes(uri) != before:
        return False
    write_text(uri, text)
    return True


def write_text(uri: str, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_bytes(uri, text.encode())


def delete_folder(uri: str) -> None:
    """Deletes a folder and its content, if it exists."""
    if exists(uri):
        filesystem, path = resolve(uri)
        filesystem.delete_dir(path)


def delete_file(uri: str) -> None:
    """Deletes a file, if it exists."""
    if kind(uri) == "file":
        filesystem, path = resolve(uri)
        filesystem.delete_file(path)
