"""The review page by keyboard alone: decisions, going back, and a server that has ended."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import listening
from playwright.sync_api import Browser, Page, expect

from catdog.data.catalog import Catalog
from catdog.experiments import audit
from catdog.experiments.audit import Finding
from catdog.serving.review import Review, build_review_app


@pytest.fixture(params=[390, 1280])
def page(request: pytest.FixtureRequest, browser: Browser, drawn: Catalog, tmp_path: Path) -> Iterator[Page]:
    """A review of three labels, the first with a near-duplicate."""
    keys = drawn.split("train")["key"].to_pylist()
    label = dict(zip(drawn.table["key"].to_pylist(), drawn.table["label"].to_pylist(), strict=True))
    findings = [Finding(key, "train", drawn.class_names[label[key]], "label", 0.01) for key in keys[:3]]
    findings.append(Finding(keys[0], "train", "", "duplicate", 2, keys[9]))
    audit.write_findings(findings, str(tmp_path / "audit.csv"))
    out = str(tmp_path / "out.csv")
    app = build_review_app(Review(drawn, str(tmp_path / "audit.csv"), out), drawn.class_names, out)
    context = browser.new_context(viewport={"width": request.param, "height": 860})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    with listening(app) as url:
        page.goto(url)
        yield page
        context.close()
    assert errors == []


def test_by_keyboard(page: Page, drawn: Catalog, tmp_path: Path) -> None:
    keys = drawn.split("train")["key"].to_pylist()

    def expect_written(decisions: dict[str, str]) -> None:
        written: dict[str, str] = {}
        for _ in range(50):
            if (tmp_path / "out.csv").exists():
                written = dict(list(csv.reader((tmp_path / "out.csv").open(newline="")))[1:])
            if written == decisions:
                return
            page.wait_for_timeout(100)
        assert written == decisions

    question, status = page.locator("#question"), page.locator("#status")
    expect(question).to_contain_text("1 of 3: is this a")
    expect(page.locator("#pair img")).to_have_count(2)
    expect(page.locator("#findings li")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("2")
    expect(question).to_contain_text("2 of 3")
    expect(page.locator("#pair img")).to_have_count(1)
    expect(status).to_contain_text("1 flipped, 0 left out, 2 not decided")
    page.keyboard.press("3")
    page.keyboard.press("1")
    expect(status).to_contain_text("1 kept, 1 flipped, 1 left out, 0 not decided")
    expect_written({keys[0]: "flip", keys[1]: "leave out", keys[2]: "keep"})
    # Back, and thought better of it.
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator('[data-action="flip"]')).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("x")
    expect(status).to_contain_text("1 not decided")
    expect_written({keys[1]: "leave out", keys[2]: "keep"})
    # It opens again where something is left to decide.
    page.reload()
    expect(question).to_contain_text("1 of 3")
    page.get_by_role("button", name="2 Flip").click()
    expect(status).to_contain_text("0 not decided")


def test_nothing_looks_decided_that_is_not_written(page: Page) -> None:
    expect(page.locator("#question")).to_contain_text("1 of 3")
    page.route("**/decisions", lambda route: route.abort())
    page.keyboard.press("2")
    expect(page.locator("#error")).to_contain_text("this was not written")
    expect(page.locator("#question")).to_contain_text("1 of 3")
    expect(page.locator("#status")).to_contain_text("3 not decided")
