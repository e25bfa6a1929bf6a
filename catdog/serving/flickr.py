"""A random cat or dog of Flickr, by its API's `flickr.photos.search`."""

from __future__ import annotations

import json
import os
import random
import urllib.parse
import urllib.request
from typing import Any

from catdog.data import web
from catdog.errors import CatdogError, first_line
from catdog.serving.pictures import Picture

KEY, BASE = "FLICKR_API_KEY", "CATDOG_FLICKR_URL"
_API = "https://api.flickr.com/services/rest/"
_PAGE = "https://www.flickr.com/photos"
_SECONDS = 8.0
_BYTES = 4_000_000
_TAGS = ("cat", "dog")
# By number, the licences that let a photo be shown elsewhere: Creative Commons and no known restrictions.
_LICENSES = "1,2,3,4,5,6,7,8,9,10"
# Medium (500 pixels) first, which every photo has.
_SIZES = ("url_z", "url_m")


class FlickrPictures:
    """Photos of cats and dogs on Flickr, the most interesting ones of the latest."""

    def __init__(self, key: str, base: str = _API) -> None:
        """Remembers whom to ask.

        Args:
            key: of Flickr's API.
            base: URL of the API; photos may lie on its host, too, even if it is not public.
        """
        self._key = key
        self._base = base

    def pick(self) -> Picture:
        """Takes one.

        Raises:
            CatdogError: Flickr gave none.
        """
        chance = random.SystemRandom()
        tag = chance.choice(_TAGS)
        found = [photo for photo in self._search(tag, chance.randint(1, 10)) if any(size in photo for size in _SIZES)]
        if not found:
            raise CatdogError(f"Flickr has no photo with the tag {tag} now; try again")
        photo = chance.choice(found)
        url = str(next(photo[size] for size in _SIZES if size in photo))
        trusted = urllib.parse.urlsplit(url).hostname == urllib.parse.urlsplit(self._base).hostname
        data = web.fetch_url(url, allow_private=trusted, max_bytes=_BYTES, seconds=_SECONDS)
        page = "/".join(urllib.parse.quote(str(photo.get(name, "")), safe="@") for name in ("owner", "id"))
        title = str(photo.get("title") or "untitled")
        credit = f"“{title}” by {photo.get('ownername') or 'unknown'} on Flickr, tagged {tag}"
        return Picture(title, data, credit=credit, source=f"{_PAGE}/{page}")

    def _search(self, tag: str, page: int) -> list[dict[str, Any]]:
        query = {
            "method": "flickr.photos.search",
            "api_key": self._key,
            "format": "json",
            "nojsoncallback": "1",
            "tags": tag,
            "license": _LICENSES,
            "safe_search": "1",
            "content_types": "0",
            "media": "photos",
            "sort": "interestingness-desc",
            "extras": "owner_name,url_z,url_m",
            "per_page": "100",
            "page": str(page),
        }
        try:
            with urllib.request.urlopen(f"{self._base}?{urllib.parse.urlencode(query)}", timeout=_SECONDS) as answer:
                content = json.loads(answer.read(_BYTES))
            if content["stat"] != "ok":
                raise CatdogError(f"Flickr answered: {content.get('message', content['stat'])}; is {KEY} right?")
            return [photo for photo in content["photos"]["photo"] if isinstance(photo, dict)]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CatdogError(f"Flickr could not be asked: {first_line(error)}") from error


def from_environment() -> FlickrPictures | None:
    """Flickr, if its key is in FLICKR_API_KEY; CATDOG_FLICKR_URL replaces the address of its API."""
    key = os.environ.get(KEY)
    return FlickrPictures(key, os.environ.get(BASE) or _API) if key else None
