"""Photos that are of no data set: files, folders, archives and addresses of images, as somebody names them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from catdog import storage
from catdog.data import archives, images, sources, web
from catdog.errors import CatdogError, UsageError


@dataclass(frozen=True)
class Photos:
    """Photos that were found, not read yet.

    Attributes:
        places: each named place, and the paths of the images in it; None for a place that is an image itself.
        skipped: name and reason of every file in a folder or archive that is not taken.
    """

    places: list[tuple[str, list[str] | None]]
    skipped: list[tuple[str, str]]

    @property
    def count(self) -> int:
        """Number of photos."""
        return sum(1 if paths is None else len(paths) for _, paths in self.places)


def find_photos(places: list[str], scratch: Path, ignore: list[str] | None = None) -> Photos:
    """Finds the photos that are meant by what somebody names; folders and archives are walked as for a data set.

    Args:
        places: image files, whatever their names; folders, buckets and archives; http and https URLs of images.
        scratch: local folder for copies of archives inside of archives.
        ignore: as for `sources.scan_source`.

    Raises:
        UsageError: a place is absent.
        CatdogError: a folder or archive cannot be read, or there is no photo at all.
    """
    found: list[tuple[str, list[str] | None]] = []
    skipped: list[tuple[str, str]] = []
    for place in places:
        is_url = web.is_url(place)
        kind = "file" if is_url else storage.kind(place)
        if kind == "absent":
            raise UsageError(f"received {sources.escape_path(place)}, which does not exist; expected photos")
        if is_url or (kind == "file" and archives.suffix_of(storage.name(place)) is None):
            found.append((place, None))
            continue
        survey = sources.scan_source(storage.absolute(place), scratch, ignore)
        found.append((place, survey.images))
        skipped += [(_name(place, path), why) for path, why in survey.skipped]
    photos = Photos(found, skipped)
    if not photos.count:
        raise CatdogError(f"there is no image in {', '.join(map(sources.escape_path, places))}")
    return photos


def read_photos(photos: Photos, scratch: Path, allow_private: bool = False) -> Iterator[tuple[str, bytes | str]]:
    """Reads photos one by one.

    Args:
        photos: from `find_photos`.
        scratch: as given there.
        allow_private: as for `web.fetch_url`.

    Yields:
        Name of each photo, and its bytes, or the reason as text why there are none.

    Raises:
        CatdogError: a folder or archive cannot be walked any more.
    """
    for place, paths in photos.places:
        if paths is None:
            data = _fetch(place, allow_private) if web.is_url(place) else images.fetch(place)
            yield sources.escape_path(place), data
            continue
        left = set(paths)
        for entry in sources.iter_entries(storage.absolute(place), scratch, set(paths)):
            left.discard(entry.path)
            try:
                content = entry.read(-1) if entry.size is not None else "is a folder"
            except CatdogError as error:
                content = str(error)
            yield _name(place, entry.path), content
        for path in sorted(left):
            yield _name(place, path), "was deleted after it was found"


def _fetch(url: str, allow_private: bool) -> bytes | str:
    try:
        return web.fetch_url(url, allow_private=allow_private)
    except CatdogError as error:
        return str(error)


def _name(place: str, path: str) -> str:
    return sources.escape_path(storage.join(place, path))
