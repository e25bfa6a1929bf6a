"""The public archives of cats and dogs, downloaded and verified.

Their digests are not known beforehand. An archive is accepted if its length is the server's and its own checksums are
right; its SHA-256 is then written beside it, and later calls compare with that.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catdog import lease, storage
from catdog.choices import ArchiveName
from catdog.data import archives
from catdog.errors import CatdogError, UsageError, first_line
from catdog.kaggle import transfer
from catdog.kaggle.client import COMPETITION, explain, open_client, site
from catdog.kaggle.transfer import Progress, Version

URLS: dict[str, str] = {
    "microsoft": "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/"
    "kagglecatsanddogs_5340.zip",
    "fastai": "https://files.fast.ai/data/examples/dogscats.tgz",
}
_PARTS = ".parts"


@dataclass(frozen=True)
class Archive:
    """A verified archive on this machine.

    Attributes:
        path: of the file.
        sha256: in hex.
        size: in bytes.
        fresh: whether this call downloaded it.
    """

    path: str
    sha256: str
    size: int
    fresh: bool


def download_archive(
    which: ArchiveName,
    dest: str,
    on_progress: Callable[[Progress], None] | None = None,
    competition: str = COMPETITION,
) -> Archive:
    """Downloads an archive, goes on with what an earlier call left, and verifies it.

    Args:
        which: "kaggle" is the competition's data, by Kaggle's own client; "microsoft" the same photos in class folders;
            "fastai" Kaggle's, with a validation folder.
        dest: folder on this machine, made if it is absent.
        on_progress: told how far it is.
        competition: of "kaggle", its name in Kaggle's URL.

    Raises:
        UsageError: `dest` is no folder on this machine.
        CatdogError: it could not be downloaded, or is damaged; or Kaggle wants credentials or its rules accepted.
    """
    on_progress = on_progress or (lambda _progress: None)
    if not storage.is_local(dest):
        raise UsageError(f"DEST received {dest!r}, expected a folder on this machine")
    folder = Path(storage.absolute(dest))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"DEST received {dest!r}, which is a file; expected a folder")
    name = f"{competition}.zip" if which == "kaggle" else URLS[which].rpartition("/")[2]
    target, part = folder / name, folder / _PARTS / name
    try:
        with lease.hold(str(folder / _PARTS / "lease.json"), "downloading"):
            if target.exists():
                return _found(target)
            part.parent.mkdir(parents=True, exist_ok=True)
            if which == "kaggle":
                version = _fetch_from_kaggle(competition, part, on_progress)
            else:
                version = transfer.fetch_url(URLS[which], part, on_progress)
            on_progress(Progress(part.stat().st_size, part.stat().st_size, "verifying"))
            try:
                require_sound(part)
            except CatdogError:
                transfer.drop_part(part)  # going on with it would end in the same
                raise
            archive = Archive(str(target), _sha256(part), part.stat().st_size, True)
            _write_origin(archive, version)
            part.replace(target)
            transfer.drop_part(part)
            return archive
    except OSError as error:
        raise CatdogError(f"could not write to {folder}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # not empty after an interruption
            (folder / _PARTS).rmdir()


def require_sound(path: Path) -> None:
    """Reads an archive to its end and compares the checksums in it.

    Raises:
        CatdogError: it is damaged, unsafe (`archives.iter_members`), or no archive.
    """
    size, total = path.stat().st_size, 0
    try:
        with open(path, "rb") as stream:
            head = stream.read(2)
        if head == b"PK":
            with open(path, "rb") as stream:
                for _member in archives.iter_members(stream, path.name):
                    pass
            with zipfile.ZipFile(path) as archive:
                wrong = archive.testzip()
            if wrong is not None:
                raise CatdogError(f"{path.name} is damaged at {wrong}; download it again")
        elif head == b"\x1f\x8b":
            with gzip.open(path) as unpacked:
                while piece := unpacked.read(1 << 20):
                    total += len(piece)
                    archives.require_plausible(path.name, "its tar", total, size)
        else:
            raise CatdogError(f"{path.name} is neither a zip nor a gzipped tar (it begins with {head!r})")
    except (zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile, NotImplementedError, RuntimeError) as error:
        raise CatdogError(f"{path.name} is damaged ({first_line(error)}); download it again") from error


def _found(target: Path) -> Archive:
    """An archive that is there: the one whose digest was written down, or a sound one that the user put there."""
    archive = Archive(str(target), _sha256(target), target.stat().st_size, False)
    try:
        written = json.loads(_origin(target).read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        require_sound(target)
        return archive
    if archive.sha256 != written:
        raise CatdogError(
            f"{target} is not the file that was downloaded (SHA-256 {archive.sha256[:12]}…, {_origin(target).name} has "
            f"{written[:12]}…); delete it and run the same command again"
        )
    return archive


def _fetch_from_kaggle(competition: str, part: Path, on_progress: Callable[[Progress], None]) -> Version:
    """Downloads a competition's data with Kaggle's client, which goes on by itself with what is there."""
    page = f"{site(competition)}/data"
    api = open_client(f"{page} has the data, too")
    try:
        with _watched(part, on_progress):
            api.competition_download_files(competition, path=str(part.parent), quiet=True)
    except Exception as error:  # the client raises its own, requests' and urllib3's
        kept = f"; {part.stat().st_size / 1e6:.1f} MB are kept" if part.exists() else ""
        raise CatdogError(f"Kaggle did not give the data ({explain(error, competition)}){kept}") from error
    if not part.exists():
        raise CatdogError(f"Kaggle's client wrote no {part.name}; download it by hand from {page}")
    return Version(page, part.stat().st_size, "", "")


@contextlib.contextmanager
def _watched(part: Path, on_progress: Callable[[Progress], None]) -> Iterator[None]:
    """Tells how far Kaggle's client is, which only draws on a terminal, by the size of its file."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                marker: Any = json.loads(part.with_name(f"{part.name}.kaggle-partial").read_bytes())
                on_progress(Progress(part.stat().st_size, marker.get("size")))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _origin(target: Path) -> Path:
    return target.with_name(f"{target.name}.origin.json")


def _write_origin(archive: Archive, version: Version) -> None:
    content = {
        "url": version.url,
        "bytes": archive.size,
        "sha256": archive.sha256,
        "etag": version.etag,
        "last_modified": version.modified,
        "downloaded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    storage.write_text(str(_origin(Path(archive.path))), json.dumps(content, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
