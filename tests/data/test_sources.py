"""Every file of a source is accounted for, whatever its name, its archive or its kind."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import fsspec
import pytest
from helpers import COUNT, class_folders, jpeg, kaggle_files, write, zipped
from PIL import Image
from pyarrow import fs

from catdog import storage
from catdog.data import archives, datasets, images, sources, splits
from catdog.errors import CatdogError


def tarred(files: dict[str, bytes], mode: str = "w:gz", *more: tarfile.TarInfo) -> bytes:
    """A tar of files, and of members without bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return out.getvalue()


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg(7))).save(out, kind)
    return out.getvalue()


def test_images_under_other_names_are_taken_and_the_rest_is_told(tmp_path: Path, catdog) -> None:
    odd = {"9.AVIF": picture("AVIF"), "10": jpeg(10), "11.jpg_large": jpeg(11), "12.jpe": jpeg(12)}
    odd |= {"13.jp2": picture("JPEG2000"), "14.ppm": picture("PPM"), "15.tmp": picture("WEBP")}
    rest = {"notes.txt": b"not an image", "clip.mp4": bytes(100), "more.7z": b"7z\xbc\xaf\x27\x1c", "empty": b""}
    files = kaggle_files(test=8) | {f"test/{name}": data for name, data in odd.items()} | rest | {".hidden.jpg": b"x"}
    source = write(tmp_path / "src", files)
    os.mkfifo(source / "test" / "16.jpg")
    (source / "test" / "17.jpg").symlink_to("17.jpg")
    (source / "test" / "18.png").symlink_to("absent")
    shown = catdog("data", "prepare", source, tmp_path / "set")
    assert shown.code == 0, shown.err
    data = datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    assert data.split("test")["id"].to_pylist() == [str(n) for n in range(1, 16)]
    for uri in data.split("test")["uri"].to_pylist():
        assert images.read_image(uri, 16).status != "unreadable", uri
    assert f"Images: {2 * COUNT + 8} .jpg, " in shown.out
    assert "1 without a suffix" in shown.out
    for told in (
        "1 .txt (not an image), e.g. notes.txt",
        "1 .mp4 (not an image), e.g. clip.mp4",
        "1 .7z (an unsupported kind of archive: unpack it first)",
        "1 without a suffix (empty), e.g. empty",
        "1 .jpg (hidden), e.g. .hidden.jpg",
        "1 .jpg (not a regular file), e.g. test/16.jpg",
        "1 .jpg (a link that leads nowhere: Too many levels of symbolic links), e.g. test/17.jpg",
        "1 .png (a link that leads nowhere: No such file or directory), e.g. test/18.png",
    ):
        assert f"Not taken: {told}" in shown.out


def test_gaps_in_the_ids_and_another_sample_are_told(tmp_path: Path, catdog) -> None:
    files = kaggle_files(test=9)
    del files["test/4.jpg"], files["test/5.jpg"]
    sample = "id,label\n" + "".join(f"{n},0.5\n" for n in [*range(1, 8), 10])
    source = write(tmp_path / "src", files | {"sampleSubmission.csv": sample.encode()})
    shown = catdog("data", "prepare", source, tmp_path / "set")
    assert "Warning: Numbers missing among the 7 test ids: 2, such as 4, 5\n" in shown.err
    assert "Warning: Ids of the sample submission that the test files lack: 3, such as 4\n" in shown.err
    assert "Warning: Ids of the test files that the sample submission lacks: 2, such as 8\n" in shown.err
    assert (tmp_path / "set" / "sample_submission.csv").read_text() == sample


def test_a_sample_of_old_macs_is_read_and_one_that_is_no_csv_is_told(tmp_path: Path) -> None:
    files = kaggle_files(test=3)
    sample = b"id,label\r1,0.5\r2,0.5\r3,0.5\r"
    source = write(tmp_path / "src", files | {"sampleSubmission.csv": sample})
    told: list[splits.Remark] = []
    datasets.prepare_dataset(str(source), str(tmp_path / "set"), on_remark=told.append)
    assert "Sample submission: 3 ids, those of the test files" in [remark.text for remark in told]
    write(source, {"sampleSubmission.csv": b"id,label\n" + b"1" * 200_000})
    with pytest.raises(CatdogError, match="the sample submission of the source is not a CSV .field larger"):
        datasets.prepare_dataset(str(source), str(tmp_path / "other"))


def test_a_member_without_a_name_is_no_error(tmp_path: Path) -> None:
    data = zipped({"qzq": b"x"} | kaggle_files(test=3)).replace(b"qzq", b"\0zq")  # zipfile ends names at a zero
    (tmp_path / "set.zip").write_bytes(data)
    assert datasets.prepare_dataset(str(tmp_path / "set.zip"), str(tmp_path / "set")).count("test") == 3


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_are_sources_like_zips(tmp_path: Path, mode: str) -> None:
    ending = {"w": ".tar", "w:gz": ".tgz", "w:bz2": ".tar.bz2", "w:xz": ".tar.xz"}[mode]
    files = {f"dogscats/{name}": data for name, data in kaggle_files().items()}
    (tmp_path / f"dogscats{ending}").write_bytes(tarred(files, mode))
    expected = datasets.prepare_dataset(
        str(write(tmp_path / "src", kaggle_files())), str(tmp_path / "plain")
    ).fingerprint
    assert datasets.prepare_dataset(str(tmp_path / f"dogscats{ending}"), str(tmp_path / "a")).fingerprint == expected
    write(tmp_path / "folder", {f"dogscats{ending}": (tmp_path / f"dogscats{ending}").read_bytes()})
    assert datasets.prepare_dataset(str(tmp_path / "folder"), str(tmp_path / "b")).fingerprint == expected
    (tmp_path / "c.zip").write_bytes(zipped({f"inner{ending}": tarred(files, mode)}))
    assert datasets.prepare_dataset(str(tmp_path / "c.zip"), str(tmp_path / "c")).fingerprint == expected


def test_zips_written_on_other_systems(tmp_path: Path) -> None:
    expected = datasets.prepare_dataset(
        str(write(tmp_path / "src", kaggle_files())), str(tmp_path / "plain")
    ).fingerprint
    for name, change in (("dot", "./{}".format), ("windows", lambda path: path.replace("/", "\\"))):
        (tmp_path / f"{name}.zip").write_bytes(zipped({change(path): data for path, data in kaggle_files().items()}))
        assert datasets.prepare_dataset(str(tmp_path / f"{name}.zip"), str(tmp_path / name)).fingerprint == expected


def test_what_a_zip_cannot_be_read_for_is_said_with_what_to_do(tmp_path: Path) -> None:
    data = bytearray(zipped({"train/cat.0.jpg": jpeg()}))
    for signature, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(signature) + at : data.index(signature) + at + 2] = struct.pack("<H", 9)
    (tmp_path / "deflate64.zip").write_bytes(data)
    with pytest.raises(CatdogError, match="is compressed with Deflate64, which Python does not read; unpack it with"):
        datasets.prepare_dataset(str(tmp_path / "deflate64.zip"), str(tmp_path / "set"))
    (tmp_path / "photos.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(600))
    with pytest.raises(
        CatdogError, match="photos.7z is neither a zip nor a tar: .*unpack it with the system's own tool"
    ):
        datasets.prepare_dataset(str(tmp_path / "photos.7z"), str(tmp_path / "set"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, "../evil.jpg", "/evil.jpg", "train/../../evil.jpg"])
def test_unsafe_tars_are_refused_whole(tmp_path: Path, kind: object) -> None:
    member = tarfile.TarInfo("train/cat.0.jpg" if isinstance(kind, bytes) else str(kind))
    if isinstance(kind, bytes):
        member.type, member.linkname = kind, "/etc/passwd"
    (tmp_path / "bad.tgz").write_bytes(tarred(kaggle_files(), "w:gz", member))
    with pytest.raises(CatdogError, match="a link" if isinstance(kind, bytes) else "a path that leads outside"):
        datasets.prepare_dataset(str(tmp_path / "bad.tgz"), str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("ending", [".zip", ".tgz"])
def test_archives_that_grow_beyond_all_measure_are_refused(tmp_path: Path, ending: str) -> None:
    zeros = {"train/cat.0.bmp": bytes(65 << 20)}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat.0.bmp", zeros["train/cat.0.bmp"])
    (tmp_path / f"bomb{ending}").write_bytes(out.getvalue() if ending == ".zip" else tarred(zeros))
    with pytest.raises(CatdogError, match=r"would grow from [\d,]+ to 68,[\d,]+ bytes, more than 200 times"):
        datasets.prepare_dataset(str(tmp_path / f"bomb{ending}"), str(tmp_path / "set"))


def zip_of(files: list[tuple[str, bytes]]) -> bytearray:
    """A compressed zip in which names may come again."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in files:
            archive.writestr(name, data)
    return bytearray(out.getvalue())


def overlapping() -> bytes:
    """Two members whose bytes are the same, as in Fifield's bomb, whose millions are."""
    data = zip_of([("train/cat.0.jpg", jpeg()), ("train/dog.0.jpg", jpeg())])
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    return bytes(data)


def encrypted() -> bytes:
    data = zip_of([("train/cat.0.jpg", jpeg())])
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + at] |= 1
    return bytes(data)


def described(size: int) -> bytes:
    """A tar whose first entry is a description of that size, of which there is nothing."""
    info = tarfile.TarInfo("train/cat.0.jpg")
    info.type, info.size = tarfile.XHDTYPE, max(size, 0)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        block[124:136] = b"\xff" * 12
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(10_240)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.zip", overlapping(), r"holds 'train/cat.0.jpg' and 'train/dog.0.jpg' in the same bytes, as archive bombs"),
        ("b.zip", encrypted(), "holds train/cat.0.jpg, which is encrypted; unpack it with the system's own tool"),
        (
            "c.zip",
            bytes(zip_of([(f"train/{n}.bmp", bytes(24 << 20)) for n in range(3)])),
            "would grow from .* 200 times",
        ),
        (
            "d.zip",
            bytes(zip_of([("train/A.jpg", b"1"), ("train/a.jpg", b"2")])),
            "a.jpg and train/A.jpg, the same name",
        ),
        ("e.zip", bytes(zip_of([("caf\xe9.jpg", b"1"), ("cafe\u0301.jpg", b"2")])), "the same name to many disks"),
        ("f.zip", bytes(zip_of([("a.jpg", b"1"), ("a.jpg", b"2")])), "holds a.jpg twice"),
        ("g.tgz", tarred({"train/A.jpg": b"1", "train/a.jpg": b"2"}), "the same name to many disks"),
        ("h.tar", described(1 << 40), "damaged zip or tar .an entry has 1,099,511,627,776 bytes of description"),
        ("i.tar", described(-1), "damaged zip or tar .an entry has -1 bytes of description"),
    ],
)
def test_archives_made_to_do_harm(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CatdogError, match=message) as error:
        datasets.prepare_dataset(str(tmp_path / name), str(tmp_path / "set"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("ending", [".zip", ".tgz"])
def test_an_archive_of_more_files_than_any_set_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 50)
    (tmp_path / f"many{ending}").write_bytes(zipped(kaggle_files()) if ending == ".zip" else tarred(kaggle_files()))
    with pytest.raises(CatdogError, match="holds more than 50 files; unpack it"):
        datasets.prepare_dataset(str(tmp_path / f"many{ending}"), str(tmp_path / "set"))


def test_a_file_that_no_photo_is_as_large_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 100_000)
    files = kaggle_files() | {"train/cat.77.jpg": bytes(100_001)}
    (tmp_path / "src.zip").write_bytes(zipped(files))
    for source in (write(tmp_path / "src", files), tmp_path / "src.zip"):
        with pytest.raises(
            CatdogError, match="has 100,001 bytes, expected an image of 100,000 .*--ignore 'train/cat.77"
        ):
            datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    data = datasets.prepare_dataset(str(tmp_path / "src.zip"), str(tmp_path / "set"), ignore=["train/cat.77.jpg"])
    assert data.count("train") + data.count("valid") == 2 * COUNT


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path, catdog) -> None:
    source = write(tmp_path / "src", kaggle_files())
    for name in (b"train/cat.caf\xe9.1.jpg", b"train/cat.900 \xe9.jpg"):
        with open(os.fsencode(source) + b"/" + name, "wb") as stream:
            stream.write(jpeg(sum(name)))
    refused = catdog("data", "prepare", source, tmp_path / "set")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "e.g. train/cat.caf%E9.1.jpg" in refused.err
    data = datasets.prepare_dataset(str(source), str(tmp_path / "set"), ignore=["*caf*"])
    assert "train/cat.900 %E9.jpg" in data.table["key"].to_pylist()
    assert len([path for path in (tmp_path / "set" / "images" / "train").iterdir() if "%E9" in path.name]) == 1
    name = "train/cat.900 é.jpg".encode("latin-1").decode("utf-8", "surrogateescape")
    (tmp_path / "latin.tar").write_bytes(tarred(kaggle_files() | {name: jpeg(901)}, "w"))
    data = datasets.prepare_dataset(str(tmp_path / "latin.tar"), str(tmp_path / "tar"))
    assert "train/cat.900 %E9.jpg" in data.table["key"].to_pylist()


def test_folders_beside_the_splits_can_be_ignored(tmp_path: Path, catdog) -> None:
    files = class_folders("cats", "dogs", "training_set/") | class_folders("cats", "dogs", "test_set/")
    files = {name: jpeg(number) for number, name in enumerate(files)} | {"single_prediction/cat_or_dog.jpg": jpeg(9000)}
    source = write(tmp_path / "src", files)
    refused = catdog("data", "prepare", source, tmp_path / "set")
    assert refused.code == 1
    assert "(--ignore 'single_prediction' leaves such a folder out)" in refused.err
    shown = catdog("data", "prepare", source, tmp_path / "set", "--ignore", "single_prediction")
    assert shown.code == 0, shown.err
    assert "Not taken: 1 .jpg (ignored), e.g. single_prediction/cat_or_dog.jpg" in shown.out
    write(tmp_path / "three", class_folders("ants", "bees") | {"sample/1.jpg": jpeg(9001)})
    with pytest.raises(CatdogError, match=r"found 3 class folders .*, or leave folders out with --ignore 'sample'"):
        datasets.prepare_dataset(str(tmp_path / "three"), str(tmp_path / "b"))
    assert (
        datasets.prepare_dataset(str(tmp_path / "three"), str(tmp_path / "b"), ignore=["sample/*"]).table.num_rows == 80
    )


def test_dev_is_a_validation_folder(tmp_path: Path) -> None:
    files = class_folders("cats", "dogs", "train/") | {"dev/cats/a.jpg": jpeg(9000), "dev/dogs/b.jpg": jpeg(9001)}
    data = datasets.prepare_dataset(str(write(tmp_path / "src", files)), str(tmp_path / "set"))
    assert sorted(data.split("valid")["key"].to_pylist()) == ["dev/cats/a.jpg", "dev/dogs/b.jpg"]


def test_a_question_mark_in_a_buckets_key(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory")))
    monkeypatch.setattr(storage, "_bucket_filesystem", lambda _scheme, _bucket, _query: bucket)
    odd = {"train/cat.1?.jpg": jpeg(9001), "train/cat.2?size=9.jpg": jpeg(9002), "train/cat.3%3F%25.jpg": jpeg(9003)}
    for name, content in (kaggle_files() | odd).items():
        with bucket.open_output_stream(f"bucket/src/{name}") as stream:
            stream.write(content)
    data = datasets.prepare_dataset("s3://bucket/src?region=x", "s3://bucket/set?region=x")
    rows = {row["key"]: row["uri"] for row in data.table.to_pylist()}
    for key, content in odd.items():
        assert storage.read_bytes(rows[key]) == content
