"""Layout detection: keys, labels, splits and ids, derived from paths alone."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from catdog.data import formats
from catdog.data.sources import SPLIT_FOLDERS, split_of
from catdog.errors import CatdogError, UsageError

DEFAULT_CLASS_NAMES = ("cat", "dog")
CLASS_FOLDERS = {"cat": 0, "cats": 0, "dog": 1, "dogs": 1}
_CLASS_PREFIX = re.compile(r"^(cat|dog)s?[._ -]*\(?\d", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One image on its way into the catalog.

    Attributes:
        key: path relative to the data set's root.
        split: train, valid or test.
        label: 0 or 1, or None if unknown.
        digest: `catalog.digest_of` its bytes; None for an empty file.
    """

    key: str
    split: str
    label: int | None
    digest: int | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Layout of a source.

    Attributes:
        rows: by path. Without a validation folder, all labelled images outside test/ are in train.
        class_names: names of labels 0 and 1.
        own_valid: whether the source has a validation folder.
    """

    rows: dict[str, Row]
    class_names: tuple[str, str]
    own_valid: bool

    def swapped(self) -> Layout:
        """This layout with labels 0 and 1 exchanged."""
        rows = {
            path: row if row.label is None else dataclasses.replace(row, label=1 - row.label)
            for path, row in self.rows.items()
        }
        return Layout(rows, (self.class_names[1], self.class_names[0]), self.own_valid)


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels that do not come from paths.

    Attributes:
        rows: label and split, each perhaps None, by path of the image.
        class_names: names of labels 0 and 1.
        origin: the files that hold them, for messages.
    """

    rows: dict[str, tuple[int | None, str | None]]
    class_names: tuple[str, str]
    origin: str


def detect_layout(
    paths: list[str],
    source: str,
    labels: Labels | None = None,
    sample_ids: Collection[str] = (),
) -> Layout:
    """Derives the key, label and, if a folder names it, split of every image from its path.

    Args:
        paths: paths of the images.
        source: URI of the source, for messages.
        labels: labels that count instead of those in paths; images that it does not list are test images, unless
            their folders say otherwise.
        sample_ids: as for `ids_of`.

    Returns:
        The layout; label 1 is dog, or the second class in alphabetical order.

    Raises:
        CatdogError: the paths are not a valid data set; the message names what was found and expected.
    """
    if not paths:
        raise CatdogError(
            f"{source} holds no images; expected {', '.join(formats.PILLOW_FORMATS)} files in a folder, a zip or a "
            "tar, or in archives within one"
        )
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise CatdogError(f"{source} holds {twice[0]} {paths.count(twice[0])} times; expected every path once")
    keys = _strip_wrapper(paths)
    rows: dict[str, Row] = {}
    if labels is not None:
        class_names = labels.class_names
        for path, key in keys.items():
            label, said = labels.rows.get(path, (None, None))
            split = split_of(key) or said
            rows[path] = Row(key, split or ("train" if label is not None else "test"), label)
        _require_rows(rows, source, labels)
    else:
        class_folders, class_names = _class_folders(list(keys.values()), source)
        for path, key in keys.items():
            split, label = split_of(key), _label_of(key, class_folders)
            rows[path] = Row(key, split or ("train" if label is not None else "test"), label)
        _require_labels(rows, source, class_names)
    _require_test_labels(rows, source)
    ids_of(list(rows.values()), sample_ids)  # checks ids before anything is copied
    labelled = [row for row in rows.values() if row.split != "test" and row.label is not None]
    layout = Layout(rows, class_names, any(row.split == "valid" for row in labelled))
    if labelled:
        _require_both_classes(labelled, layout, source)
    return layout


def choose_positive(layout: Layout, positive: str) -> Layout:
    """A layout in which the class of that name has label 1.

    Raises:
        UsageError: no class has that name.
    """
    names = [name.casefold() for name in layout.class_names]
    if positive.casefold() not in names:
        raise UsageError(f"--positive received {positive!r}, expected {' or '.join(layout.class_names)}")
    return layout if names.index(positive.casefold()) == 1 else layout.swapped()


def _require_labels(rows: dict[str, Row], source: str, class_names: tuple[str, str]) -> None:
    """Checks that images without labels are test images, not training images whose labels were not recognized."""
    unlabelled = [(path, row.key) for path, row in rows.items() if row.label is None]
    lost = [(path, key) for path, key in unlabelled if split_of(key) in ("train", "valid")]
    if len(unlabelled) < len(rows):
        # Next to cat.0.jpg, 7.jpg is a test image; any other image without a label is an error.
        lost += [
            (path, key)
            for path, key in unlabelled
            if split_of(key) is None and ("/" in key or not PurePosixPath(key).stem.isdecimal())
        ]
    if lost:
        path, key = lost[0]
        pattern = f"{path.rsplit('/', 1)[0]}" if "/" in path else path
        raise CatdogError(
            f"{source}: {len(lost)} images have no label, e.g. {key}; expected names like {class_names[0]}.0.jpg "
            f"or folders {class_names[0]}/ and {class_names[1]}/, and unlabelled images in test/ "
            f"(--ignore {pattern!r} leaves such a folder out)"
        )


def _require_rows(rows: dict[str, Row], source: str, labels: Labels) -> None:
    """Checks that images which a table does not label are test images."""
    unlabelled = [path for path, row in rows.items() if row.label is None]
    has_test = any(split_of(path) == "test" for path in unlabelled)
    lost = [path for path in unlabelled if rows[path].split != "test" or (has_test and split_of(path) != "test")]
    if lost:
        raise CatdogError(
            f"{source}: {len(lost)} images outside the test folder have no label in {labels.origin}, e.g. {lost[0]}; "
            f"expected a row for each (--ignore {lost[0]!r} leaves it out)"
        )


def _require_test_labels(rows: dict[str, Row], source: str) -> None:
    test = [row for row in rows.values() if row.split == "test"]
    known = sum(row.label is not None for row in test)
    if 0 < known < len(test):
        raise CatdogError(f"{source}: {known} of {len(test)} test images have a label; expected labels for all or none")


def _strip_wrapper(paths: list[str]) -> dict[str, str]:
    """Maps paths to keys: removes outer folders that contain everything and name neither a split nor a class."""
    split = [path.split("/") for path in paths]
    depth = 0
    while all(len(parts) > depth + 1 for parts in split):
        names = {parts[depth] for parts in split}
        only = next(iter(names)).lower()
        if len(names) > 1 or only in SPLIT_FOLDERS or only in CLASS_FOLDERS:
            break
        depth += 1
    return {path: "/".join(parts[depth:]) for path, parts in zip(paths, split, strict=True)}


def _class_folder(key: str) -> str | None:
    folders = [folder for folder in key.lower().split("/")[:-1] if folder not in SPLIT_FOLDERS]
    return folders[0] if folders else None


def _class_folders(keys: list[str], source: str) -> tuple[dict[str, int], tuple[str, str]]:
    """The class folders: cats and dogs if the source has them, otherwise the two folders with training images."""
    cats_and_dogs = {label for key in keys if (label := _label_of(key, CLASS_FOLDERS)) is not None}
    if len(cats_and_dogs) == 2:
        return CLASS_FOLDERS, DEFAULT_CLASS_NAMES
    found = sorted({folder for key in keys if split_of(key) != "test" and (folder := _class_folder(key))})
    if len(found) != 2 and cats_and_dogs:
        return CLASS_FOLDERS, DEFAULT_CLASS_NAMES
    if not found:
        return {}, DEFAULT_CLASS_NAMES
    if len(found) != 2:
        hint = "" if len(found) < 2 else f", or leave folders out with --ignore {found[-1]!r}"
        raise CatdogError(
            f"{source}: found {len(found)} class folder{'s' * (len(found) != 1)} ({', '.join(found[:5])}); expected "
            f"two, such as cat/ and dog/{hint}"
        )
    return {found[0]: 0, found[1]: 1}, (found[0], found[1])


def _label_of(key: str, class_folders: dict[str, int]) -> int | None:
    folders = key.lower().split("/")[:-1]
    by_folder = next((class_folders[folder] for folder in folders if folder in class_folders), None)
    if by_folder is not None or (class_folders and class_folders is not CLASS_FOLDERS):
        return by_folder
    named = _CLASS_PREFIX.match(key.rsplit("/", 1)[-1])
    return DEFAULT_CLASS_NAMES.index(named.group(1).lower()) if named else None


def _require_both_classes(labelled: list[Row], layout: Layout, source: str) -> None:
    counts = Counter(row.label for row in labelled)
    for label, name in enumerate(layout.class_names):
        if not counts[label]:
            raise CatdogError(
                f"{source}: class {name!r} is empty ({counts[1 - label]} images of {layout.class_names[1 - label]!r}); "
                "expected images of both classes"
            )
        if not layout.own_valid and counts[label] < 2:
            raise CatdogError(
                f"{source}: class {name!r} has 1 image; expected at least 2, one to train on and one for validation"
            )
        for split, folder in (("train", "train/"), ("valid", "valid/")) if layout.own_valid else ():
            if not any(row.split == split and row.label == label for row in labelled):
                raise CatdogError(
                    f"{source}: class {name!r} has {counts[label]} images, but none in {folder}; expected images of "
                    "both classes in each split"
                )


def ids_of(rows: list[Row], sample_ids: Collection[str] = ()) -> list[str]:
    """Ids of rows: the number in the name if the test files are numbered; else, and in other splits, the key.

    Args:
        rows: the images.
        sample_ids: ids of a sample submission. If the test files' names, with or without suffix, are all among them,
            these are the ids.

    Raises:
        CatdogError: two unlabelled test files have the same id, or fewer than half of the test files are not numbered.
    """
    test = [row for row in rows if row.split == "test"]
    stems = {row.key: PurePosixPath(row.key).stem for row in test}
    for named in (stems, {row.key: PurePosixPath(row.key).name for row in test}):
        if sample_ids and len(set(named.values())) == len(test) and set(named.values()) <= set(sample_ids):
            return [named[row.key] if row.split == "test" else row.key for row in rows]
    numbers = {key: str(int(stem)) for key, stem in stems.items() if stem.isascii() and stem.isdecimal()}
    if len(stems) / 2 < len(numbers) < len(stems):
        stray = next(key for key in stems if key not in numbers)
        raise CatdogError(f"test file {stray} is not numbered, but {len(numbers)} others are; rename or remove it")
    if len(numbers) < len(stems):
        numbers = {}
    first: dict[str, str] = {}
    for row in test:
        number = numbers.get(row.key)
        if number is None:
            continue
        if number in first:
            if row.label is not None:
                numbers = {}
                break
            raise CatdogError(
                f"test files {first[number]} and {row.key} have the same id {number}; expected unique ids"
            )
        first[number] = row.key
    return [numbers.get(row.key, row.key) if row.split == "test" else row.key for row in rows]


def missing_numbers(ids: Iterable[str]) -> list[int]:
    """Missing numbers in a sequence of numeric ids; empty for other ids, or if half of them would be missing."""
    texts = list(ids)
    if not texts or not all(text.isascii() and text.isdecimal() for text in texts):
        return []
    numbers = {int(text) for text in texts}
    first, last = min(numbers), max(numbers)
    # 100 ids from 5 on probably lack the first four; 100 ids from 90,000 on do not lack 89,999.
    first = 1 if 1 < first <= len(numbers) else first
    if last - first + 1 - len(numbers) >= len(numbers):
        return []
    return [number for number in range(first, last) if number not in numbers]


def natural_order(key: str) -> str:
    """Sort key for natural order, cat.9.jpg before cat.10.jpg; one string, as there may be millions of them."""
    texts = re.split(r"(\d+)", key)
    texts[1::2] = [f"\0{_in_order(number)}\0" for number in texts[1::2]]  # no text goes on after its end
    return "".join(texts)


def _in_order(number: str) -> str:
    """Of two numbers, the one with more digits is greater. Those in other scripts are text, after all numbers."""
    if not number.isascii():
        return f"\U0010ffff{number}"
    digits = number.lstrip("0")
    return chr(1 + len(digits)) + digits
