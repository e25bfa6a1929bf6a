"""Where random pictures come from: folders, data sets, and a stand-in that speaks the search of Flickr's API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pictures import saved, smooth

from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.serving import flickr
from catdog.serving.pictures import open_folder

JPEG = saved(smooth(60, 40), "JPEG")


class Flickr:
    """Answers `flickr.photos.search` as Flickr does, and serves the photos.

    Attributes:
        queries: of the searches.
        photos: that are found.
    """

    def __init__(self) -> None:
        outer = self
        self.queries: list[dict[str, list[str]]] = []
        self.photos: list[dict[str, object]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                place = urlsplit(self.path)
                body = outer.search(parse_qs(place.query)) if place.path == "/services/rest/" else JPEG
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def search(self, query: dict[str, list[str]]) -> bytes:
        """The answer to a search; errors are answered with status 200, too."""
        self.queries.append(query)
        if query.get("method") != ["flickr.photos.search"]:
            return json.dumps({"stat": "fail", "code": 112, "message": "Method not found"}).encode()
        if query.get("api_key") != ["right"]:
            return json.dumps(
                {"stat": "fail", "code": 100, "message": "Invalid API Key (Key has invalid format)"}
            ).encode()
        if query.get("format") != ["json"] or query.get("nojsoncallback") != ["1"]:
            return b"jsonFlickrApi({})"
        pages = {"page": 1, "pages": 1, "perpage": 100, "total": len(self.photos), "photo": self.photos}
        return json.dumps({"photos": pages, "stat": "ok"}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Flickr]:
    site = Flickr()
    monkeypatch.setenv("FLICKR_API_KEY", "right")
    monkeypatch.setenv("CATDOG_FLICKR_URL", f"{site.url}/services/rest/")
    yield site
    site.close()


def photo(url: str) -> dict[str, object]:
    """One of the search's photos, with the fields that were asked for."""
    return {
        "id": "53", "owner": "12@N00", "secret": "ab", "server": "6", "farm": 6, "title": "Minka", "ispublic": 1,
        "isfriend": 0, "isfamily": 0, "ownername": "Ann", "url_m": url, "height_m": 40, "width_m": 60,
    }  # fmt: skip


def test_a_random_photo_of_flickr(site: Flickr) -> None:
    site.photos = [photo(f"{site.url}/6/53_ab.jpg")]
    source = flickr.from_environment()
    assert source is not None
    picture = source.pick()
    assert picture.data == JPEG
    assert picture.name == "Minka"
    assert picture.source == "https://www.flickr.com/photos/12@N00/53"
    (query,) = site.queries
    assert query["tags"][0] in ("cat", "dog")
    assert query["safe_search"] == ["1"]
    assert picture.credit == f"“Minka” by Ann on Flickr, tagged {query['tags'][0]}"


def test_flickr_says_no(site: Flickr, monkeypatch: pytest.MonkeyPatch) -> None:
    source = flickr.from_environment()
    assert source is not None
    with pytest.raises(CatdogError, match="no photo with the tag"):
        source.pick()
    # Where the search leads to is not trusted any more than what strangers give.
    site.photos = [photo("http://127.0.0.2/6/53_ab.jpg")]
    with pytest.raises(UsageError, match="not a public address"):
        source.pick()
    monkeypatch.setenv("FLICKR_API_KEY", "wrong")
    denied = flickr.from_environment()
    assert denied is not None
    with pytest.raises(CatdogError, match="Invalid API Key .*; is FLICKR_API_KEY right"):
        denied.pick()
    site.close()
    with pytest.raises(CatdogError, match="Flickr could not be asked"):
        source.pick()


def test_without_a_key_there_is_no_flickr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLICKR_API_KEY", raising=False)
    assert flickr.from_environment() is None


def test_any_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "large.jpg").write_bytes(bytes(2000))
    with pytest.raises(UsageError, match="--pictures received .* which has no pictures"):
        open_folder(str(tmp_path), 1000)
    (tmp_path / "pets" / "a.JPG").write_bytes(b"1")
    found = open_folder(str(tmp_path), 1000).pick()
    assert (found.name, found.data, found.label) == ("a.JPG", b"1", None)


def test_a_file_that_has_gone_is_passed_over(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    source = open_folder(str(tmp_path), 1000)
    (tmp_path / "a.jpg").unlink()
    assert {source.pick().name for _ in range(3)} == {"b.jpg"}
    (tmp_path / "b.jpg").write_bytes(bytes(2000))  # it was smaller when the server started
    with pytest.raises(CatdogError, match="cannot be read: (b.jpg has more than 0.001 MB|a.jpg could not)"):
        source.pick()
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(CatdogError, match="cannot be read: [ab].jpg could not be read: No such file"):
        source.pick()


def test_the_pictures_of_a_data_set_are_those_that_no_model_was_trained_on(drawn: Catalog) -> None:
    source = open_folder(drawn.root, 10**6)
    splits = dict(zip(drawn.table["uri"].to_pylist(), drawn.table["split"].to_pylist(), strict=True))
    names = {Path(uri).name: split for uri, split in splits.items()}
    assert {names[source.pick().name] for _ in range(60)} == {"valid", "test"}
