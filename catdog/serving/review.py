"""The review of an audit: a page on this machine where one decides, photo by photo, what happens to its label.

Decisions are written after each key press, so closing the page loses nothing, and a second review goes on from them.
"""

from __future__ import annotations

import contextlib
import csv
import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import Annotated, Literal

import pydantic
import uvicorn
from fastapi import FastAPI, Path, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.types import ASGIApp

from catdog import spreadsheets, storage
from catdog.data import images, key_list, thumbnails
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.serving import pages
from catdog.serving.config import Limits
from catdog.serving.errors import RefusedError, refusal
from catdog.serving.guard import Guard
from catdog.serving.metrics import Metrics

_SIDE = 640
_COLUMNS = {"key", "issue", "score", "other"}
_LOOPBACK = ("127.0.0.1", "localhost")


class Finding(pydantic.BaseModel):
    """One thing that the audit found about a photo.

    Attributes:
        issue: "label", "ambiguous", "outlier" or "duplicate".
        score: as in the audit.
        other: row of the near-duplicate in the catalog; None if it is not about one.
    """

    issue: str
    score: float
    other: int | None = None


class Item(pydantic.BaseModel):
    """A training photo to decide about.

    Attributes:
        row: in the catalog.
        key: of the photo.
        label: its class.
        findings: what the audit found about it, the most severe first.
        action: what was decided; None for nothing yet.
    """

    row: int
    key: str
    label: str
    findings: list[Finding]
    action: str | None = None


class Decision(pydantic.BaseModel):
    """What a person decided about a photo; None takes an earlier decision back."""

    model_config = pydantic.ConfigDict(extra="forbid")

    row: int
    action: Literal["keep", "flip", "leave out"] | None


class Review:
    """The photos of an audit and what was decided about them.

    Attributes:
        items: the photos, likeliest errors first.
        others: key, split and label of each near-duplicate, by row.
        hidden: photos of the audit that are not shown, because they are not in the training split.
    """

    def __init__(self, data: Catalog, audit: str, out: str) -> None:
        """Reads an audit, and the decisions of an earlier review.

        Args:
            data: the catalog that was audited.
            audit: URI of the audit's CSV.
            out: URI of the CSV of decisions.

        Raises:
            UsageError: the audit is of another data set, or one of the files is none.
            CatdogError: the audit found nothing in the training split.
        """
        self._data = data
        self._out = out
        self._rows = {key: row for row, key in enumerate(data.table["key"].to_pylist())}
        self._actions = _read_actions(out)
        self.items: list[Item] = []
        self.others: dict[int, dict[str, str]] = {}
        splits, by_row, hidden = data.table["split"].to_pylist(), dict[int, Item](), set()
        for line in _read_audit(audit, self._rows, data.root):
            pair = [self._rows[line["key"]], *([self._rows[line["other"]]] if line["other"] else [])]
            # Only the training split is changed; of two copies the other one may be the one in it.
            pair.sort(key=lambda row: splits[row] != "train")
            if splits[pair[0]] != "train":
                hidden |= set(pair)
                continue
            if pair[0] not in by_row:
                key = data.table["key"][pair[0]].as_py()
                by_row[pair[0]] = Item(
                    row=pair[0], key=key, label=self._label(pair[0]), findings=[], action=self._actions.get(key)
                )
                self.items.append(by_row[pair[0]])
            other = pair[1] if len(pair) > 1 else None
            found = Finding(issue=line["issue"], score=float(line["score"]), other=other)
            by_row[pair[0]].findings.append(found)
            if other is not None:
                about = {"key": data.table["key"][other].as_py(), "split": splits[other], "label": self._label(other)}
                self.others[other] = about
        self.hidden = len(hidden)
        self._by_row = by_row
        if not self.items:
            raise CatdogError(f"{audit} has no photo of the training split, and only those can be changed")

    def decide(self, row: int, action: str | None) -> None:
        """Remembers a decision, and writes all of them.

        Args:
            row: of one of the items.
            action: one of `key_list.ACTIONS`; None for nothing.

        Raises:
            RefusedError: there is no such item, or the decision cannot be written.
        """
        item = self._by_row.get(row)
        if item is None:
            raise RefusedError(404, f"there is no photo {row} to decide about")
        item.action = action
        self._actions.pop(item.key, None)
        if action is not None:
            self._actions[item.key] = action
        try:
            storage.write_text(self._out, key_list.format_actions(self._actions))
        except (OSError, CatdogError) as error:
            raise RefusedError(503, f"the decision could not be written to {self._out}: {error}") from error

    def picture(self, row: int) -> bytes:
        """The photo of a row, as JPEG for the page.

        Raises:
            RefusedError: it is not part of the review, or cannot be read.
        """
        if row not in self._by_row and row not in self.others:
            raise RefusedError(404, f"there is no photo {row}")
        data = images.fetch(self._data.table["uri"][row].as_py())
        pixels = thumbnails.thumbnail(data, _SIDE) if isinstance(data, bytes) else None
        if pixels is None:
            raise RefusedError(422, f"photo {row} cannot be read")
        return thumbnails.encode_jpeg(pixels, 90)

    def _label(self, row: int) -> str:
        label = self._data.table["label"][row].as_py()
        return "" if label is None else self._data.class_names[label]


def build_review_app(review: Review, class_names: tuple[str, str], out: str) -> ASGIApp:
    """Makes the app.

    Args:
        review: what is decided about.
        class_names: of labels 0 and 1.
        out: URI of the CSV of decisions, for the page.
    """
    app = FastAPI(title="catdog review", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RefusedError)
    async def refused(_request: object, error: RefusedError) -> Response:
        return refusal(error.status, error.line)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: object, error: RequestValidationError) -> Response:
        return refusal(422, str(error.errors()[0]["msg"]))

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(pages.render_review(class_names, out, review.hidden))

    @app.get("/items")
    def items() -> dict[str, object]:
        return {"items": review.items, "others": review.others}

    @app.get("/pictures/{row}")
    def picture(row: Annotated[int, Path(ge=0)]) -> Response:
        return Response(review.picture(row), media_type="image/jpeg", headers={"cache-control": "max-age=3600"})

    lock = threading.Lock()

    @app.post("/decisions")
    def decide(decision: Decision) -> dict[str, bool]:
        with lock:
            review.decide(decision.row, decision.action)
        return {"written": True}

    pages.add_assets(app)
    return Guard(app, Limits(), _LOOPBACK, Metrics())


@contextlib.contextmanager
def reviewing(app: ASGIApp, port: int) -> Iterator[str]:
    """Runs the page on this machine while the block runs.

    Args:
        app: from `build_review_app`.
        port: to listen on.

    Yields:
        The URL of the page.

    Raises:
        CatdogError: the port is in use.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_LOOPBACK[0], port))
    except OSError as error:
        listener.close()
        raise CatdogError(f"port {port} of {_LOOPBACK[0]} is in use; give another --port") from error
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    # In a thread, because signals are the main thread's, and uvicorn would take them there.
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://{_LOOPBACK[0]}:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()


def _read_audit(uri: str, known: dict[str, int], root: str) -> list[dict[str, str]]:
    rows = csv.DictReader(io.StringIO(_read_text(uri, "--audit"), newline=""), strict=True)
    try:
        lines = list(rows)
        complete = set(rows.fieldnames or ()) >= _COLUMNS
        for line in lines if complete else []:
            float(line["score"])
            line |= {name: spreadsheets.unescape_cell(text) for name, text in line.items() if isinstance(text, str)}
    except (csv.Error, ValueError, TypeError) as error:
        raise UsageError(f"--audit received {uri}, which is damaged: {error}") from error
    if not complete:
        raise UsageError(f"--audit received {uri}, expected the CSV that `catdog data audit` wrote")
    strange = {key for line in lines for key in (line["key"], line["other"]) if key} - known.keys()
    if strange:
        raise UsageError(f"--audit received {uri} with keys such as {min(strange)!r}, which {root} does not hold")
    return lines


def _read_actions(uri: str) -> dict[str, str]:
    if storage.kind(uri) == "absent":
        return {}
    try:
        actions = key_list.parse_actions(_read_text(uri, "--out"))
    except ValueError as error:
        raise UsageError(f"--out received {uri}, which is damaged: {error}") from error
    if actions is None:
        raise UsageError(f"--out received {uri}, which is there and no review; give another name")
    return actions


def _read_text(uri: str, option: str) -> str:
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} received {uri}, which could not be read ({error})") from error
