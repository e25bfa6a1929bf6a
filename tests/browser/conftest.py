"""Real Chromium, at the size of a phone and of a desktop, before the page on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import LocalBackend, listening, save_knowing
from playwright.sync_api import Browser, Page, sync_playwright

from catdog.data.catalog import Catalog
from catdog.serving.app import build_app
from catdog.serving.config import Limits
from catdog.serving.pictures import open_folder

LIMITS = Limits(bytes=1_000_000, files=3, requests=8)
_NAMES = ("chromium", "chromium-browser", "google-chrome")
# The browser is to ask nobody but the page's server.
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
_SIZES = {
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "desktop": {"viewport": {"width": 1280, "height": 860}},
}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system, or Playwright's own; or the one that CHROMIUM names."""
    with sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
        path = found or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no Chromium: `apt-get install chromium`, or `playwright install chromium`, or set CHROMIUM")
        started = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def site(drawn: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's URL."""
    backend = LocalBackend(save_knowing(str(tmp_path_factory.mktemp("knowing") / "model"), drawn))
    app = build_app(backend, backend.predictor.info, LIMITS, open_folder(drawn.root, LIMITS.bytes))
    with listening(app) as url:
        yield url


@pytest.fixture(params=_SIZES)
def page(request: pytest.FixtureRequest, browser: Browser, site: str) -> Iterator[Page]:
    """The page, open; nothing may go wrong in its script, and nothing be asked from elsewhere."""
    context = browser.new_context(**_SIZES[request.param], reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(20_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda asked: errors.append(asked.url) if not asked.url.startswith(_allowed(site)) else None)
    page.goto(site)
    yield page
    context.close()
    assert errors == []


def _allowed(site: str) -> tuple[str, ...]:
    return (site, "data:", "blob:")
