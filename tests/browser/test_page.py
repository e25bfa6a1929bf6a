"""The page, used as people use it: by mouse, by touch, by keyboard, with a file, a paste, an address."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from helpers import jpeg
from pictures import saved, smooth
from PIL import Image
from playwright.sync_api import Page, expect

from catdog.data.catalog import Catalog

JPEG = saved(smooth(300, 200), "JPEG")


def give(page: Page, *pictures: tuple[str, bytes]) -> None:
    """Chooses files."""
    files = [{"name": name, "mimeType": "", "buffer": data} for name, data in pictures]
    page.set_input_files("#choose", files)  # type: ignore[arg-type]


def transfer(page: Page, event: str, data: bytes | None, text: str = "") -> None:
    """Drops or pastes a file, or a text, where people would."""
    content = base64.b64encode(data).decode() if data is not None else None
    handle = page.evaluate_handle(
        """([content, text]) => {
            const transfer = new DataTransfer();
            if (content) {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], "given.jpg", { type: "image/jpeg" }));
            }
            if (text) transfer.setData("text/plain", text);
            return transfer;
        }""",
        [content, text],
    )
    name = {"drop": "dataTransfer", "paste": "clipboardData"}[event]
    page.evaluate(
        """([event, name, transfer]) => {
            const kind = { drop: DragEvent, paste: ClipboardEvent }[event];
            document.querySelector("#drop").dispatchEvent(
                new kind(event, { bubbles: true, cancelable: true, [name]: transfer }));
        }""",
        [event, name, handle],
    )


def expect_answer(page: Page, name: str, tries: int) -> None:
    """Waits until the picture is answered, and looks at everything that is said."""
    expect(page.locator("#about")).to_contain_text(name)
    expect(page.locator("#history li")).to_have_count(tries)
    expect(page.locator("#verdict")).to_have_text(re.compile(r"a (cat|dog)"))
    expect(page.locator("#bar")).to_have_attribute("aria-label", re.compile(r"cat [\d.]+ %, dog [\d.]+ %"))
    expect(page.locator("#status")).to_have_text(re.compile(r"(cat|dog) [\d.]+ %\. It took [\d.]+ seconds"))
    shares = [float(page.locator(f"#text-{side}").inner_text().split()[1]) for side in ("first", "second")]
    assert sum(shares) == pytest.approx(100, abs=0.11)
    widths = [page.locator(f"#share-{side}").bounding_box()["width"] for side in ("first", "second")]  # type: ignore[index]
    assert widths[0] / sum(widths) == pytest.approx(shares[0] / 100, abs=0.02)
    assert page.evaluate("document.querySelector('#picture').naturalWidth") > 0
    # Nothing is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_file_is_chosen(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("No picture yet.")
    give(page, ("rex.jpg", JPEG))
    expect_answer(page, "rex.jpg", 1)
    expect(page.locator("#verdict")).to_be_in_viewport()
    assert page.locator("#photograph").get_attribute("capture") == "environment"
    # Where there is a mouse, choosing a file is no worse.
    assert page.locator("#photograph").is_visible() == (page.evaluate("innerWidth") < 800)


def test_a_picture_that_no_browser_shows(page: Page) -> None:
    out = io.BytesIO()
    pillow_heif.from_pillow(smooth(300, 200)).save(out)
    give(page, ("IMG_1.HEIC", out.getvalue()))
    expect_answer(page, "IMG_1.HEIC", 1)
    expect(page.locator("#remark")).to_contain_text("HEIF")


def test_a_picture_of_neither_is_not_shown_as_an_answer(page: Page, drawn: Catalog) -> None:
    noise = Image.fromarray(np.random.default_rng(0).random((32, 32)) < 0.5)
    give(page, ("noise.png", saved(noise, "PNG")))
    expect_answer(page, "noise.png", 1)
    expect(page.locator("#verdict")).to_have_text(re.compile("^Perhaps neither; if one of them, a "))
    expect(page.locator("#remark")).to_contain_text("unlike the photos that the model learned from")
    give(page, ("known.jpg", Path(drawn.split("test")["uri"][0].as_py()).read_bytes()))
    expect_answer(page, "known.jpg", 2)
    expect(page.locator("#verdict")).not_to_contain_text("neither")


def test_several_files_of_which_one_is_no_picture(page: Page) -> None:
    give(page, ("rex.jpg", JPEG), ("notes.txt", b"hello"), ("cut.jpg", JPEG[:-2000]))
    expect(page.locator("#error")).to_have_text(re.compile("notes.txt cannot be read: is not an image"))
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#remark")).to_contain_text("damaged")
    give(page, ("rex.jpg", JPEG))
    expect(page.locator("#error")).to_be_hidden()


def test_what_is_too_much_is_told_before_it_is_sent(page: Page) -> None:
    give(page, *[("rex.jpg", JPEG)] * 4)
    expect(page.locator("#error")).to_have_text("These are 4 files; at most 3 go at a time.")
    give(page, ("large.jpg", bytes(1_200_000)))
    expect(page.locator("#error")).to_contain_text("1.2 MB is too much; at most 1 MB")
    expect(page.locator("#history li")).to_have_count(0)


def test_a_picture_is_dropped_or_pasted(page: Page) -> None:
    transfer(page, "drop", JPEG)
    expect_answer(page, "given.jpg", 1)
    transfer(page, "paste", JPEG)
    expect_answer(page, "given.jpg", 2)
    transfer(page, "drop", None, "no address")
    expect(page.locator("#error")).to_have_text("That is no picture, and no address of one.")


def test_addresses(page: Page, site: str) -> None:
    page.get_by_label("Or the address of a picture").fill("rex.jpg")
    page.get_by_role("button", name="Look").click()
    expect(page.locator("#error")).to_contain_text("begins with https://")
    transfer(page, "paste", None, f"{site}page/icon.svg")
    expect(page.locator("#url")).to_have_value(f"{site}page/icon.svg")
    expect(page.get_by_role("alert")).to_contain_text("is not a public address")
    expect(page.get_by_role("alert")).to_be_in_viewport()


def test_random_and_where_it_looked(page: Page) -> None:
    page.get_by_role("button", name="Random").click()
    expect_answer(page, ".jpg", 1)
    plain = page.locator("#picture").get_attribute("src")
    button = page.get_by_role("button", name="Show where it looked")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#legend")).to_be_visible()
    expect(page.locator("#picture")).to_have_attribute("src", re.compile("^blob:"))
    page.wait_for_timeout(100)
    assert page.evaluate("document.querySelector('#picture').naturalWidth") > 0
    button.click()
    expect(page.locator("#picture")).to_have_attribute("src", plain or "")
    expect(page.locator("#legend")).to_be_hidden()


def test_the_last_ten(page: Page) -> None:
    for number in range(12):
        give(page, (f"{number}.jpg", jpeg(number, (90, 60))))
        expect(page.locator("#about")).to_contain_text(f"{number}.jpg, answered")
    tries = page.locator("#history button")
    expect(tries).to_have_count(10)
    expect(tries.first).to_have_attribute("title", "11.jpg")
    expect(tries.last).to_have_attribute("title", "2.jpg")
    verdict = re.sub("Show again: 2.jpg, ", "", tries.last.get_attribute("aria-label") or "")
    tries.last.click()
    expect(page.locator("#about")).to_contain_text("2.jpg, answered")
    expect(page.locator("#status")).to_contain_text(verdict)
    expect(tries.last).to_have_attribute("aria-current", "true")


def test_by_keyboard_alone(page: Page, tmp_path: Path) -> None:
    """Tab reaches everything in the order of reading, with a visible focus; Enter and Space do what a click does."""
    (tmp_path / "rex.jpg").write_bytes(JPEG)
    page.on("filechooser", lambda _chooser: None)  # Playwright tells Chromium to report them, which takes a moment
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        widths = "[document.activeElement, document.activeElement.closest('label') || document.activeElement]"
        style = page.evaluate(f"{widths}.map((each) => getComputedStyle(each).outlineWidth)")
        assert "3px" in style, order
    expected = ["choose", "photograph", "random", "url", "Look", "For programs: the API"]
    if not page.locator("#photograph").is_visible():
        expected.remove("photograph")
        order.pop()
    assert order == expected
    page.locator("#choose").focus()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "rex.jpg")
    expect_answer(page, "rex.jpg", 1)
    page.locator("#random").focus()
    page.keyboard.press("Space")
    expect(page.locator("#history li")).to_have_count(2)
    page.locator("#explain").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#explain")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#explain")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#about")).to_contain_text("rex.jpg")
    expect(page.locator('#history [aria-current="true"]')).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Page, scheme: str) -> None:
    """All text has the contrast of WCAG 2.2 AA: 4.5 to 1."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    give(page, ("cut.jpg", JPEG[:-2000]))
    expect_answer(page, "cut.jpg", 1)
    give(page, *[("rex.jpg", JPEG)] * 4)
    expect(page.locator("#error")).to_be_visible()
    found = page.evaluate(
        """() => [...document.querySelectorAll("p, h1, h2, label, button, a, strong, .ends span")]
            .filter((each) => each.checkVisibility() && each.textContent.trim())
            .map((each) => {
                let behind = each;
                while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
                return [each.textContent.trim().slice(0, 30), getComputedStyle(each).color,
                        getComputedStyle(behind).backgroundColor];
            })"""
    )
    assert len(found) > 15
    for text, colour, ground in found:
        light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, colour, ground)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    share = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_description_of_the_api(page: Page, site: str) -> None:
    page.get_by_role("link", name="For programs: the API").click()
    expect(page.get_by_role("heading", name="POST /v1/predict")).to_be_visible()
    expect(page.locator("pre")).to_contain_text(f"curl -F files=@pet.jpg {site}v1/predict")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("link", name="the page").click()
    expect(page.get_by_role("heading", name="Cat or dog?")).to_be_visible()


def test_the_server_has_ended(page: Page) -> None:
    page.route("**/v1/predict*", lambda route: route.abort())
    give(page, ("rex.jpg", JPEG))
    expect(page.locator("#error")).to_have_text("The server does not answer. Is it still running?")


def test_a_busy_server_is_asked_again(page: Page) -> None:
    answers = []

    def busy(route, request) -> None:  # type: ignore[no-untyped-def]
        answers.append(request.url)
        if len(answers) == 1:
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": "busy"})
        else:
            route.continue_()

    page.route("**/v1/predict*", busy)
    give(page, ("rex.jpg", JPEG))
    expect_answer(page, "rex.jpg", 1)
    assert len(answers) == 2


def test_the_picture_is_upright(page: Page) -> None:
    """As the model sees it: a photo that a phone took upright is stored lying, with a note (EXIF)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    smooth(300, 200).save(out, "JPEG", exif=exif)
    give(page, ("phone.jpg", out.getvalue()))
    expect_answer(page, "phone.jpg", 1)
    size = page.evaluate(
        "(({ naturalWidth, naturalHeight }) => [naturalWidth, naturalHeight])(document.querySelector('#picture'))"
    )
    assert size == [200, 300]
