"""Labels in a CSV beside the images, and images and labels in Parquet files."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import class_folders, jpeg, kaggle_files, write, zipped

from catdog.data import catalog, datasets, packing
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError

COUNT = 12
# Image n of a flat folder; the odd ones are dogs.
FLAT = {f"{n}.jpg": jpeg(n) for n in range(1, COUNT + 1)}
ANSWERS = {name: int(name.removesuffix(".jpg")) % 2 for name in FLAT}


def labels(data: Catalog) -> dict[str, int | None]:
    return dict(zip(data.table["key"].to_pylist(), data.table["label"].to_pylist(), strict=True))


def prepare(tmp_path: Path, files: dict[str, bytes], **options: str) -> Catalog:
    return datasets.prepare_dataset(str(write(tmp_path / "src", files)), str(tmp_path / "set"), **options)


def table(header: str, row: str, names: object = ("cat", "dog"), ending: str = "\n") -> str:
    """A CSV of the flat folder: the row is a format of n, name and label."""
    lines = [row.format(n=int(name[:-4]), name=name, label=names[label]) for name, label in ANSWERS.items()]
    return ending.join([header, *lines, ""])


@pytest.mark.parametrize(
    ("text", "class_names"),
    [
        (table("id,label", "{n},{label}", "01"), ("0", "1")),
        (table("filename,label", "{name},{label}"), ("cat", "dog")),
        (table("file,class", "./{name},{label}", ("Cats", "DOGS")), ("cat", "dog")),
        (table("image;target", "{n:05d};{label}", ("benign", "malignant"), "\r\n"), ("benign", "malignant")),
        ("\ufeff" + table("ID\tLabel", '"{n}"\t"{label}"'), ("cat", "dog")),
        ("sep=;\n" + table("Image Id; Label;", "{n}; {label};"), ("cat", "dog")),
        # As pandas writes it: its index, numbers that were once missing as floats.
        (table(",id,label", "{n},{n}.0,{label}", ("0.0", "1.0")), ("0", "1")),
        (table(",label", "{name},{label}"), ("cat", "dog")),
        (table("path,has_cactus", "C:\\data\\{name},{label}", ("False", "True")), ("False", "True")),
        # Labels twice, as numbers and as words; the words count.
        (table("id,label,class_name", "{n},{label}", ("0,cat", "1,dog")), ("cat", "dog")),
        (table("1.jpg,dog", "{name},{label}"), ("cat", "dog")),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_as_people_have_them(text: str, encoding: str, class_names: tuple[str, str], tmp_path: Path) -> None:
    data = prepare(tmp_path, FLAT | {"labels.csv": text.encode(encoding)})
    assert data.class_names == class_names
    assert labels(data) == ANSWERS
    assert data.count("valid") > 0 == data.count("test")


def test_kaggles_train_folder_with_a_table_and_its_test_folder(tmp_path: Path, catdog) -> None:
    """Both folders count from 1; the table is of train/, the sample submission is none."""
    files = {f"train/{name}": data for name, data in FLAT.items()}
    files |= {f"test/{name}": jpeg(n + 500) for n, name in enumerate(FLAT)}
    files |= {
        "train_labels.csv": table("id,label", "{n},{label}", "01").encode(),
        "sample_submission.csv": table("id,label", "{n},0.5").encode(),
        "old_submission.csv": table("id,label", "{n},1").encode(),
    }
    (tmp_path / "set.zip").write_bytes(zipped(files))
    shown = catdog("data", "prepare", tmp_path / "set.zip", tmp_path / "set")
    assert shown.code == 0, shown.err
    assert "Labels: train_labels.csv, columns id and label: 6 0, 6 1\n" in shown.out
    assert "Not taken: 1 .csv (not an image), e.g. old_submission.csv" in shown.out
    data = catalog.read_catalog(str(tmp_path / "set"))
    assert labels(data) == {f"train/{n}": label for n, label in ANSWERS.items()} | dict.fromkeys(
        (f"test/{name}" for name in FLAT), None
    )
    assert data.split("test")["id"].to_pylist() == [str(n) for n in range(1, COUNT + 1)]


def test_images_without_a_row_are_test_images_and_rows_without_an_image_are_told(tmp_path: Path, catdog) -> None:
    text = table("id,label", "{n},{label}") + "77,cat\n78,dog\n3,dog\n"
    files = FLAT | {"a0b1.jpg": jpeg(90), "c2d3.jpg": jpeg(91), "labels.csv": text.encode()}
    files["sampleSubmission.csv"] = b"id,label\na0b1,0.5\nc2d3,0.5\n"
    shown = catdog("data", "prepare", write(tmp_path / "src", files), tmp_path / "set")
    assert shown.code == 0, shown.err
    assert "Warning: Rows of labels.csv that name no image here: 2 of 15, e.g. 77\n" in shown.err
    assert "Rows of labels.csv that repeat another: 1\n" in shown.out
    data = catalog.read_catalog(str(tmp_path / "set"))
    assert data.split("test")["key"].to_pylist() == ["a0b1.jpg", "c2d3.jpg"]
    assert data.split("test")["id"].to_pylist() == ["a0b1", "c2d3"]  # as the sample submission has them


def test_tables_of_splits_make_the_splits(tmp_path: Path) -> None:
    lines = table("file,label", "{name},{label}").splitlines()
    files = {f"images/{name}": data for name, data in FLAT.items()}
    for name, part in {"train.csv": lines[1:7], "val.csv": lines[7:11], "test.csv": lines[11:]}.items():
        files[name] = "\n".join([lines[0], *part]).encode()
    data = prepare(tmp_path, files)
    assert [data.count(split) for split in catalog.SPLITS] == [6, 4, 2]
    assert data.is_labelled("test")
    column = table("file,label,split", "{name},{label},", ("cat", "dog")).splitlines()
    column[1:] = [line + split for line, split in zip(column[1:], ["train"] * 6 + ["dev"] * 6, strict=True)]
    files = FLAT | {"labels.csv": "\n".join(column).encode()}
    data = datasets.prepare_dataset(str(write(tmp_path / "b", files)), str(tmp_path / "by-column"))
    assert [data.count(split) for split in catalog.SPLITS] == [6, 6, 0]


def test_the_table_may_be_named_and_lie_elsewhere(tmp_path: Path, catdog) -> None:
    source = write(tmp_path / "src", FLAT | {"a.csv": table("id,label", "{n},{label}").encode()})
    swapped = table("id,label", "{n},{label}", ("dog", "cat"))
    write(source, {"sub/b.csv": swapped.encode()})
    refused = catdog("data", "prepare", source, tmp_path / "set")
    assert refused.code == 1
    assert "a.csv and sub/b.csv could both hold the labels; name one with --labels a.csv" in refused.err
    assert labels(datasets.prepare_dataset(str(source), str(tmp_path / "inner"), labels="a.csv")) == ANSWERS
    other = {name: 1 - label for name, label in ANSWERS.items()}
    for number, named in enumerate(["b.csv", str(source / "sub" / "b.csv")]):
        data = datasets.prepare_dataset(str(source), str(tmp_path / f"set{number}"), labels=named)
        assert labels(data) == other
    (source / "sub" / "b.csv").write_text(table("id,label", "{n},{label}"))  # two that say the same are no trouble
    assert labels(datasets.prepare_dataset(str(source), str(tmp_path / "same"))) == ANSWERS
    absent = catdog("data", "prepare", source, tmp_path / "set", "--labels", "c.csv")
    assert absent.code == 2
    assert (
        "--labels received 'c.csv', which is neither a CSV in SOURCE nor a file elsewhere; it has a.csv" in absent.err
    )


@pytest.mark.parametrize(
    ("text", "files", "message"),
    [
        (table("id,label", "{n},{label}") + "3,cat\n", {}, "lines 4 and 14 say different things of 3.jpg"),
        (table("id,label", "{n},{label}") + "cow.jpg,bird\n", {}, "holds 3 classes: .*bird .1.; expected two"),
        (table("id,label", "{n},1"), {}, "holds 1 class: 1 .12.; expected two"),
        (table("id,label", "{n},{label}"), {"b/3.jpg": jpeg(99)}, "'3' may be 3.jpg or b/3.jpg; expected paths"),
        (table("id,label", "1.2E+05,{label}") + "1,cat\n", {}, "line 2: '1.2E.05' was an id before a spreadsheet"),
        (table("id,label,target", "{n},{label},1") + "1,cat,0\n", {}, "columns .* both have two values, and differ"),
        (table("id,label", "{n},{label}"), {"train/x.jpg": jpeg(99)}, "1 images outside the test folder have no label"),
        (table("id,label", "{n},{label}") + "4\n", {}, "line 14: expected 2 cells"),
        (table("id,label,split", "{n},{label},first"), {}, "column split holds 'first'; expected train, valid or test"),
    ],
)
def test_what_is_ambiguous_is_refused(text: str, files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "src", FLAT | {"labels.csv": text.encode()} | files)
    for named in (None, "labels.csv"):
        with pytest.raises(CatdogError, match=message):
            datasets.prepare_dataset(str(source), str(tmp_path / "set"), labels=named)
    assert not (tmp_path / "set").exists()


def test_what_is_no_table_of_labels_is_not_one(tmp_path: Path, catdog) -> None:
    """And without labels a flat folder is a test split, as before."""
    rest = {
        "results.csv": table("id,label", "{n},0.93"),
        "notes.csv": table("author,year", "{n},{label}"),
        "captions.csv": table("file,caption", "{name},picture {n}"),
        "others.csv": "id,label\n7001,cat\n7002,dog\n",
        "empty.csv": "\n\n",
    }
    source = write(tmp_path / "src", FLAT | {name: text.encode() for name, text in rest.items()})
    shown = catdog("data", "prepare", source, tmp_path / "set")
    assert shown.code == 0, shown.err
    assert catalog.read_catalog(str(tmp_path / "set")).count("test") == COUNT
    for name in rest:
        assert re.search(rf"Warning: {name} .*: not read for labels", shown.err), name
    refused = catdog("data", "prepare", source, tmp_path / "x", "--labels", "notes.csv")
    assert "has no column of file names or ids (it has author, year); expected a header such as id,label" in refused.err
    refused = catdog("data", "prepare", source, tmp_path / "x", "--labels", "others.csv")
    assert "but none of its 2 rows names an image of" in refused.err


def test_paths_that_name_the_classes_count_and_a_table_may_not_contradict_them(tmp_path: Path, catdog) -> None:
    folders = class_folders("ants", "bees")
    agree = "file,label\n" + "".join(f"{key},{int(key.startswith('bees'))}\n" for key in folders)
    breeds = "file,label\n" + "".join(f"{key},breed {n % 7}\n" for n, key in enumerate(folders))
    source = write(tmp_path / "src", folders | {"labels.csv": agree.encode(), "breeds.csv": breeds.encode()})
    shown = catdog("data", "prepare", source, tmp_path / "set")
    assert "Labels are those of folders and names, not of a table (breeds.csv" in shown.out
    assert catalog.read_catalog(str(tmp_path / "set")).class_names == ("ants", "bees")
    (source / "breeds.csv").unlink()
    shown = catdog("data", "prepare", source, tmp_path / "set2")
    assert "Labels are those of folders and names; labels.csv was not needed\n" in shown.out
    (source / "labels.csv").write_text(agree.replace("ants/3.jpg,0", "ants/3.jpg,1"))
    refused = catdog("data", "prepare", source, tmp_path / "set3")
    assert re.search(r"ants/\d+.jpg is ants by its path and [01] by labels.csv; say which counts", refused.err)
    assert catdog("data", "prepare", source, tmp_path / "set3", "--labels", "labels.csv").code == 0
    # Three folders are no two classes, but with a table they need not be.
    parts = {f"part{n % 3}/{name}": data for n, (name, data) in enumerate(FLAT.items())}
    parts["labels.csv"] = table("id,label", "{n},{label}").encode()
    data = datasets.prepare_dataset(str(write(tmp_path / "parts", parts)), str(tmp_path / "set4"))
    assert {Path(key).name: label for key, label in labels(data).items()} == ANSWERS


# --- Parquet -----------------------------------------------------------------------------------------------------


def parquet(rows: list[tuple[bytes | None, int | str | None]], kind: str = "struct", names: object = None) -> bytes:
    """A Parquet file of images and labels, as Hugging Face's `datasets` writes it."""
    images, values = [data for data, _ in rows], [label for _, label in rows]
    cells = [{"bytes": data, "path": None} for data in images] if kind == "struct" else images
    inner = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if kind == "struct" else pa.binary()
    made = pa.table({"image": pa.array(cells, inner), "labels": pa.array(values)})
    if names is not None:
        features = {"image": {"_type": "Image"}, "labels": {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    out = io.BytesIO()
    pq.write_table(made, out, row_group_size=5)
    return out.getvalue()


@pytest.mark.parametrize("names", [["cat", "dog"], {"0": "cat", "1": "dog"}])
def test_hugging_faces_cats_vs_dogs(names: object, tmp_path: Path) -> None:
    rows = [(data, ANSWERS[name]) for name, data in FLAT.items()]
    hidden = [(jpeg(500 + n), -1) for n in range(3)]
    files = {
        "README.md": b"# cats_vs_dogs",
        "data/train-00000-of-00002.parquet": parquet(rows[:7], names=names),
        "data/train-00001-of-00002.parquet": parquet(rows[7:], names=names),
        "data/test-00000-of-00001.parquet": parquet(hidden, names=names),
    }
    data = prepare(tmp_path, files)
    assert data.class_names == ("cat", "dog")
    assert (data.count("train") + data.count("valid"), data.count("test")) == (COUNT, 3)
    found = {Path(row["uri"]).read_bytes(): row["label"] for row in data.table.to_pylist()}
    assert found == dict(rows) | {image: None for image, _ in hidden}
    assert data.split("test")["key"].to_pylist() == [f"test-00000-of-00001-{n:06d}.jpg" for n in range(3)]
    # The same in archives, in each other, and again.
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (tmp_path / "set.tgz").write_bytes(tar.getvalue())
    (tmp_path / "outer.zip").write_bytes(zipped({"cats_vs_dogs/inner.tgz": tar.getvalue()}))
    for number, source in enumerate(["set.tgz", "outer.zip", "src"]):
        again = datasets.prepare_dataset(str(tmp_path / source), str(tmp_path / f"set{number}"))
        assert sorted(map(str, again.table["digest"].to_pylist())) == sorted(map(str, data.table["digest"].to_pylist()))


def test_one_parquet_file_with_other_classes_and_splits(tmp_path: Path) -> None:
    rows = [(data, ("healthy", "ill")[ANSWERS[name]]) for name, data in FLAT.items()]
    (tmp_path / "clinic.parquet").write_bytes(parquet([*rows, (b"", "ill"), (b"nonsense", "healthy")], "binary"))
    data = datasets.prepare_dataset(str(tmp_path / "clinic.parquet"), str(tmp_path / "set"))
    assert data.class_names == ("healthy", "ill")
    assert data.table.num_rows == COUNT + 2  # what cannot be read is still one of its images
    files = {
        f"default/{split}/0000.parquet": parquet(rows[at : at + 4]) for at, split in ((0, "train"), (8, "validation"))
    }
    data = datasets.prepare_dataset(str(write(tmp_path / "src", files)), str(tmp_path / "set2"))
    assert [data.count(split) for split in catalog.SPLITS] == [4, 4, 0]


def test_a_packed_set_keeps_its_splits_as_a_source(tmp_path: Path, drawn: Catalog) -> None:
    packing.pack_dataset(drawn.root, str(tmp_path / "packed"))
    data = datasets.prepare_dataset(str(tmp_path / "packed" / "shards"), str(tmp_path / "set"))
    for split in catalog.SPLITS:
        assert sorted(data.split(split)["digest"].to_pylist()) == sorted(drawn.split(split)["digest"].to_pylist())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.parquet": parquet([(jpeg(1), 0), (jpeg(2), 1), (jpeg(3), 2)])}, "holds 3 classes: 0 .1., 1 .1., 2 .1."),
        ({"a.parquet": parquet([(jpeg(1), 5)], names=["cat", "dog"])}, "a.parquet row 0: label 5, but the classes are"),
        ({"a.parquet": parquet([(jpeg(1), 0), (jpeg(2), 1)])[:-20]}, "a.parquet is not a Parquet file, or damaged"),
        (
            {"a.parquet": parquet([(jpeg(1), "cat")]).replace(b"labels", b"l\xffbels")},
            "a.parquet is .* damaged .'utf-8'",
        ),
        ({"a.parquet": parquet([(jpeg(1), "cat")]).replace(b"cat", b"\xffat")}, "a.parquet is damaged after row 0"),
        (
            {"a.parquet": parquet([(jpeg(1), 0), (jpeg(2), 1)]), "cat.1.jpg": jpeg(3)},
            "holds Parquet files with images, and 1 images beside them, e.g. cat.1.jpg",
        ),
    ],
)
def test_parquet_files_that_are_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(CatdogError, match=message):
        prepare(tmp_path, files)


def test_parquet_files_without_images_are_left_out(tmp_path: Path, catdog) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"features": [1.0, 2.0], "label": [0, 1]}), out)
    source = write(tmp_path / "src", kaggle_files() | {"features.parquet": out.getvalue()})
    shown = catdog("data", "prepare", source, tmp_path / "set")
    assert shown.code == 0, shown.err
    assert "Not taken: 1 .parquet (not an image, and a Parquet file without a column of images)" in shown.out
