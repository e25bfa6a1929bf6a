"""`catdog predict`: one's own photos, from whatever place and in whatever format, with the numbers of batch scoring."""

from __future__ import annotations

import csv
import http.server
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import POWERLESS, as_user, jpeg, save_untrained, write, zipped
from pictures import saved, smooth
from PIL import Image

from catdog.data.catalog import Catalog
from catdog.inference import Predictor


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it comes from a phone, with all that can be in it."""
    photo = smooth(120, 90)
    files = {
        "a.jpg": saved(photo, "JPEG"),
        "phone.heic": saved(photo, "HEIF"),
        "phone.avif": saved(photo, "AVIF"),
        "album/b.png": saved(photo, "PNG"),
        "album/without suffix": saved(photo, "WEBP"),
        "album/more.zip": zipped({"c.jpg": jpeg(3)}),
        "empty.jpg": b"",
        "notes.txt": b"not a photo",
        ".hidden.jpg": jpeg(1),
    }
    return write(tmp_path_factory.mktemp("pets"), files)


PETS = ["a.jpg", "album/b.png", "album/more/c.jpg", "album/without suffix", "empty.jpg", "phone.avif", "phone.heic"]


def test_every_file_of_a_folder_is_predicted_or_named(pets: Path, untrained: str, catdog) -> None:
    shown = catdog("predict", pets, "--model", untrained, "--json")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    rows = {Path(row["file"]).relative_to(pets).as_posix(): row for row in found["predictions"]}
    assert sorted(rows) == PETS
    assert {row["reason"] for row in found["skipped"]} == {"not an image", "hidden"}
    assert f"Left out: {pets}/notes.txt: not an image\n" in shown.err
    empty = rows.pop("empty.jpg")
    assert (empty["class"], empty["probability"], empty["status"]) == (None, None, "unreadable")
    assert empty["remarks"] == ["is empty (0 bytes)"]
    for row in rows.values():
        assert row["probability"] == max(row["probabilities"].values()) >= 0.5
        assert row["probabilities"][row["class"]] == row["probability"]
        assert sum(row["probabilities"].values()) == pytest.approx(1)
    # Lossy formats of the same picture, so not exactly the same.
    assert rows["phone.heic"]["logit"] == pytest.approx(rows["a.jpg"]["logit"], abs=0.05)
    assert rows["phone.avif"]["logit"] == pytest.approx(rows["a.jpg"]["logit"], abs=0.05)
    assert rows["phone.heic"]["remarks"][0].startswith("HEIF")


def test_the_numbers_are_those_of_batch_scoring_to_the_last_bit(drawn: Catalog, untrained: str, catdog) -> None:
    rows = drawn.split("test")
    batch = Predictor.load([untrained], batch_size=64).predict_uris(rows["uri"].to_pylist())
    found = json.loads(catdog("predict", *rows["uri"].to_pylist(), "--model", untrained, "--json").out)["predictions"]
    assert [row["file"] for row in found] == rows["uri"].to_pylist()
    assert np.float32([row["logit"] for row in found]).tobytes() == batch.logits.tobytes()
    assert [row["probabilities"]["dog"] for row in found] == batch.probabilities.tolist()


def test_several_models_are_averaged(pets: Path, drawn: Catalog, untrained: str, tmp_path: Path, catdog) -> None:
    other = str(tmp_path / "other")
    save_untrained(other, drawn, size=48)
    photo = pets / "a.jpg"
    logits = [
        json.loads(catdog("predict", photo, "--json", *named).out)["predictions"][0]["logit"]
        for named in (["--model", untrained], ["--model", other], ["--model", untrained, "--model", other])
    ]
    assert logits[2] == pytest.approx(np.mean(logits[:2]), abs=1e-6)


def test_a_zip_and_a_photo_by_name_as_a_table_and_as_csv(pets: Path, untrained: str, tmp_path: Path, catdog) -> None:
    packed = tmp_path / "pets.zip"
    packed.write_bytes(zipped({"x/d.jpg": jpeg(4), "read.me": b"no photo"}))
    strange = tmp_path / "not [really] a photo\x1b[31m.doc"
    strange.write_bytes((pets / "a.jpg").read_bytes())
    shown = catdog("predict", packed, strange, "--model", untrained, "--csv")
    assert shown.code == 0, shown.err
    lines = list(csv.DictReader(io.StringIO(shown.out)))
    assert [line["file"] for line in lines] == [f"{packed}/x/d.jpg", str(strange)]
    assert list(lines[0]) == ["file", "class", "probability", "probability_cat", "probability_dog", "status", "remarks"]
    assert float(lines[0]["probability_cat"]) + float(lines[0]["probability_dog"]) == pytest.approx(1)
    shown = catdog("predict", packed, strange, "--model", untrained)
    assert "\x1b[31m" not in shown.out
    assert "[really]" in shown.out
    assert lines[0]["class"] in shown.out
    assert f"{float(lines[0]['probability']):.2%}" in shown.out


def test_many_files_left_out_are_counted(untrained: str, tmp_path: Path, catdog) -> None:
    write(tmp_path, {"a.jpg": jpeg(1)} | {f"{number}.txt": b"text" for number in range(12)})
    assert catdog("predict", tmp_path, "--model", untrained).err.endswith("Left out: 12 files: not an image\n")


def test_a_contact_sheet_shows_photos_of_odd_names_and_what_is_unreadable(
    untrained: str, tmp_path: Path, catdog
) -> None:
    folder = tmp_path / "pets"
    red = saved(Image.new("RGB", (300, 200), "red"), "PNG")
    write(folder, {"猫" * 40 + ".png": red, "two\nlines\u202e.png": red, "broken.jpg": b"\xff\xd8\xff", "z.png": red})
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(red)
    shown = catdog("predict", folder, "--model", untrained, "--sheet", tmp_path / "sheet.png")
    assert shown.code == 0, shown.err
    assert f"Contact sheet: {tmp_path}/sheet.png" in shown.err
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        pixels = np.asarray(sheet).astype(int)
    is_red = (pixels == (255, 0, 0)).all(axis=2)
    assert is_red.sum() == 4 * 220 * round(220 * 2 / 3)


def test_a_sheet_that_cannot_be_written_costs_no_prediction(pets: Path, untrained: str, catdog) -> None:
    shown = catdog("predict", pets / "a.jpg", "--model", untrained, "--sheet", "/proc/x/sheet.png", "--csv")
    assert shown.code == 1
    assert shown.err.splitlines()[-1].startswith("catdog: could not write /proc/x/sheet.png")
    assert f"{pets}/a.jpg," in shown.out


def test_a_photo_that_cannot_be_read_counts_only_if_there_is_no_other(pets: Path, untrained: str, catdog) -> None:
    both = catdog("predict", pets / "empty.jpg", pets / "a.jpg", "--model", untrained)
    assert both.code == 0
    assert "is empty" in both.out
    alone = catdog("predict", pets / "empty.jpg", pets / "notes.txt", "--model", untrained)
    assert alone.code == 1
    assert (
        alone.err.splitlines(True)[-1]
        == f"catdog: none of the photos could be read: {pets}/empty.jpg: is empty (0 bytes)\n"
    )


@pytest.fixture(scope="module")
def server(pets: Path) -> Iterator[str]:
    """The folder on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Quiet(*arguments, directory=str(pets))
    )
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}"
    listener.shutdown()
    listener.server_close()


def test_photos_of_the_web_get_the_numbers_of_their_files(pets: Path, server: str, untrained: str, catdog) -> None:
    places = [f"{server}/a.jpg", f"{server}/gone.jpg", f"{server}/notes.txt", pets / "a.jpg"]
    shown = catdog("predict", *places, "--model", untrained, "--json", "--allow-private")
    assert shown.code == 0, shown.err
    first, gone, text, same = json.loads(shown.out)["predictions"]
    assert first["logit"] == same["logit"]
    assert gone["remarks"] == [f"{server}/gone.jpg answered 404 Not Found"]
    assert text["remarks"] == [f"{server}/notes.txt is something else, expected the address of an image itself"]
    refused = catdog("predict", f"{server}/a.jpg", "--model", untrained)
    assert refused.code == 1
    assert "leads to 127.0.0.1, which is not a public address" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict NOWHERE --model MODEL", "received .*no, which does not exist; expected photos"),
        ("predict PETS --model NOWHERE", "--model received .* holds no bundle.json"),
        ("predict PETS --model MODEL --json --csv", "received --json and --csv, expected one of them"),
        ("predict PETS --model MODEL --sheet sheet.jpg", "--sheet received 'sheet.jpg', expected the name of a .png"),
        ("predict PETS --model MODEL --sheet PETS", "--sheet received .*, expected the name of a .png file"),
        ("predict PETS", "received neither --model nor --imagenet, expected one of them"),
        ("predict --model MODEL", "Missing argument"),
        ("predict gopher://x/a.jpg --model MODEL", "received 'gopher://x/a.jpg', expected a local path"),
    ],
)
def test_refusals_are_one_line_and_exit_2(
    arguments: str, message: str, pets: Path, untrained: str, tmp_path: Path, catdog
) -> None:
    for name, place in {"NOWHERE": tmp_path / "no", "PETS": pets, "MODEL": untrained}.items():
        arguments = arguments.replace(name, str(place))
    refused = catdog(*arguments.split())
    assert refused.code == 2, refused.err
    assert refused.err.count("\n") == 1
    assert re.search(message, refused.err), refused.err


def test_a_folder_without_photos_says_so(untrained: str, tmp_path: Path, catdog) -> None:
    write(tmp_path, {"notes.txt": b"text"})
    refused = catdog("predict", tmp_path, "--model", untrained)
    assert (refused.code, refused.err) == (1, f"catdog: there is no image in {tmp_path}\n")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give its powers away")
def test_what_may_not_be_read_or_written_is_said_in_a_line_each(tmp_path: Path, untrained: str) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "1.jpg").chmod(0)
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o555)
    words = ("predict", tmp_path / "0.jpg", tmp_path / "1.jpg", "--model", untrained, "--sheet")
    done = as_user(POWERLESS, *words, tmp_path / "closed" / "sheet.png", HOME="/nonexistent")
    assert done.code == 1
    assert "Permission denied" in done.out
    lines = done.err.splitlines()
    assert lines[-1] == f"catdog: could not write {tmp_path}/closed/sheet.png: Permission denied"
    assert not [line for line in lines if "atplotlib" in line]
    assert not list((tmp_path / "closed").iterdir())
