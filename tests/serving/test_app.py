"""The API without Ray: answers, refusals and limits, asked over HTTP."""

from __future__ import annotations

import base64
import functools
import io
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pillow_heif
import pytest
from local_server import LocalBackend, listening, save_knowing
from pictures import saved, smooth
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from catdog.data.catalog import Catalog
from catdog.data.web import fetch_url
from catdog.inference.predictor import Predictor
from catdog.serving.app import build_app
from catdog.serving.config import Limits
from catdog.serving.pictures import open_folder

JPEG = saved(smooth(60, 40), "JPEG")
LIMITS = Limits(bytes=300_000, files=3, pixels=1_000_000, seconds=20, requests=4)


@pytest.fixture(scope="module")
def backend(untrained: str) -> LocalBackend:
    return LocalBackend(untrained)


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """A web server with a picture, a page and a redirect."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = {"/cat.jpg": JPEG, "/page": b"<!doctype html>"}
            body = known.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def client(backend: LocalBackend, drawn: Catalog) -> Iterator[httpx.Client]:
    app = build_app(
        backend,
        backend.predictor.info,
        LIMITS,
        open_folder(drawn.root, LIMITS.bytes),
        hosts=["127.0.0.1"],
        fetch=functools.partial(fetch_url, allow_private=True),
    )
    with listening(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def files(*data: bytes, name: str = "files") -> Any:
    return [(name, (f"{number}.jpg", each)) for number, each in enumerate(data)]


def test_a_picture_gets_the_predictors_answer(client: httpx.Client, untrained: str) -> None:
    answer = client.post("/v1/predict", files=files(JPEG))
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["predictions"]
    expected = Predictor.load([untrained], batch_size=64).predict_files([JPEG])
    assert np.float32(found["logit"]) == expected.logits[0]
    assert found["probabilities"]["dog"] == expected.probabilities[0]
    assert found["class_name"] == ("dog" if expected.probabilities[0] >= 0.5 else "cat")
    assert found["thumbnail"] is None


def test_every_file_has_its_own_verdict(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", files=files(JPEG, b"no picture", JPEG[:-300]), params={"thumbnail": True})
    good, text, cut = answer.json()["predictions"]
    assert (good["status"], good["detail"]) == ("ok", "")
    assert (text["status"], text["class_name"], text["logit"], text["probabilities"]) == ("unreadable", None, None, {})
    assert "is not an image" in text["detail"]
    assert cut["status"] == "recovered"
    assert "JPEG" in cut["detail"]
    assert text["thumbnail"] is None
    refused = client.post("/v1/predict", files=files(b"no picture"))
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("0.jpg cannot be read: is not an image")


def test_a_picture_of_neither(client: httpx.Client, drawn: Catalog, tmp_path: Path) -> None:
    noise = saved(Image.fromarray(np.random.default_rng(0).random((32, 32)) < 0.5), "PNG")
    known = Path(drawn.split("test")["uri"][0].as_py()).read_bytes()
    backend = LocalBackend(save_knowing(str(tmp_path / "model"), drawn))
    sent = {"files": files(noise, known, b"no picture"), "params": {"novelty": True}}
    with listening(build_app(backend, backend.predictor.info, LIMITS)) as url:
        scores = [each["novelty"] for each in httpx.post(f"{url}v1/predict", **sent).json()["predictions"]]
        assert scores[0] > 1 > scores[1]
        assert scores[2] is None
        asked_for_less = httpx.post(f"{url}v1/predict", files=files(noise)).json()
        assert asked_for_less["predictions"][0]["novelty"] is None
    # A model without statistics answers without.
    answer = client.post("/v1/predict", **sent)
    assert [each["novelty"] for each in answer.json()["predictions"]] == [None, None, None]


def test_a_browser_gets_a_jpeg_of_what_it_cannot_show(client: httpx.Client) -> None:
    out = io.BytesIO()
    pillow_heif.from_pillow(smooth(900, 500)).save(out)
    answer = client.post("/v1/predict", files={"files": ("a/b\\IMG_1.HEIC", out.getvalue())}, params={"thumbnail": 1})
    (found,) = answer.json()["predictions"]
    assert found["name"] == "IMG_1.HEIC"
    kind, _, encoded = found["thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert (shown.format, shown.size) == ("JPEG", (640, 356))


def test_a_picture_on_the_web(client: httpx.Client, pages: str) -> None:
    def ask(url: str) -> httpx.Response:
        return client.post("/v1/predict", json={"url": url})

    answer = ask(f"{pages}/cat.jpg")
    assert answer.json()["predictions"][0]["name"] == "cat.jpg"
    sent = client.post("/v1/predict", files=files(JPEG)).json()["predictions"][0]
    assert answer.json()["predictions"][0]["logit"] == sent["logit"]
    for path, reason in (("/gone", "answered 404"), ("/page", "is a web page")):
        refused = ask(pages + path)
        assert refused.status_code == 422
        assert reason in refused.json()["error"]


def test_addresses_of_private_networks_are_refused(backend: LocalBackend, pages: str) -> None:
    app = build_app(backend, backend.predictor.info, LIMITS)
    with listening(app) as url:
        for address in (f"{pages}/cat.jpg", f"{url}metrics", "http://169.254.169.254/latest/meta-data/"):
            refused = httpx.post(f"{url}v1/predict", json={"url": address})
            assert refused.status_code == 400
            assert "is not a public address" in refused.json()["error"]


BIG = saved(Image.new("RGB", (1200, 900)), "JPEG")
JSON = {"content-type": "application/json"}
PART = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
FORM = {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"files": files(JPEG, name="picture")}, 400, "received the field 'picture', expected .* named files"),
        ({"data": {"files": "text"}, "files": files(JPEG)}, 400, "received the field 'files'"),
        ({"content": b"--x--\r\n", "headers": FORM}, 400, "received no file"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"{", "headers": JSON}, 400, "the body: Invalid JSON"),
        ({"json": {"url": 3}}, 400, "url: Input should be a valid string; expected"),
        ({"json": {"url": "ftp://example.com/cat.jpg"}}, 400, "url: "),
        ({"json": {"url": "http://user@example.com/cat.jpg"}}, 400, "expected an http or https URL"),
        ({"json": {"url": "https://example.com", "more": 1}}, 400, "more: Extra inputs"),
        ({"content": b"\0" * 70_000, "headers": JSON}, 413, "more than 65,536 bytes of JSON"),
        ({"files": files(*[JPEG] * 4)}, 413, "more than 3 files"),
        ({"files": files(bytes(400_000))}, 413, "received 0.4 MB, expected at most 0.3 MB"),
        (
            {"content": (each for each in [PART, *[bytes(50_000)] * 9]), "headers": FORM},
            413,
            "received more, expected at most",
        ),
        ({"files": files(BIG)}, 413, "0.jpg has 1,200 × 900 pixels, more than 1 million"),
        ({"content": JPEG, "headers": {"content-type": "image/jpeg"}}, 415, "received image/jpeg, expected multipart"),
        ({"content": JPEG}, 415, "received no content type"),
        ({"params": {"thumbnail": "7"}, "files": files(JPEG)}, 400, "thumbnail received '7'"),
    ],
)
def test_a_refusal_is_one_line_with_the_right_code(
    request_: dict[str, Any], status: int, message: str, client: httpx.Client
) -> None:
    refused = client.post("/v1/predict", **request_)
    assert refused.status_code == status, refused.text
    assert refused.json().keys() == {"error"}
    assert "\n" not in refused.json()["error"]
    assert re.search(message, refused.json()["error"]), refused.text


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert client.get("/v2").json() == {"error": "there is no /v2; /docs lists what there is"}
    wrong = client.put("/v1/predict")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert client.get("/page/..%2Fapp.py").status_code == 404


def test_only_names_of_this_server_are_answered(client: httpx.Client) -> None:
    """Otherwise the page of another site could read from it, by a name that leads here (DNS rebinding)."""
    for host in ("rebound.example.com", "re_bound.example.com:8000", "127.0.0.1.example.com", "127.0.0.1@evil", ""):
        refused = client.get("/v1/random", headers={"Host": host})
        assert refused.status_code == 400
        assert "expected 127.0.0.1" in refused.json()["error"]
    assert client.get("/healthz", headers={"Host": "127.0.0.1:9"}).status_code == 200


def test_more_requests_than_allowed_are_sent_away_at_once(untrained: str) -> None:
    backend = LocalBackend(untrained)
    app = build_app(backend, backend.predictor.info, Limits(requests=2))
    backend.gate.clear()
    with listening(app) as url, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(httpx.post, f"{url}v1/predict", files=files(JPEG), timeout=30) for _ in range(2)]
        end = time.monotonic() + 20
        while "catdog_requests_working 2.0" not in httpx.get(f"{url}metrics").text:
            assert time.monotonic() < end
        started = time.monotonic()
        refused = httpx.post(f"{url}v1/predict", files=files(JPEG))
        assert time.monotonic() - started < 2
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "try again" in refused.json()["error"]
        assert httpx.get(f"{url}healthz").status_code == 200
        backend.gate.set()
        assert [each.result().status_code for each in waiting] == [200, 200]
        assert httpx.post(f"{url}v1/predict", files=files(JPEG)).status_code == 200


def test_time_is_limited(untrained: str) -> None:
    backend = LocalBackend(untrained)
    app = build_app(backend, backend.predictor.info, Limits(seconds=0.5))
    backend.gate.clear()
    with listening(app) as url:
        late = httpx.post(f"{url}v1/predict", files=files(JPEG), timeout=30)
        backend.gate.set()
        assert late.status_code == 504
        assert "no answer within 0.5 s" in late.json()["error"]
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
                b"Content-Type: application/json\r\n\r\n{"
            )
            assert slow.recv(65_536).startswith(b"HTTP/1.1 408 ")


def test_a_failure_is_told_without_its_inside(untrained: str) -> None:
    backend = LocalBackend(untrained)

    def fail(_files: object) -> None:
        raise ValueError("a secret")

    backend.predictor.predict_files = fail  # type: ignore[assignment,method-assign]
    with listening(build_app(backend, backend.predictor.info, LIMITS)) as url:
        failed = httpx.post(f"{url}v1/predict", files=files(JPEG))
    assert failed.status_code == 500
    assert failed.json() == {"error": "the server failed (ValueError); its log has more"}


def test_what_is_counted(backend: LocalBackend) -> None:
    with listening(build_app(backend, backend.predictor.info, LIMITS)) as url:
        httpx.post(f"{url}v1/predict", files=files(JPEG, JPEG))
        httpx.post(f"{url}v1/predict", files=files(b"no picture"))
        httpx.get(f"{url}made/up")
        shown = httpx.get(f"{url}metrics")
    assert shown.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(shown.text)
        for sample in family.samples
    }
    codes = {key[1:]: value for key, value in samples.items() if key[0] == "catdog_requests_total"}
    assert {tuple(sorted(key)): value for key, value in codes.items()} == {
        ("/v1/predict", "200"): 1,
        ("/v1/predict", "422"): 1,
        ("404", "other"): 1,
    }
    assert samples["catdog_request_seconds_count", "/v1/predict"] == 2
    assert sum(value for key, value in samples.items() if key[0] == "catdog_pictures_total") == 3
    assert samples["catdog_batch_images_sum",] == 2 + 2 + 1


def test_health(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {
        "status": "ok",
        "architecture": "small_resnet",
        "class_names": ["cat", "dog"],
    }


def test_nothing_is_loaded_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    docs = client.get("/docs").text
    for path in client.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in docs
    for text in (page.text, docs, *(client.get(f"/page/{name}").text for name in ("page.css", "page.js", "icon.svg"))):
        for attribute in ('src="http', 'href="http', "url(http", "@import", 'src="//', 'href="//'):
            assert attribute not in text


def test_a_random_picture_of_a_data_set(client: httpx.Client, drawn: Catalog) -> None:
    rows = {Path(row["uri"]).name: row for row in drawn.table.to_pylist()}
    for _ in range(8):
        answer = client.get("/v1/random").json()
        row = rows[answer["prediction"]["name"]]
        assert row["split"] != "train"  # of these the model knows the answers
        assert answer["label"] == (None if row["label"] is None else drawn.class_names[row["label"]])
        kind, _, encoded = answer["picture"].partition(",")
        assert base64.b64decode(encoded) == Path(row["uri"]).read_bytes()
        assert kind == "data:image/jpeg;base64"
        again = client.post("/v1/predict", files=files(base64.b64decode(encoded))).json()
        assert again["predictions"][0]["logit"] == answer["prediction"]["logit"]


def test_no_random_pictures(backend: LocalBackend) -> None:
    with listening(build_app(backend, backend.predictor.info, LIMITS)) as url:
        refused = httpx.get(f"{url}v1/random")
        assert refused.status_code == 404
        assert "--pictures" in refused.json()["error"]
        assert 'id="random"' not in httpx.get(url).text
