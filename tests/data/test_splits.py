"""Where copies of an image end up, and that nothing which is added later moves an image."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from helpers import COUNT, class_folders, jpeg, kaggle_files, write, zipped

from catdog.data import datasets
from catdog.data.catalog import Catalog
from catdog.data.splits import Remark
from catdog.errors import CatdogError, UsageError


def rows(data: Catalog) -> dict[str, tuple[str, int | None]]:
    """Split and label of each key."""
    return {row["key"]: (row["split"], row["label"]) for row in data.table.to_pylist()}


def splits_by_image(data: Catalog) -> dict[int, set[str]]:
    found = defaultdict(set)
    for row in data.table.to_pylist():
        found[row["digest"]].add(row["split"])
    return found


def test_a_zip_beside_what_was_unpacked_from_it_under_another_name(tmp_path: Path, catdog) -> None:
    pets = class_folders("Cat", "Dog", "PetImages/")
    source = write(tmp_path / "src", pets | {"kagglecatsanddogs_5340.zip": zipped(pets)})
    shown = catdog("data", "prepare", source, tmp_path / "set")
    assert shown.code == 0, shown.err
    assert f"Copies of other images, dropped: {2 * COUNT}, e.g. kagglecatsanddogs_5340/PetImages/Cat/0.jpg" in shown.out
    alone = datasets.prepare_dataset(str(write(tmp_path / "alone", pets)), str(tmp_path / "alone-set"))
    again = datasets.prepare_dataset(str(source), str(tmp_path / "set"))
    assert {key.removeprefix("PetImages/"): value for key, value in rows(again).items()}.keys() == rows(alone).keys()
    assert all(len(places) == 1 for places in splits_by_image(again).values())
    files = [path for path in (tmp_path / "set" / "images").rglob("*") if path.is_file()]
    assert len(files) == 2 * COUNT


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kept_copies_share_a_split(tmp_path: Path, seed: int) -> None:
    files = kaggle_files()
    files |= {f"train/more/{name.rsplit('/', 1)[1]}": data for name, data in files.items() if name.startswith("train/")}
    source = str(write(tmp_path / "src", files))
    remarks: list[Remark] = []
    data = datasets.prepare_dataset(
        source, str(tmp_path / "set"), split_seed=seed, duplicates="keep", on_remark=remarks.append
    )
    assert data.count("train") + data.count("valid") == 4 * COUNT
    assert {len(places) for places in splits_by_image(data).values()} == {1}
    assert any(f"kept: {2 * COUNT}" in remark.text for remark in remarks)
    with pytest.raises(
        CatdogError, match=rf"--duplicates refuse: {2 * COUNT} images are copies of others, e.g. train/"
    ):
        datasets.prepare_dataset(source, str(tmp_path / "refused"), duplicates="refuse")
    assert not any((tmp_path / "refused").iterdir())


def test_an_image_with_two_labels_is_told_and_judges_nothing(tmp_path: Path, catdog) -> None:
    # Enough of them that some would be in validation.
    files = kaggle_files() | {f"train/dog.{n}.jpg": jpeg(n) for n in range(20)}
    shown = catdog("data", "prepare", write(tmp_path / "src", files), tmp_path / "set", "--valid-fraction", "0.5")
    assert shown.code == 0, shown.err
    assert "Warning: Images with both labels: 20, e.g. train/dog.0.jpg = train/cat.0.jpg" in shown.err
    placed = rows(datasets.prepare_dataset(str(tmp_path / "src"), str(tmp_path / "set"), 0.5))
    for n in range(20):
        assert placed[f"train/cat.{n}.jpg"] == ("train", 0)
        assert placed[f"train/dog.{n}.jpg"] == ("train", 1)


def test_a_labelled_copy_of_a_test_image(tmp_path: Path) -> None:
    files = kaggle_files() | {"test/2.jpg": jpeg(3), "test/3.jpg": jpeg(1004)}
    source = str(write(tmp_path / "src", files))
    remarks: list[Remark] = []
    kept = datasets.prepare_dataset(source, str(tmp_path / "kept"), on_remark=remarks.append)
    told = [remark.text for remark in remarks if remark.warning]
    assert [text.partition("; ")[0] for text in told] == [
        "Test images that are labelled elsewhere: 2, test/2.jpg = train/cat.3.jpg, test/3.jpg = train/dog.4.jpg"
    ]
    dropped = datasets.prepare_dataset(source, str(tmp_path / "dropped"), duplicates="drop")
    assert rows(kept).keys() - rows(dropped).keys() == {"train/cat.3.jpg", "train/dog.4.jpg"}
    assert dropped.count("test") == 3
    with pytest.raises(CatdogError, match="2 images are copies of others, test/2.jpg = train/cat.3.jpg"):
        datasets.prepare_dataset(source, str(tmp_path / "refused"), duplicates="refuse")


def test_copies_that_are_added_later_move_no_image(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {f"train/long/{k.split('/')[1]}": v for k, v in kaggle_files(test=0).items()})
    first = rows(datasets.prepare_dataset(str(source), str(tmp_path / "set"), 0.5))
    # Shorter paths, which in a new set would be those that stay.
    write(source, {f"train/{key.split('/')[-1]}": (source / key).read_bytes() for key in first})
    assert rows(datasets.prepare_dataset(str(source), str(tmp_path / "set"), 0.5)) == first
    kept = rows(datasets.prepare_dataset(str(source), str(tmp_path / "set"), 0.5, duplicates="keep"))
    assert first.items() <= kept.items()
    assert len(kept) == 2 * len(first)
    for key, value in first.items():
        assert kept[f"train/{key.split('/')[-1]}"] == value
    # An image that the set has with the other label too: the new one is not taken.
    mislabelled = next(key for key, (split, label) in first.items() if split == "valid" and label == 0)
    write(source, {"train/dog.999.jpg": (source / mislabelled).read_bytes()})
    remarks: list[Remark] = []
    later = rows(
        datasets.prepare_dataset(str(source), str(tmp_path / "set"), 0.5, duplicates="keep", on_remark=remarks.append)
    )
    assert kept.items() <= later.items()
    assert later.get("train/dog.999.jpg", ("train", 1))[0] == "train"
    assert any("both labels: 1" in remark.text for remark in remarks)


def test_empty_files_are_no_copies_of_each_other(tmp_path: Path) -> None:
    files = class_folders("Cat", "Dog") | {"Cat/666.jpg": b"", "Dog/11702.jpg": b""}
    remarks: list[Remark] = []
    data = datasets.prepare_dataset(
        str(write(tmp_path / "src", files)), str(tmp_path / "set"), duplicates="refuse", on_remark=remarks.append
    )
    assert data.table.num_rows == 2 * COUNT + 2
    assert not any(remark.warning for remark in remarks)


@pytest.mark.parametrize("count", range(2, 9))
def test_each_class_of_a_small_set_is_in_both_splits_and_stays_there(tmp_path: Path, count: int) -> None:
    for seed in range(3):
        source = write(tmp_path / f"src-{seed}", kaggle_files(train=count, test=0))
        dest = str(tmp_path / f"set-{seed}")
        data = datasets.prepare_dataset(str(source), dest, 0.1, seed)
        assert all(data.count(split, label) >= 1 for split in ("train", "valid") for label in (0, 1))
        before = rows(data)
        write(source, kaggle_files(train=count + 10, test=0))
        assert before.items() <= rows(datasets.prepare_dataset(str(source), dest, 0.1, seed)).items()
        # Most of it for validation leaves an image to train on.
        mostly = datasets.prepare_dataset(str(source), str(tmp_path / f"mostly-{seed}"), 0.999, seed)
        assert all(mostly.count("train", label) >= 1 for label in (0, 1))


def test_copies_that_leave_a_folder_empty_are_told(tmp_path: Path) -> None:
    files = class_folders("cats", "dogs", "train/")
    files |= {"valid/dogs/0.jpg": jpeg(9000), "valid/cats/x.jpg": jpeg(3)}
    with pytest.raises(CatdogError, match="has no image in valid when copies are counted once"):
        datasets.prepare_dataset(str(write(tmp_path / "src", files)), str(tmp_path / "set"))


def test_positive_chooses_what_the_label_is_the_probability_of(tmp_path: Path, catdog) -> None:
    source = write(tmp_path / "src", class_folders("hot_dog", "not_hot_dog"))
    plain = catdog("data", "prepare", source, tmp_path / "a")
    assert "label is the probability of not_hot_dog\n" in plain.out
    chosen = catdog("data", "prepare", source, tmp_path / "b", "--positive", "Hot_Dog")
    assert "label is the probability of hot_dog\n" in chosen.out
    data = datasets.prepare_dataset(str(source), str(tmp_path / "b"))  # said once, it stays
    assert data.class_names == ("not_hot_dog", "hot_dog")
    labels = {key: label for key, (_, label) in rows(data).items()}
    assert (labels["hot_dog/0.jpg"], labels["not_hot_dog/0.jpg"]) == (1, 0)
    with pytest.raises(CatdogError, match="holds .'not_hot_dog', 'hot_dog'., SOURCE .'hot_dog', 'not_hot_dog'."):
        datasets.prepare_dataset(str(source), str(tmp_path / "b"), positive="not_hot_dog")
    with pytest.raises(UsageError, match="--positive received 'cat', expected hot_dog or not_hot_dog"):
        datasets.prepare_dataset(str(source), str(tmp_path / "c"), positive="cat")
