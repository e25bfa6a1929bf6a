"""Reading zip and tar archives file by file, with unsafe archives rejected.

Files are never unpacked under the names in the archive, which serve only as keys; these must still be plain relative
paths.
"""

from __future__ import annotations

import itertools
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Self

from catdog.errors import CatdogError, first_line

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
# Other archives, recognized by name only, so that a message can say what to do with them.
FOREIGN_SUFFIXES = (".7z", ".rar", ".gz", ".bz2", ".xz", ".zst", ".tzst", ".lz4", ".z", ".arj", ".cab", ".iso")

# Limits against archive bombs; images are compressed already, so an archive of photos expands little.
_BOMB_RATIO, _BOMB_FLOOR = 200, 64 << 20
_MOST_MEMBERS, _MOST_BYTES = 5_000_000, 4 << 40
# Of a tar's entry that describes the next one, such as its long name, which is read into memory whole.
_MOST_DESCRIPTION = 1 << 20
# Bytes before a zip member's own: its header, without its name.
_ZIP_HEADER = 30
_DEFLATE64 = 9
# First bytes of gzip, bzip2 and xz; offset and magic number of an uncompressed tar (POSIX.1-1988, ustar).
_COMPRESSED, _TAR_MARK = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ"), (257, b"ustar")
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    RuntimeError,  # an encrypted member of a zip, and a tar's description (below)
    NotImplementedError,
    EOFError,
    UnicodeError,
    OSError,
)
_DESCRIPTIONS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
_UNPACK = "unpack it with the system's own tool, and give the folder"


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        path: name in the archive, with forward slashes.
        size: in bytes, according to the archive.
        regular: False for devices, FIFOs and other special files.
        open: opens the file; in a tar this works only before the iterator is advanced.
    """

    path: str
    size: int
    regular: bool
    open: Callable[[], BinaryIO]


def suffix_of(path: str) -> str | None:
    """The suffix of an archive's name, such as ".tar.gz"; None for other files."""
    return next((each for each in sorted(SUFFIXES, key=len, reverse=True) if path.lower().endswith(each)), None)


def iter_members(stream: BinaryIO, name: str) -> Iterator[Member]:
    """Yields the files of a zip or tar (uncompressed, gzip, bzip2 or xz), in archive order.

    Args:
        stream: the archive, open for reading, seekable.
        name: its name, for messages.

    Raises:
        CatdogError: the archive is damaged, encrypted or of another kind, or it has a link, a path that leads outside,
            two paths that some disks take for one, members that share bytes, too many of them, or expands implausibly.
    """
    try:
        head = stream.read(_TAR_MARK[0] + len(_TAR_MARK[1]))
        stream.seek(0)
        if head.startswith(b"PK"):
            found = _zip_members(stream, name)
        elif head.startswith(_COMPRESSED) or head.endswith(_TAR_MARK[1]):
            found = _tar_members(stream, name)
        else:
            raise CatdogError(f"{name} is neither a zip nor a tar: download it again, or {_UNPACK}")
        seen: dict[str, str] = {}
        for member in found:
            # As disks of Windows and macOS compare names; they would write both into one file.
            plain = unicodedata.normalize("NFC", member.path).casefold()
            if plain in seen:
                also = "twice" if seen[plain] == member.path else f"and {seen[plain]}, the same name to many disks"
                raise CatdogError(f"{name} holds {member.path} {also}; expected every path once")
            if len(seen) == _MOST_MEMBERS:
                raise CatdogError(f"{name} holds more than {_MOST_MEMBERS:,} files; {_UNPACK}")
            seen[plain] = member.path
            yield member
    except _BROKEN as error:
        raise CatdogError(
            f"{name} is a damaged zip or tar ({first_line(error)}); download it again, or {_UNPACK}"
        ) from error


def read_member(member: Member, name: str, count: int = -1) -> bytes:
    """Reads the bytes of a member, or the first `count` of them.

    Raises:
        CatdogError: the member is damaged or encrypted.
    """
    try:
        with member.open() as stream:
            return stream.read(count)
    except _BROKEN as error:
        raise _damaged(member, name, error) from error


def read_pieces(member: Member, name: str) -> Iterator[bytes]:
    """Reads a member in pieces of 1 MiB.

    Raises:
        CatdogError: as `read_member`.
    """
    try:
        with member.open() as stream:
            while piece := stream.read(1 << 20):
                yield piece
    except _BROKEN as error:
        raise _damaged(member, name, error) from error


def _damaged(member: Member, name: str, error: BaseException) -> CatdogError:
    return CatdogError(f"could not unpack {member.path} from {name}: {first_line(error)}")


def _zip_members(stream: BinaryIO, name: str) -> Iterator[Member]:
    stream.seek(0, 2)
    size, total = stream.tell(), 0
    with zipfile.ZipFile(stream) as archive:
        _require_apart(archive, name)
        for info in archive.infolist():
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            path = _safe_path(info.filename, is_link, name)
            if not path or info.is_dir():  # of an empty name, zipfile cannot tell
                continue
            if info.flag_bits & 1:
                raise CatdogError(f"{name} holds {path}, which is encrypted; {_UNPACK}")
            if info.compress_type == _DEFLATE64:
                raise CatdogError(f"{name} is compressed with Deflate64, which Python does not read; {_UNPACK}")
            total += info.file_size
            require_plausible(name, path, info.file_size, info.compress_size)
            require_plausible(name, path, total, size)
            yield Member(path, info.file_size, True, _opener(archive, info))


def _require_apart(archive: zipfile.ZipFile, name: str) -> None:
    """Checks that no two members share bytes, by which a small zip becomes petabytes (Fifield, 2019)."""
    order = sorted(archive.infolist(), key=lambda info: info.header_offset)
    for before, after in itertools.pairwise(order):
        if before.header_offset + _ZIP_HEADER + before.compress_size > after.header_offset:
            raise CatdogError(
                f"{name} holds {before.filename!r} and {after.filename!r} in the same bytes, as archive bombs do; "
                f"nothing was unpacked. If it is intended, {_UNPACK}"
            )


def _opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], BinaryIO]:
    return lambda: archive.open(info)  # type: ignore[return-value]  # a BufferedIOBase is sufficient


def _tar_members(stream: BinaryIO, name: str) -> Iterator[Member]:
    stream.seek(0, 2)
    size, total = stream.tell(), 0
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:*", tarinfo=_BoundedTarInfo) as archive:
        for info in archive:
            path = _safe_path(info.name, info.issym() or info.islnk(), name)
            if info.isdir() or not path:
                continue
            total += info.size
            require_plausible(name, path, total, size)
            yield Member(path, info.size, info.isfile(), _tar_opener(archive, info))


class _BoundedTarInfo(tarfile.TarInfo):
    """An entry whose description is of a size that one has."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _DESCRIPTIONS and info.size > _MOST_DESCRIPTION):
            # No error of tarfile's own, which it would take for another kind of compression.
            raise RuntimeError(f"an entry has {info.size:,} bytes of description")
        return info


def _tar_opener(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], BinaryIO]:
    def opened() -> BinaryIO:
        found = archive.extractfile(info)
        if found is None:
            raise OSError("is not a regular file")
        return found  # type: ignore[return-value]  # as above

    return opened


def require_plausible(name: str, path: str, size: int, packed: int) -> None:
    """Checks that an archive does not expand beyond all measure, up to one of its members.

    Args:
        name: of the archive.
        path: of the member.
        size: bytes, unpacked.
        packed: the bytes that they take in the archive.

    Raises:
        CatdogError: it does.
    """
    if size > _MOST_BYTES:
        raise CatdogError(f"{name}: up to {path} it holds {size:,} bytes, expected {_MOST_BYTES:,} at most; {_UNPACK}")
    if size > _BOMB_FLOOR and size > _BOMB_RATIO * max(packed, 1):
        raise CatdogError(
            f"{name}: {path} would grow from {packed:,} to {size:,} bytes, more than {_BOMB_RATIO} times, which is "
            f"implausible for photos; nothing was unpacked. If it is intended, {_UNPACK}"
        )


def _safe_path(path: str, is_link: bool, name: str) -> str:
    """Validates a member's name as a plain relative path, after converting Windows's backslashes."""
    plain = path.replace("\\", "/")
    outside = plain.startswith("/") or re.match(r"^[A-Za-z]:", plain) or ".." in plain.split("/")
    if is_link or outside or "\0" in plain:
        what = "a link" if is_link else "a path that leads outside"
        raise CatdogError(f"{name} holds {path!r}, {what}; nothing was unpacked from it: expected plain relative paths")
    relative = PurePosixPath(plain).as_posix()  # removes "./" and double slashes
    return "" if relative == "." else relative
