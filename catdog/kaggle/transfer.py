"""A large file over HTTP that goes on where it ended: after a dropped connection, and in a later process.

Only bytes of one version of the file are put together (RFC 9110, sections 13.1.5 and 14): a range is asked for with
`If-Range`, and what is there is thrown away if the server sends another version, or knows no ranges.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import requests

from catdog import __version__, storage
from catdog.data import sources
from catdog.errors import CatdogError, first_line

# What an interruption loses at most.
_CHUNK = 1 << 16
# Seconds to wait for a connection, and for the next bytes.
_TIMEOUT = (20, 60)
_LONGEST_PAUSE = 60.0
_TEMPORARY = frozenset((408, 425, 429, 500, 502, 503, 504))


@dataclass(frozen=True)
class Progress:
    """How far a download is.

    Attributes:
        done: bytes that are there.
        total: bytes of the whole file, or None if they are not known.
        note: what went wrong and is being tried again, or "".
    """

    done: int
    total: int | None
    note: str = ""


@dataclass(frozen=True)
class Version:
    """Which version of a file a server sent.

    Attributes:
        url: the address that was asked.
        size: in bytes, or None if the server did not say.
        etag: its entity tag, or "".
        modified: when it was last modified, as the server wrote it, or "".
    """

    url: str
    size: int | None
    etag: str
    modified: str

    @property
    def validator(self) -> str:
        """What `If-Range` takes: a strong entity tag, else the date; "" without either."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _InterruptedError(Exception):
    """An attempt that ended early; another one may succeed.

    Attributes:
        pause: seconds that the server asks for, or None.
    """

    def __init__(self, why: str, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


def fetch_url(
    url: str, part: Path, on_progress: Callable[[Progress], None], attempts: int = 6, pause: float = 1.0
) -> Version:
    """Downloads a file, and goes on with what an earlier call left.

    Args:
        url: http or https.
        part: the file to write. Beside it, `NAME.json` says which version it is a part of.
        on_progress: told how far it is, and of each new attempt.
        attempts: failures in a row, without a byte gained, before it gives up.
        pause: seconds after the first failure; it doubles with each.

    Returns:
        The version that is now in `part`, complete as far as the server said how long it is.

    Raises:
        CatdogError: the server refuses, or the connection fails too often; what is there stays.
    """
    failures, best = 0, _size(part)
    while True:
        try:
            return _attempt(url, part, on_progress)
        except (
            _InterruptedError,
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            done, version = _size(part), _read_version(part)
            failures = 1 if done > best else failures + 1
            best = max(best, done)
            if failures >= attempts:
                kept = f"{_megabytes(done, version)} are kept: run the same command again to go on"
                raise CatdogError(
                    f"could not download {url} ({_words(error)}); {kept if done else 'nothing was downloaded'}"
                ) from error
            asked = error.pause if isinstance(error, _InterruptedError) else None
            wait = min(pause * 2 ** (failures - 1) if asked is None else asked, _LONGEST_PAUSE)
            total = version.size if version else None
            on_progress(Progress(done, total, f"{_words(error)}; trying again in {wait:.0f} s"))
            time.sleep(wait)
        except requests.RequestException as error:
            raise CatdogError(f"could not download {url} ({first_line(error)})") from error
        except OSError as error:
            raise CatdogError(f"could not write {part}: {error.strerror or error}; what is there stays") from error


def drop_part(part: Path) -> None:
    """Deletes a part and what is known of it."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _attempt(url: str, part: Path, on_progress: Callable[[Progress], None]) -> Version:
    known = _read_version(part)
    if known is None or known.url != url or not known.validator:
        known = None
    start = _size(part) if known else 0
    if known is not None and known.size is not None and start >= known.size:
        if start == known.size:
            return known
        start = 0
    headers = {"Accept-Encoding": "identity", "User-Agent": f"catdog/{__version__}"}
    if start and known is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": known.validator}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        version = _accept(response, url, part, known, start)
        if response.status_code == 200:
            start = 0
        sources.require_space(str(part), (version.size or 0) - start)
        with open(part, "r+b" if start else "wb") as out:
            out.truncate(start)
            out.seek(start)
            if not start:
                storage.write_text(str(_note(part)), json.dumps(asdict(version)) + "\n")
            done = start
            for chunk in response.iter_content(_CHUNK):
                out.write(chunk)
                done += len(chunk)
                on_progress(Progress(done, version.size))
    if version.size is not None and done != version.size:
        if done > version.size:
            drop_part(part)
        raise _InterruptedError(f"the connection ended after {done:,} of {version.size:,} bytes")
    return version


def _accept(response: requests.Response, url: str, part: Path, known: Version | None, start: int) -> Version:
    """Checks an answer, and returns the version that it is of.

    Raises:
        _InterruptedError: it cannot be used, but the next may.
        CatdogError: the server refuses.
    """
    code = response.status_code
    if code in _TEMPORARY:
        asked = response.headers.get("Retry-After", "")
        raise _InterruptedError(f"the server answers {code}", float(asked) if asked.isdecimal() else None)
    if code == 416:  # what is there is longer than the file is now
        drop_part(part)
        raise _InterruptedError("the file on the server has changed")
    if code not in (200, 206):
        raise CatdogError(f"{url} answers {code} {response.reason}; look in a browser whether the file has moved")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise CatdogError(f"{url} answers with a web page, not with a file; look at it in a browser")
    etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    if code == 200:
        length = response.headers.get("Content-Length", "")
        return Version(url, int(length) if length.isdecimal() else None, etag, modified)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = int(span[2]) if span and span[2] != "*" else None
    fits = known is not None and span is not None and int(span[1]) == start and total in (None, known.size)
    if known is None or not fits or (etag and known.etag and etag != known.etag):
        drop_part(part)
        raise _InterruptedError("the file on the server has changed")
    return known


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_version(part: Path) -> Version | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Version(**json.loads(_note(part).read_bytes()))
    return None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _words(error: Exception) -> str:
    """What ended an attempt, without the insides of the libraries."""
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    # urllib3: "HTTPSConnection(host='…', port=443): Failed to resolve '…'"
    reason = getattr(error.args[0] if error.args else None, "reason", error)
    return first_line(reason).rpartition("): ")[2]


def _megabytes(done: int, version: Version | None) -> str:
    total = f" of {version.size / 1e6:.1f}" if version and version.size else ""
    return f"{done / 1e6:.1f}{total} MB"
