"""Buckets: their file systems, and writes that succeed only where nobody else has written before.

pyarrow reads and writes objects and repeats what a busy store refused. It has no conditional writes, by which a lease
keeps two processes apart, so those are made by obstore.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

if TYPE_CHECKING:
    from pyarrow import fs as pafs

from catdog.errors import CatdogError, UsageError, first_line

# Of a bucket's URI: user and password, or an option that is one.
_SECRETS = re.compile(
    r"(?<=://)[^/@\s]*(?=@)|(?<=[?&])[\w-]*(?:key|secret|token|password)[\w-]*=[^&\s'\"]*", re.IGNORECASE
)
# pyarrow's names of the file systems that obstore knows as well.
CONDITIONAL = ("s3", "gcs")
_BUCKET = re.compile(r"(s3|gs|gcs)://", re.IGNORECASE)
# What a store without conditional writes answers.
_UNCONDITIONAL = re.compile(r"\b501\b|NotImplemented|not implemented|not supported", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """A text in which the user, the password and secret options of every URI are replaced by an ellipsis."""
    return _SECRETS.sub("…", text)


def require_no_secrets(uri: str) -> None:
    """Checks that a bucket's URI has no credentials, because URIs are shown and written to files.

    Raises:
        UsageError: it has some; they are not in the message.
    """
    if _BUCKET.match(uri) and _SECRETS.search(uri):
        raise UsageError(
            f"received {without_secrets(uri)} with credentials, which would be written to logs and files; expected "
            "none in the URI, but AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or a role of the "
            "machine"
        )


@functools.lru_cache(maxsize=32)
def open_filesystem(scheme: str, bucket: str, query: str) -> pafs.FileSystem:
    """The pyarrow file system of a bucket, which repeats a refused request up to ten times, at growing intervals.

    Args:
        scheme: such as s3.
        bucket: its name.
        query: pyarrow's options, such as `region=eu-west-1&endpoint_override=…`, or "".

    Raises:
        OSError, ValueError: pyarrow has none.
    """
    from pyarrow import fs

    if scheme == "s3" and "allow_delayed_open" not in query:
        # A small object then takes one request, not three, and a killed process leaves no begun upload of it.
        query = "&".join(filter(None, [query, "allow_delayed_open=true"]))
    options = f"?{query}" if query else ""
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}/{options}")[0]


def read(filesystem: pafs.FileSystem, path: str, require_size: Callable[[int], None]) -> bytes:
    """Reads an object, again if its connection ends in the middle, which pyarrow does not repeat.

    Args:
        filesystem: of the bucket.
        path: its bucket and key.
        require_size: called with its size in bytes; raises OSError if that is too large.

    Raises:
        OSError: it is absent, too large, or could not be read several times.
    """
    pauses = iter((0.1, 0.4, 1.6))
    while True:
        try:
            with filesystem.open_input_file(path) as stream:
                require_size(stream.size())
                return stream.read()
        except OSError as error:
            pause = next(pauses, None)
            if pause is None or error.errno in (errno.ENOENT, errno.EFBIG):
                raise
            time.sleep(pause)


def create(uri: str, path: str, data: bytes) -> bool:
    """Creates an object unless it exists; of several callers anywhere, exactly one succeeds.

    A store without conditional writes is asked first whether the object exists; then two may succeed.

    Args:
        uri: of the object.
        path: its bucket and key.
        data: its content, different for each caller.

    Returns:
        False if it existed.

    Raises:
        CatdogError: the store could not be reached, or refused.
    """
    return _put(uri, path, data, None)


def replace(uri: str, path: str, before: bytes, data: bytes) -> bool:
    """Replaces an object if its content is still the expected one; of several callers exactly one succeeds.

    Args:
        uri: of the object.
        path: its bucket and key.
        before: the expected content.
        data: the new content, different for each caller.

    Returns:
        False if its content was another, or it was gone.

    Raises:
        CatdogError: the store could not be reached, or refused.
    """
    return _put(uri, path, data, before)


def _put(uri: str, path: str, data: bytes, before: bytes | None) -> bool:
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    scheme, query = uri.partition("://")[0], uri.partition("?")[2]
    bucket, _, key = path.partition("/")
    try:
        store = _store(scheme, bucket, query)
        mode: Any = "create"
        if before is not None:
            content, version = _get(store, key)
            if content != before:
                return content == data
            mode = version
        try:
            store.put(key, data, mode=mode)
        except (AlreadyExistsError, PreconditionError):
            # Ours, if a first answer was lost and obstore asked again.
            return _get(store, key)[0] == data
        except (BaseError, NotImplementedError) as error:
            if not _UNCONDITIONAL.search(str(error)):
                raise
            if before is None and _get(store, key)[0] is not None:
                return False
            store.put(key, data)
    except (BaseError, OSError, ValueError) as error:
        raise CatdogError(f"could not write {uri}: {first_line(error)}") from error
    return True


def _get(store: Any, key: str) -> tuple[bytes | None, Any]:
    """The content of an object and its version; None if there is none."""
    try:
        found = store.get(key)
    except FileNotFoundError:
        return None, None
    marks = {name: found.meta[name] for name in ("e_tag", "version")}
    return bytes(found.bytes()), {name: mark for name, mark in marks.items() if mark is not None}


@functools.lru_cache(maxsize=32)
def _store(scheme: str, bucket: str, query: str) -> Any:
    """The same bucket as of `open_filesystem`, for obstore."""
    from obstore import store

    if scheme != "s3":
        return store.from_url(f"{scheme}://{bucket}")
    options = {name: unquote(values[-1]) for name, values in parse_qs(query).items()}
    endpoint = options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    config: Any = {"endpoint": endpoint} if endpoint else {}
    if options.get("force_virtual_addressing") == "true":
        config["virtual_hosted_style_request"] = True
    config["region"] = options.get("region") or open_filesystem(scheme, bucket, query).region
    return store.S3Store(bucket, config=config, client_options={"allow_http": True})
