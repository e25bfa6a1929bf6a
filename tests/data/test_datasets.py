"""From the layouts people have to one catalog, and what must never be unpacked."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from helpers import COUNT, class_folders, jpeg, kaggle_files, kaggle_zip, write, zipped

from catdog.data import catalog, datasets, synthetic
from catdog.data.splits import Remark
from catdog.errors import CatdogError, UsageError


def splits(data: catalog.Catalog) -> dict[str, str]:
    return dict(zip(data.table["key"].to_pylist(), data.table["split"].to_pylist(), strict=True))


def test_kaggles_zip_in_zip(tmp_path: Path) -> None:
    source = tmp_path / "dogs-vs-cats-redux-kernels-edition.zip"
    source.write_bytes(kaggle_zip())
    data = datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    assert data.table.column_names == ["key", "id", "uri", "label", "split", "digest"]
    assert data.class_names == ("cat", "dog")
    assert data.count("train") + data.count("valid") == 2 * COUNT
    assert data.count("valid", 0) > 0 < data.count("valid", 1)
    assert data.split("test")["id"].to_pylist() == ["1", "2", "3"]
    assert data.split("test")["label"].null_count == 3
    for row in data.table.to_pylist():
        assert Path(row["uri"]).read_bytes() == kaggle_files()[row["key"]]
        assert row["digest"] == catalog.digest_of(kaggle_files()[row["key"]])
        if row["label"] is not None:
            assert row["label"] == int("dog" in row["key"])
    again = catalog.read_catalog(str(tmp_path / "set"))
    assert again.table.equals(data.table)
    assert again.fingerprint == data.fingerprint


def test_numbers_in_names_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    """Which ends of names, signs and leading zeros do not change; the order of older data sets must stay."""
    names = ["a 5.jpg", "a.jpg", "a-12.jpg", "a-012.5.jpg", "a007.jpg", "a9.jpg", "a9b.jpg", "a10.jpg", "a10-2.jpg",
             "a10-10.jpg", "a123456789012345678901.jpg", "aé3.jpg", "b.jpg", "b1.jpg",
             "a１.jpg", "a１２.jpg", "a٣b.jpg"]  # fmt: skip
    write(tmp_path / "source", {f"test/{name}": jpeg(number) for number, name in enumerate(names)})
    write(tmp_path / "source", {f"train/{pet}.{number}.jpg": jpeg(99 + ord(pet[0]) + number) for pet in ("cat", "dog")
                                for number in (2, 10)})  # fmt: skip
    data = datasets.prepare_dataset(str(tmp_path / "source"), str(tmp_path / "set"))

    def by_parts(key: str) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", key)
        return [(0, int(part), "") if part.isascii() and part.isdecimal() else (1, 0, part) for part in parts]

    found = data.split("test")["key"].to_pylist()
    assert found == sorted(sorted(found), key=by_parts)
    assert found.index("test/a9.jpg") < found.index("test/a10.jpg") < found.index("test/b.jpg")


def test_zip_folder_and_half_unpacked_give_the_same_catalog(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(kaggle_zip())
    write(tmp_path / "unpacked", kaggle_files())
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "half")
    # And somebody who unpacked the inner zips beside themselves.
    shutil.copytree(tmp_path / "half", tmp_path / "both")
    write(tmp_path / "both", kaggle_files())
    write(tmp_path / "wrapped" / "dogs-vs-cats", kaggle_files())
    prints = {
        datasets.prepare_dataset(str(tmp_path / source), str(tmp_path / f"set-{source}")).fingerprint
        for source in ("a.zip", "unpacked", "half", "both", "wrapped")
    }
    assert len(prints) == 1


def test_the_older_competitions_test1(tmp_path: Path) -> None:
    (tmp_path / "dogs-vs-cats.zip").write_bytes(kaggle_zip("test1"))
    data = datasets.prepare_dataset(str(tmp_path / "dogs-vs-cats.zip"), str(tmp_path / "set"))
    assert data.split("test")["key"].to_pylist() == ["test1/1.jpg", "test1/2.jpg", "test1/3.jpg"]


def test_petimages_folder_and_zip(tmp_path: Path) -> None:
    files = class_folders("Cat", "Dog", "PetImages/") | {
        "readme[1].txt": b"hello",
        "PetImages/Cat/Thumbs.db": b"\0",
        "__MACOSX/PetImages/Cat/._1.jpg": b"\0",
    }
    write(tmp_path / "pets", files)
    (tmp_path / "pets.zip").write_bytes(zipped(files))
    folder = datasets.prepare_dataset(str(tmp_path / "pets"), str(tmp_path / "a"))
    archive = datasets.prepare_dataset(str(tmp_path / "pets.zip"), str(tmp_path / "b"))
    assert folder.fingerprint == archive.fingerprint
    assert folder.table.num_rows == 2 * COUNT
    assert folder.count("test") == 0
    labels = dict(zip(folder.table["key"].to_pylist(), folder.table["label"].to_pylist(), strict=True))
    assert labels["Cat/3.jpg"] == 0
    assert labels["Dog/3.jpg"] == 1


def test_keras_class_folders_with_their_own_splits(tmp_path: Path) -> None:
    files = class_folders("cats", "dogs", "train/")
    files |= {
        f"{split}/{name}s/{name}.{n}.jpg": jpeg(n + 77 * (name == "dog") + 9000 + 999 * (split == "test"))
        for split in ("validation", "test")
        for name in ("cat", "dog")
        for n in range(4)
    }
    data = datasets.prepare_dataset(str(write(tmp_path / "src", files)), str(tmp_path / "set"), valid_fraction=0.5)
    assert data.count("train") == 2 * COUNT
    assert data.count("valid", 0) == data.count("valid", 1) == 4
    assert data.is_labelled("test")
    assert set(data.split("valid")["key"].to_pylist()) == {k for k in files if k.startswith("validation/")}


def test_two_other_classes(tmp_path: Path) -> None:
    files = class_folders("ants", "bees", "training_set/") | {f"test/{n}.jpg": jpeg(n + 4000) for n in range(3)}
    data = datasets.prepare_dataset(str(write(tmp_path / "src", files)), str(tmp_path / "set"))
    assert data.class_names == ("ants", "bees")
    assert {row["label"] for row in data.table.to_pylist() if "bees" in row["key"]} == {1}


def test_flat_folders(tmp_path: Path) -> None:
    labelled = {f"{name}.{n}.jpg": jpeg(n + 1000 * (name == "dog")) for name in ("cat", "dog") for n in range(COUNT)}
    data = datasets.prepare_dataset(str(write(tmp_path / "flat", labelled | {"7.jpg": jpeg(9)})), str(tmp_path / "a"))
    assert data.split("test")["id"].to_pylist() == ["7"]
    only = write(tmp_path / "only", {"holiday.jpg": jpeg(1), "12.jpg": jpeg(2)})
    data = datasets.prepare_dataset(str(only), str(tmp_path / "b"))
    assert data.split("test")["id"].to_pylist() == ["12.jpg", "holiday.jpg"]


def test_test_ids_sort_as_numbers(tmp_path: Path) -> None:
    source = write(tmp_path / "src", kaggle_files(test=12))
    data = datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    assert data.split("test")["id"].to_pylist() == [str(n) for n in range(1, 13)]


def test_adding_images_moves_none_between_splits(tmp_path: Path) -> None:
    source = write(tmp_path / "src", kaggle_files())
    before = splits(datasets.prepare_dataset(str(source), str(tmp_path / "set")))
    write(source, {f"train/cat.{n}.jpg": jpeg(n + 9000) for n in range(COUNT, 2 * COUNT)})
    after = splits(datasets.prepare_dataset(str(source), str(tmp_path / "set")))
    assert len(after) == len(before) + COUNT
    assert before.items() <= after.items()


def test_preparing_again_changes_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "src", kaggle_files())
    first = datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    written = (tmp_path / "set" / catalog.FILE_NAME).stat().st_mtime_ns
    assert datasets.prepare_dataset(str(source), str(tmp_path / "set")).fingerprint == first.fingerprint
    assert (tmp_path / "set" / catalog.FILE_NAME).stat().st_mtime_ns == written


def test_a_prepared_set_is_never_overwritten_by_another(tmp_path: Path) -> None:
    source = write(tmp_path / "src", kaggle_files())
    first = datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    with pytest.raises(CatdogError, match="is split with split-seed 0, received 1"):
        datasets.prepare_dataset(str(source), str(tmp_path / "set"), split_seed=1)
    other = write(tmp_path / "other", {**kaggle_files(), "train/cat.0.jpg": jpeg(31337)})
    with pytest.raises(CatdogError, match="another train/cat.0.jpg"):
        datasets.prepare_dataset(str(other), str(tmp_path / "set"))
    fewer = write(tmp_path / "fewer", {k: v for k, v in kaggle_files().items() if k != "test/2.jpg"})
    with pytest.raises(CatdogError, match=r"test/2.jpg is not in SOURCE"):
        datasets.prepare_dataset(str(fewer), str(tmp_path / "set"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(CatdogError, match="is not empty and holds no data set"):
        datasets.prepare_dataset(str(source), str(tmp_path / "mine"))
    with pytest.raises(CatdogError, match=r"thesis.txt is a file; give a new or empty folder"):
        datasets.prepare_dataset(str(source), str(tmp_path / "mine" / "thesis.txt"))
    assert catalog.read_catalog(str(tmp_path / "set")).fingerprint == first.fingerprint


def test_a_preparation_cut_short_is_simply_done_again(tmp_path: Path) -> None:
    source = write(tmp_path / "src", kaggle_files())
    script = (
        "import os\n"
        "from pathlib import Path\n"
        "from catdog.data import datasets\n"
        "write, count = Path.write_bytes, []\n"
        "def dying(self, data):\n"
        "    count.append(write(self, data))\n"
        "    if len(count) == 20: os.kill(os.getpid(), 9)\n"
        "Path.write_bytes = dying\n"
        f"datasets.prepare_dataset({str(source)!r}, {str(tmp_path / 'set')!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == -9
    assert any((tmp_path / "set" / "images").rglob("*.jpg"))
    with pytest.raises(UsageError, match="is not a prepared data set"):
        catalog.read_catalog(str(tmp_path / "set"))
    data = datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    assert data.fingerprint == datasets.prepare_dataset(str(source), str(tmp_path / "fresh")).fingerprint
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["catalog.parquet", "images"]


def test_a_destination_inside_the_source_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "src", kaggle_files())
    with pytest.raises(UsageError, match="lies inside SOURCE"):
        datasets.prepare_dataset(str(source), str(source / "set"))


def test_a_moved_data_set_is_the_same(tmp_path: Path) -> None:
    first = datasets.prepare_dataset(str(write(tmp_path / "src", kaggle_files())), str(tmp_path / "set"))
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = catalog.read_catalog(str(tmp_path / "moved"))
    assert moved.fingerprint == first.fingerprint
    assert Path(moved.table["uri"][0].as_py()).is_file()


@pytest.mark.parametrize("name", ["../evil.jpg", "/tmp/evil.jpg", "a/../../evil.jpg", "C:/evil.jpg", "..\\evil.jpg"])
def test_zips_that_lead_outside_are_refused_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.zip").write_bytes(zipped({**kaggle_files(), name: jpeg()}))
    with pytest.raises(CatdogError, match="a path that leads outside"):
        datasets.prepare_dataset(str(tmp_path / "bad.zip"), str(tmp_path / "set" / "deep"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip"]


def test_zips_with_links_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        link = zipfile.ZipInfo("train/cat.0.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    (tmp_path / "link.zip").write_bytes(out.getvalue())
    with pytest.raises(CatdogError, match="a link"):
        datasets.prepare_dataset(str(tmp_path / "link.zip"), str(tmp_path / "set"))


def test_an_unsafe_inner_zip_is_refused_too(tmp_path: Path) -> None:
    inner = zipped({"train/../../cat.0.jpg": jpeg()})
    (tmp_path / "outer.zip").write_bytes(zipped({"train.zip": inner}))
    with pytest.raises(CatdogError, match=r"outer.zip/train.zip holds .* a path that leads outside"):
        datasets.prepare_dataset(str(tmp_path / "outer.zip"), str(tmp_path / "set"))


@pytest.mark.parametrize("where", ["name", "middle"])
def test_a_broken_zip_leaves_no_data_set(tmp_path: Path, where: str) -> None:
    data = bytearray(kaggle_zip())
    if where == "middle":
        data[2000:2400] = bytes(400)
    else:
        data = bytearray(b"not a zip at all")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(CatdogError, match="zip"):
        datasets.prepare_dataset(str(tmp_path / "a.zip"), str(tmp_path / "set"))
    assert not (tmp_path / "set").exists() or not any((tmp_path / "set").iterdir())


def test_a_disk_that_fills_leaves_no_half_set(tmp_path: Path) -> None:
    files = kaggle_files() | {"train/dog.7.jpg": os.urandom(200_000)}
    source = write(tmp_path / "src", files)
    # A real limit of the system on the size of a file stands in for the disk.
    script = (
        "import resource, signal, sys\n"
        "from catdog.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "data", "prepare", str(source), str(tmp_path / "set")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("catdog: could not write the images to ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "set" / "images").exists()
    with pytest.raises(UsageError, match="is not a prepared data set"):
        catalog.read_catalog(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b"x"}, "holds no images; expected JPEG, PNG"),
        ({f"train/cat.{n}.jpg": jpeg(n) for n in range(40)}, "class 'dog' is empty .40 images of 'cat'."),
        ({**class_folders("a", "b"), "c/1.jpg": jpeg(1)}, "found 3 class folders .a, b, c.; expected two"),
        ({**kaggle_files(), "test/01.jpg": jpeg(1)}, r"test/01.jpg and test/1.jpg have the same id 1"),
        ({**kaggle_files(), "train/unknown.jpg": jpeg(1)}, "1 images have no label, e.g. train/unknown.jpg"),
        ({"train/cat.1.jpg": jpeg(1), "train/dog.1.jpg": jpeg(2)}, "class 'cat' has 1 image; expected at least 2"),
        ({**kaggle_files(), "test/1 (1).jpg": jpeg(1)}, r"test/1 .1..jpg is not numbered, but 3 others are"),
        ({**class_folders("cats", "dogs"), "birds/1.jpg": jpeg(1)}, "1 images have no label, e.g. birds/1.jpg"),
        ({**kaggle_files(), "test/cat.5.jpg": jpeg(1)}, "1 of 4 test images have a label"),
    ],
)
def test_what_cannot_be_a_data_set(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(CatdogError, match=message):
        datasets.prepare_dataset(str(write(tmp_path / "src", files)), str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_zips_of_splits_and_of_classes_keep_their_names(tmp_path: Path) -> None:
    train, valid = zipped(class_folders("cats", "dogs")), zipped({"cats/0.jpg": jpeg(7001), "dogs/0.jpg": jpeg(7002)})
    (tmp_path / "splits.zip").write_bytes(zipped({"train.zip": train, "valid.zip": valid}))
    data = datasets.prepare_dataset(str(tmp_path / "splits.zip"), str(tmp_path / "a"))
    assert (data.count("train"), data.count("valid")) == (2 * COUNT, 2)
    cats, dogs = (zipped({f"{n}.jpg": jpeg(n + offset) for n in range(COUNT)}) for offset in (0, 1000))
    write(tmp_path / "classes", {"Cat.zip": cats, "Dog.zip": dogs, "__MACOSX/._Cat.zip": b"x"})
    data = datasets.prepare_dataset(str(tmp_path / "classes"), str(tmp_path / "b"))
    assert data.count("train") + data.count("valid") == 2 * COUNT
    write(tmp_path / "downloads", {"kaggle.zip": kaggle_zip()})
    assert datasets.prepare_dataset(str(tmp_path / "downloads"), str(tmp_path / "c")).count("test") == 3


def test_a_corrupt_compressed_inner_zip_is_one_line(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.zip", zipped(kaggle_files()))
    data = bytearray(out.getvalue())
    data[3000:3400] = bytes(400)
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(CatdogError, match=r"a.zip"):
        datasets.prepare_dataset(str(tmp_path / "a.zip"), str(tmp_path / "set"))


def test_a_split_that_appears_later_moves_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "src", class_folders("cats", "dogs", "train/"))
    first = datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    write(source, {"valid/cats/1.jpg": jpeg(71), "valid/dogs/1.jpg": jpeg(72)})
    with pytest.raises(CatdogError, match="would move from valid to train; prepare into a new folder"):
        datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    assert catalog.read_catalog(str(tmp_path / "set")).fingerprint == first.fingerprint


def test_a_lost_image_is_put_back(tmp_path: Path) -> None:
    source = write(tmp_path / "src", kaggle_files())
    first = datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    lost = Path(first.table["uri"][0].as_py())
    lost.unlink()
    assert datasets.prepare_dataset(str(source), str(tmp_path / "set")).fingerprint == first.fingerprint
    assert lost.is_file()


def test_drawing_leaves_a_folder_with_photos_alone(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", kaggle_files())
    with pytest.raises(CatdogError, match="is not empty and holds no data set"):
        synthetic.synthesize(str(photos), 10, 2)
    assert (photos / "train" / "cat.0.jpg").read_bytes() == kaggle_files()["train/cat.0.jpg"]


def test_an_unreadable_folder(tmp_path: Path) -> None:
    source = write(tmp_path / "src", kaggle_files())
    (source / "train").chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:4]):
        if folder != Path(tempfile.gettempdir()) and folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(CatdogError, match="could not read the folder .*train: Permission denied"):
            datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    finally:
        if root:
            os.seteuid(0)
        (source / "train").chmod(0o755)


def test_a_folder_named_like_an_image_keeps_its_row(tmp_path: Path) -> None:
    source = write(tmp_path / "src", kaggle_files())
    (source / "test" / "4.jpg").mkdir()
    data = datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    assert data.split("test")["id"].to_pylist() == ["1", "2", "3", "4"]


def test_exit_codes_and_one_line(tmp_path: Path, catdog) -> None:
    absent = catdog("data", "prepare", tmp_path / "none", tmp_path / "set")
    assert (absent.code, absent.err.count("\n")) == (2, 1)
    empty = tmp_path / "empty"
    empty.mkdir()
    failed = catdog("data", "prepare", empty, tmp_path / "set")
    assert (failed.code, failed.err.count("\n")) == (1, 1)
    assert "holds no images" in failed.err
    assert catdog("data", "prepare", empty, tmp_path / "set", "--valid-fraction", "1.5").code == 2


def test_the_real_zip(photos: Path, tmp_path: Path) -> None:
    data = datasets.prepare_dataset(str(photos / "dogs-vs-cats-redux-kernels-edition.zip"), str(tmp_path / "set"))
    # 10,000, of which one is there twice.
    assert data.count("train") + data.count("valid") == 9_999
    assert abs(data.count("valid", 0) - 500) < 80
    assert data.split("test")["id"].to_pylist() == [str(n) for n in range(1, 2501)]


SLOW = """
import os, sys, time
from pathlib import Path
from catdog.data import datasets
write = Path.write_bytes
def slow(self, data):
    os.write(1, bytes(self.name, "utf-8") + bytes([10]))
    time.sleep(0.2)
    return write(self, data)
Path.write_bytes = slow
print(datasets.prepare_dataset(sys.argv[1], sys.argv[2]).table.num_rows)
"""


def test_a_second_preparation_into_one_folder_is_refused_and_harms_nothing(tmp_path: Path, catdog) -> None:
    source, dest = write(tmp_path / "src", kaggle_files()), tmp_path / "set"
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, source, dest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline().endswith(".jpg\n")
        refused = catdog("data", "prepare", source, dest)
        assert (refused.code, refused.err.count("\n")) == (1, 1)
        assert f"set is in use: `catdog data prepare`, process {first.pid} on this machine" in refused.err
        printed, failed = first.communicate(timeout=60)
    assert printed.splitlines()[-1] == str(2 * COUNT + 3), failed
    assert all(Path(uri).is_file() for uri in catalog.read_catalog(str(dest)).table["uri"].to_pylist())
    assert sorted(path.name for path in dest.iterdir()) == ["catalog.parquet", "images"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"half"), Path.mkdir])
def test_files_that_others_change_meanwhile_are_found_before_the_catalog_is_written(tmp_path: Path, harm) -> None:
    files = kaggle_files() | {"train/more/cat.0.jpg": jpeg(0)}
    dest = tmp_path / "set"

    def meddle(remark: Remark) -> None:
        if "dropped" in remark.text:  # which is told when all is copied
            victim = dest / "images" / "train" / "cat.7.jpg"
            if harm is Path.mkdir:
                victim.unlink()
            harm(victim)

    with pytest.raises(CatdogError, match=r"1 of 83 images in .* have changed since .*, e.g. train/cat.7.jpg"):
        datasets.prepare_dataset(str(write(tmp_path / "src", files)), str(dest), on_remark=meddle)
    assert not any(dest.iterdir())
