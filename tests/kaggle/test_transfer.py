"""Downloads that are cut, changed and refused: what is kept is always a part of one version, and nothing else is."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import class_folders, jpeg, zipped
from stand_in import File, StandIn, as_kaggle, serve

from catdog.data import datasets
from catdog.errors import CatdogError
from catdog.kaggle import download, transfer
from catdog.kaggle.transfer import Progress

CONTENT = np.random.default_rng(0).bytes(3_000_000)
# Whole chunks, as an interruption may lose a part of one.
ONE, TWO = 15 * 65_536, 38 * 65_536
OTHER = np.random.default_rng(1).bytes(3_000_000)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with serve() as stand_in:
        yield stand_in


def fetch(server: StandIn, part: Path, seen: list[Progress] | None = None, attempts: int = 4) -> None:
    transfer.fetch_url(f"{server.url}/x.zip", part, (seen if seen is not None else []).append, attempts, pause=0.01)


def test_a_connection_that_drops_is_taken_up_where_it_ended(server: StandIn, tmp_path: Path) -> None:
    server.files["x.zip"] = File(CONTENT, drop_after=[ONE, ONE, TWO])
    seen: list[Progress] = []
    fetch(server, tmp_path / "x.part", seen)
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    # The second answer was empty: it gained nothing, and the third went on from the same byte.
    assert server.calls("x.zip") == [None, f"bytes={ONE}-", f"bytes={ONE}-", f"bytes={TWO}-"]
    assert seen[-1] == Progress(len(CONTENT), len(CONTENT))
    assert sum("trying again" in each.note for each in seen) == 3


def test_a_later_process_goes_on_and_a_complete_file_is_not_asked_for(server: StandIn, tmp_path: Path) -> None:
    file = server.files["x.zip"] = File(CONTENT, drop_after=[TWO] * 9)
    with pytest.raises(CatdogError, match="2.5 of 3.0 MB are kept: run the same command again to go on"):
        fetch(server, tmp_path / "x.part", attempts=2)
    file.drop_after.clear()
    fetch(server, tmp_path / "x.part")
    assert server.calls("x.zip")[-1] == f"bytes={TWO}-"
    fetch(server, tmp_path / "x.part")
    assert len(server.calls("x.zip")) == 3
    assert (tmp_path / "x.part").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ['"two"', ""])
def test_two_versions_are_never_mixed(server: StandIn, tmp_path: Path, etag: str) -> None:
    """The file changes while it is downloaded; the server obeys `If-Range`, or sends no tag at all."""

    def change(file: File) -> None:
        file.content, file.etag = OTHER, etag

    server.files["x.zip"] = File(CONTENT, etag and '"one"', drop_after=[1_000_000], after=change)
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == OTHER


def test_a_server_that_continues_with_another_version_is_not_believed(server: StandIn, tmp_path: Path) -> None:
    def change(file: File) -> None:
        file.content, file.etag = OTHER, '"two"'

    server.files["x.zip"] = File(CONTENT, drop_after=[1_000_000], obeys_if_range=False, after=change)
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == OTHER


def test_a_server_without_ranges_is_asked_again_for_everything(server: StandIn, tmp_path: Path) -> None:
    server.files["x.zip"] = File(CONTENT, knows_ranges=False, drop_after=[1_000_000, 2_000_000])
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    # If it never gets further, it ends.
    server.files["x.zip"] = File(OTHER, '"two"', knows_ranges=False, drop_after=[1_000_000] * 99)
    (tmp_path / "x.part").unlink()
    with pytest.raises(CatdogError, match="the connection|broken|IncompleteRead"):
        fetch(server, tmp_path / "x.part")
    assert len(server.calls("x.zip")) < 12


def test_a_file_that_shrank(server: StandIn, tmp_path: Path) -> None:
    server.files["x.zip"] = File(CONTENT, drop_after=[2_900_000] * 9)
    with pytest.raises(CatdogError):
        fetch(server, tmp_path / "x.part", attempts=1)
    server.files["x.zip"] = File(CONTENT[:100_000])
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT[:100_000]


def test_busy_servers_are_asked_again_and_refusals_are_not(server: StandIn, tmp_path: Path) -> None:
    server.files["x.zip"] = File(CONTENT, answers=[503, 429])
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    for file, message in (
        (File(CONTENT, answers=[403]), "x.zip answers 403 Forbidden; look in a browser"),
        (File(b"<html>Sign in to this hotel's network", kind="text/html"), "answers with a web page"),
    ):
        server.files["x.zip"] = file
        before = len(server.calls("x.zip"))
        with pytest.raises(CatdogError, match=message):
            fetch(server, tmp_path / "y.part")
        assert len(server.calls("x.zip")) == before + 1
        assert not (tmp_path / "y.part").exists()
    with pytest.raises(CatdogError, match="could not download http://127.0.0.1:9/x .*Connection refused.; nothing was"):
        transfer.fetch_url("http://127.0.0.1:9/x", tmp_path / "z.part", lambda _: None, attempts=2, pause=0.01)


# --- archives ----------------------------------------------------------------------------------------------------


def tgz(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("which", ["microsoft", "fastai"])
def test_an_archive_is_downloaded_verified_and_prepared(
    which: str, server: StandIn, tmp_path: Path, catdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = download.URLS[which].rpartition("/")[2]
    files = (
        class_folders("Cat", "Dog", "PetImages/") if which == "microsoft" else class_folders("cats", "dogs", "train/")
    )
    content = zipped(files) if which == "microsoft" else tgz(files)
    server.files[name] = File(content, drop_after=[len(content) // 2])
    monkeypatch.setitem(download.URLS, which, f"{server.url}/{name}")
    shown = catdog("data", "download", which, tmp_path / "down")
    assert shown.code == 0, shown.err
    assert "trying again in 1 s" in shown.err
    assert f"catdog data prepare {tmp_path}/down/{name} data/{which}" in shown.out
    assert (tmp_path / "down" / name).read_bytes() == content
    origin = json.loads((tmp_path / "down" / f"{name}.origin.json").read_text())
    assert origin["bytes"] == len(content)
    assert f"SHA-256 {origin['sha256']}" in shown.out
    assert sorted(path.name for path in (tmp_path / "down").iterdir()) == [name, f"{name}.origin.json"]
    assert datasets.prepare_dataset(str(tmp_path / "down" / name), str(tmp_path / "set")).table.num_rows == len(files)
    asked = len(server.requests)
    again = catdog("data", "download", which, tmp_path / "down")
    assert f"Download: skipped, there is {tmp_path}/down/{name}" in again.out
    assert len(server.requests) == asked
    (tmp_path / "down" / name).write_bytes(content + b"x")
    changed = catdog("data", "download", which, tmp_path / "down")
    assert changed.code == 1
    assert "is not the file that was downloaded" in changed.err
    assert changed.err.count("\n") == 1


@pytest.mark.parametrize("which", ["microsoft", "fastai"])
def test_a_damaged_archive_is_not_kept(
    which: str, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"Cat/{n}.jpg": jpeg(n) for n in range(30)}
    content = bytearray(zipped(files) if which == "microsoft" else tgz(files))
    content[len(content) // 2] ^= 255
    server.files["x"] = File(bytes(content))
    monkeypatch.setitem(download.URLS, which, f"{server.url}/x")
    with pytest.raises(CatdogError, match="x is damaged"):
        download.download_archive(which, str(tmp_path / "down"))
    server.files["x"] = File(b"not an archive at all")
    with pytest.raises(CatdogError, match="x is neither a zip nor a gzipped tar"):
        download.download_archive(which, str(tmp_path / "down"))
    assert list((tmp_path / "down").rglob("*")) == []


@pytest.mark.parametrize("ending", ["zip", "tgz"])
def test_an_archive_bomb_is_not_kept(
    ending: str, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Cat/0.jpg", bytes(65 << 20))
    server.files["x"] = File(out.getvalue() if ending == "zip" else tgz({"train/cats/0.jpg": bytes(65 << 20)}))
    monkeypatch.setitem(download.URLS, "fastai", f"{server.url}/x")
    with pytest.raises(CatdogError, match="would grow from .* more than 200 times"):
        download.download_archive("fastai", str(tmp_path / "down"))
    assert list((tmp_path / "down").rglob("*")) == []


def test_kaggles_data_by_its_own_client(tmp_path: Path, catdog, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped(class_folders("cats", "dogs", "train/"))
    with as_kaggle(monkeypatch) as kaggle:
        kaggle.files["mine.zip"] = File(content)
        shown = catdog("data", "download", "kaggle", tmp_path / "down", "--competition", "mine")
        assert shown.code == 0, shown.err
        assert (tmp_path / "down" / "mine.zip").read_bytes() == content
        assert kaggle.calls("DownloadDataFiles") == [{"competitionName": "mine"}]
        # What an earlier process left is continued.
        part = tmp_path / "two" / ".parts" / "mine.zip"
        part.parent.mkdir(parents=True)
        part.write_bytes(content[:5000])
        marker = {"validator": '"one"', "size": len(content)}
        part.with_name("mine.zip.kaggle-partial").write_text(json.dumps(marker))
        assert catdog("data", "download", "kaggle", tmp_path / "two", "--competition", "mine").code == 0
        assert kaggle.calls("mine.zip")[-1] == "bytes=5000-"
        assert (tmp_path / "two" / "mine.zip").read_bytes() == content
        for fault, message in {
            (
                403,
                "You must accept this competition's rules",
            ): "accept its rules on https://www.kaggle.com/c/mine/rules",
            (401, "Unauthenticated"): "make a new token on your account's settings page",
            (404, "Not found"): "there is no competition 'mine', or it is closed",
        }.items():
            kaggle.faults["DownloadDataFiles"] = fault
            refused = catdog("data", "download", "kaggle", tmp_path / "three", "--competition", "mine")
            assert refused.code == 1
            assert fault[1] in refused.err
            assert message in refused.err
            assert refused.err.count("\n") == 1
        kaggle.user = ""  # the token has expired
        refused = catdog("data", "download", "kaggle", tmp_path / "three", "--competition", "mine")
        assert "no Kaggle credentials: run `kaggle auth login`" in refused.err


def test_where_nothing_can_be_downloaded_to(tmp_path: Path, catdog) -> None:
    (tmp_path / "file").write_text("x")
    for dest, message in (
        ("s3://bucket/x", "expected a folder on this machine"),
        (tmp_path / "file", "which is a file"),
    ):
        refused = catdog("data", "download", "fastai", dest)
        assert refused.code == 2
        assert message in refused.err
