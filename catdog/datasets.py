"""Real data sets in, catalog out: folders and zips in the layouts people have, labels, ids, and the split.

`prepare` copies every image's bytes unchanged to `DEST/images/KEY` and writes the catalog last, so a folder without a
catalog is not a data set yet, and one with a catalog is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pyarrow as pa

from catdog import catalog, sources, storage
from catdog.catalog import Catalog
from catdog.errors import CatdogError, UsageError

DEFAULT_CLASS_NAMES = ("cat", "dog")
_CLASS_FOLDERS = {"cat": 0, "cats": 0, "dog": 1, "dogs": 1}
_CLASS_PREFIX = re.compile(r"^(cat|dog)s?[._ -]*\(?\d", re.IGNORECASE)
_WRITE_BATCH = 64
# Lies in DEST while it is being filled; with it and without a catalog, what is there is a set cut short.
_UNFINISHED = "unfinished.txt"


@dataclasses.dataclass(frozen=True)
class Row:
    """One image on its way into the catalog.

    Attributes:
        key: its path relative to the set's root.
        split: train, valid or test.
        label: 0 or 1, or None where unknown.
        digest: of its bytes, from `catalog.digest_of`; None where there are none.
    """

    key: str
    split: str
    label: int | None
    digest: int | None = None


def prepare(source: str, dest: str, valid_fraction: float = 0.1, split_seed: int = 0) -> Catalog:
    """Turns what people have (Kaggle's zips, PetImages, class folders, a flat folder) into a prepared data set.

    Doing it again is harmless: the same source changes nothing, a source with more images adds them, and no image
    ever moves between the splits. Anything else that is already in `dest` is refused, not overwritten.

    Args:
        source: URI of a zip or a folder.
        dest: URI of the folder to make.
        valid_fraction: share of each class's labelled images for validation, in (0, 1); unused where the source has
            a validation folder of its own.
        split_seed: seed of the hash that splits.

    Returns:
        The catalog, already written.

    Raises:
        UsageError: no such source, or a value out of range.
        CatdogError: what was found cannot be a data set, or could not be written.
    """
    source, dest = storage.absolute(source), storage.absolute(dest)
    if not 0 < valid_fraction < 1:
        raise UsageError(f"--valid-fraction received {valid_fraction}, expected a number between 0 and 1")
    if storage.kind(source) == "absent":
        raise UsageError(f"SOURCE received {source!r}, which does not exist; expected a zip or a folder of images")
    if source == dest:
        raise UsageError(f"SOURCE and DEST are the same folder ({source}); give another DEST")
    if storage.relative(dest, source) != dest:
        raise UsageError(f"DEST {dest} lies inside SOURCE {source}, whose images it would add to; give another DEST")
    options: dict[str, object] = {"split_seed": split_seed, "valid_fraction": valid_fraction}
    previous = _previous(dest, options)
    if previous is None:
        require_vacant(dest)

    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        names = [path for path, _ in sources.walk(source, Path(scratch), names_only=True)]
        rows, class_names = _lay_out(names, source, valid_fraction, split_seed)
        if previous is not None:
            _require_addition(previous, rows.values(), class_names)
        ordered = sorted(rows.values(), key=lambda row: (catalog.SPLITS.index(row.split), _natural(row.key)))
        planned = build(dest, ordered, class_names, options, folder="images")
        files = (file for file in sources.walk(source, Path(scratch)) if file.path in rows)
        if previous is None:
            storage.delete_folder(storage.join(dest, "images"))
            mark_unfinished(dest)
        content, digests = _copy(files, rows, dest, previous)
    if previous is not None and previous.options.get("content_sha256") == content:
        return previous
    column = pa.array([digests[key] for key in planned.table["key"].to_pylist()], pa.uint64())
    table = planned.table.set_column(5, catalog.SCHEMA.field("digest"), column)
    result = dataclasses.replace(planned, table=table, options=options | {"content_sha256": content})
    finish(result)
    return result


def require_vacant(dest: str) -> None:
    """Makes sure that a data set may be made in a folder: absent, empty, or left there by a making cut short.

    Raises:
        CatdogError: it holds something else, or is a file; which is left alone.
    """
    if storage.kind(dest) == "file":
        raise CatdogError(f"DEST {dest} is a file; give a new or empty folder")
    found = storage.list_names(dest)
    if found and _UNFINISHED not in found:
        raise CatdogError(f"DEST {dest} is not empty and holds no data set; give a new or empty folder")


def mark_unfinished(dest: str) -> None:
    """Notes in a folder that a data set is being made there."""
    storage.write_text(storage.join(dest, _UNFINISHED), "This data set was cut short; run the same command again.\n")


def finish(result: Catalog) -> None:
    """Writes the catalog of a data set whose files are all in place; from then on it is whole."""
    result.write()
    storage.delete_file(storage.join(result.root, _UNFINISHED))


def build(
    root: str, rows: list[Row], class_names: tuple[str, str], options: dict[str, object], folder: str = ""
) -> Catalog:
    """Makes a catalog of rows whose files already lie in place.

    Args:
        root: URI of the data set's folder.
        rows: the images, in catalog order.
        class_names: names of labels 0 and 1.
        options: what the catalog remembers of its making.
        folder: the folder below `root` that keys are relative to.

    Returns:
        The catalog, not yet written.

    Raises:
        CatdogError: two unlabelled test files have one id.
    """
    ids = _ids(rows)
    base = storage.join(root, folder) if folder else root
    table = pa.Table.from_pydict(
        {
            "key": [row.key for row in rows],
            "id": ids,
            "uri": [storage.join(base, row.key) for row in rows],
            "label": [row.label for row in rows],
            "split": [row.split for row in rows],
            "digest": [row.digest for row in rows],
        },
        schema=catalog.SCHEMA,
    )
    return Catalog(table, class_names, root, options)


def is_in_validation(key: str, valid_fraction: float, split_seed: int) -> bool:
    """Places one labelled image by a seeded hash of its key alone, so other images never move it."""
    digest = hashlib.blake2b(f"{split_seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < valid_fraction * 2**64


def _previous(dest: str, options: dict[str, object]) -> Catalog | None:
    """The data set that `dest` already holds, if its split was made the same way."""
    if not storage.exists(storage.join(dest, catalog.FILE_NAME)):
        return None
    previous = catalog.read(dest)
    for option, value in options.items():
        if previous.options.get(option) != value:
            raise CatdogError(
                f"DEST {dest} is split with {option.replace('_', '-')} {previous.options.get(option)}, received "
                f"{value}; a split is made once: prepare into a new folder"
            )
    return previous


def _require_addition(previous: Catalog, rows: Iterable[Row], class_names: tuple[str, str]) -> None:
    """Makes sure that a data set is only added to: every image it has is there still, in its split, with its label."""
    now = {row.key: (row.split, row.label) for row in rows}
    if previous.class_names != class_names:
        raise CatdogError(f"DEST {previous.root} holds {previous.class_names}, SOURCE {class_names}; use a new folder")
    for old in previous.table.select(["key", "split", "label"]).to_pylist():
        key, before = old["key"], (old["split"], old["label"])
        if now.get(key) != before:
            change = "is not in SOURCE" if key not in now else f"would move from {before[0]} to {now[key][0]}"
            raise CatdogError(
                f"DEST {previous.root} already holds another data set: {key} {change}; prepare into a new folder"
            )


# --- telling labels and splits -----------------------------------------------------------------------------------


def _lay_out(
    paths: list[str], source: str, valid_fraction: float, split_seed: int
) -> tuple[dict[str, Row], tuple[str, str]]:
    """Gives every source path its key, split and label.

    Returns:
        The rows by source path, and the class names.
    """
    if not paths:
        raise CatdogError(
            f"{source} holds no images; expected files ending in {', '.join(sorted(sources.IMAGE_SUFFIXES))}, in a "
            "folder, a zip, or zips within one"
        )
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise CatdogError(f"{source} holds {twice[0]} {paths.count(twice[0])} times; expected every path once")
    keys = _strip_wrapper(paths)
    class_folders, class_names = _class_folders(list(keys.values()), source)
    rows: dict[str, Row] = {}
    for path, key in keys.items():
        split, label = _split_of(key), _label_of(key, class_folders)
        rows[path] = Row(key, split or ("train" if label is not None else "test"), label)
    unlabelled = [row.key for row in rows.values() if row.label is None]
    lost = [key for key in unlabelled if _split_of(key) in ("train", "valid")]
    any_labels = len(unlabelled) < len(rows)
    if any_labels:
        # Beside cat.0.jpg a bare 7.jpg is a test image; anything else without a label is a mistake.
        lost += [k for k in unlabelled if _split_of(k) is None and ("/" in k or not PurePosixPath(k).stem.isdecimal())]
    if lost:
        raise CatdogError(
            f"{source}: {len(lost)} images carry no label, e.g. {lost[0]}; expected names like {class_names[0]}.0.jpg "
            f"or folders {class_names[0]}/ and {class_names[1]}/, and unlabelled images in test/"
        )
    test = [row for row in rows.values() if row.split == "test"]
    known = sum(row.label is not None for row in test)
    if 0 < known < len(test):
        raise CatdogError(
            f"{source}: {known} of {len(test)} test images carry a label; expected all of them or none of them to"
        )
    if any(row.label is not None for row in rows.values() if row.split != "test"):
        own_valid = any(row.split == "valid" for row in rows.values())
        if not own_valid:
            for path, row in rows.items():
                if row.split == "train" and is_in_validation(row.key, valid_fraction, split_seed):
                    rows[path] = Row(row.key, "valid", row.label)
        _require_both_classes(rows.values(), class_names, source, own_valid, valid_fraction)
    return rows, class_names


def _strip_wrapper(paths: list[str]) -> dict[str, str]:
    """Keys are paths relative to the set's root: folders that wrap everything and say nothing are left off."""
    split = [path.split("/") for path in paths]
    depth = 0
    while all(len(parts) > depth + 1 for parts in split):
        names = {parts[depth] for parts in split}
        only = next(iter(names)).lower()
        if len(names) > 1 or only in sources.SPLIT_FOLDERS or only in _CLASS_FOLDERS:
            break
        depth += 1
    return {path: "/".join(parts[depth:]) for path, parts in zip(paths, split, strict=True)}


def _split_of(key: str) -> str | None:
    folders = key.lower().split("/")[:-1]
    return next((sources.SPLIT_FOLDERS[folder] for folder in folders if folder in sources.SPLIT_FOLDERS), None)


def _class_folder(key: str) -> str | None:
    folders = [folder for folder in key.lower().split("/")[:-1] if folder not in sources.SPLIT_FOLDERS]
    return folders[0] if folders else None


def _class_folders(keys: list[str], source: str) -> tuple[dict[str, int], tuple[str, str]]:
    """Which folders are classes: cats and dogs where there are any, else the only two that hold training images."""
    cats_and_dogs = {label for key in keys if (label := _label_of(key, _CLASS_FOLDERS)) is not None}
    if len(cats_and_dogs) == 2:
        return _CLASS_FOLDERS, DEFAULT_CLASS_NAMES
    found = sorted({folder for key in keys if _split_of(key) != "test" and (folder := _class_folder(key))})
    if len(found) != 2 and cats_and_dogs:
        return _CLASS_FOLDERS, DEFAULT_CLASS_NAMES
    if not found:
        return {}, DEFAULT_CLASS_NAMES
    if len(found) != 2:
        raise CatdogError(
            f"{source}: found {len(found)} class folder{'s' * (len(found) != 1)} ({', '.join(found[:5])}); expected "
            "two, such as cat/ and dog/"
        )
    return {found[0]: 0, found[1]: 1}, (found[0], found[1])


def _label_of(key: str, class_folders: dict[str, int]) -> int | None:
    folders = key.lower().split("/")[:-1]
    by_folder = next((class_folders[folder] for folder in folders if folder in class_folders), None)
    if by_folder is not None or (class_folders and class_folders is not _CLASS_FOLDERS):
        return by_folder
    named = _CLASS_PREFIX.match(key.rsplit("/", 1)[-1])
    return DEFAULT_CLASS_NAMES.index(named.group(1).lower()) if named else None


def _require_both_classes(
    rows: Iterable[Row], class_names: tuple[str, str], source: str, own_valid: bool, valid_fraction: float
) -> None:
    counts = Counter((row.split, row.label) for row in rows)
    for label, name in enumerate(class_names):
        train, valid = counts["train", label], counts["valid", label]
        if train + valid == 0:
            other = counts["train", 1 - label] + counts["valid", 1 - label]
            raise CatdogError(
                f"{source}: class {name!r} is empty ({other} images of {class_names[1 - label]!r}); expected images of "
                "both classes"
            )
        if not train or not valid:
            missing, rule = ("training", "train/") if not train else ("validation", "valid/")
            cause = f"the {rule} folder" if own_valid else f"--valid-fraction {valid_fraction}"
            raise CatdogError(
                f"{source}: class {name!r} has {train + valid} images and {cause} leaves none of them for {missing}; "
                "give more images or another fraction"
            )


def _ids(rows: list[Row]) -> list[str]:
    """The numeric stem where the test files are numbered, else the key; other splits always use the key."""
    test = [row for row in rows if row.split == "test"]
    stems = {row.key: PurePosixPath(row.key).stem for row in test}
    numbers = {key: str(int(stem)) for key, stem in stems.items() if stem.isascii() and stem.isdecimal()}
    if len(stems) / 2 < len(numbers) < len(stems):
        stray = next(key for key in stems if key not in numbers)
        raise CatdogError(f"test file {stray} is not numbered as {len(numbers)} others are; rename it or take it out")
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
            raise CatdogError(f"test files {first[number]} and {row.key} have the same id {number}; expected one each")
        first[number] = row.key
    return [numbers.get(row.key, row.key) if row.split == "test" else row.key for row in rows]


def _natural(key: str) -> list[tuple[int, int, str]]:
    """Sorts cat.9.jpg before cat.10.jpg."""
    return [
        (0, int(part), "") if part.isascii() and part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", key)
    ]


# --- writing the data set ----------------------------------------------------------------------------------------


def _copy(
    files: Iterator[sources.SourceFile], rows: dict[str, Row], dest: str, previous: Catalog | None
) -> tuple[str, dict[str, int | None]]:
    """Copies the images into place, several at a time (a bucket answers slowly), and digests their bytes.

    Returns:
        SHA-256 (hex) over keys and bytes, whatever order the source came in; by key, what the catalog keeps of it.
    """
    known = set(previous.table["key"].to_pylist()) if previous is not None else set()
    images = storage.join(dest, "images")
    digests: dict[str, bytes] = {}

    def place(file: sources.SourceFile) -> None:
        key = rows[file.path].key
        target = storage.join(images, key)
        digests[key] = hashlib.sha256(file.data or b"").digest()
        # An image that the set has lost since is put back.
        if key in known and storage.exists(target):
            if file.data is not None and storage.read_bytes(target) != file.data:
                raise CatdogError(
                    f"DEST {dest} already holds another {key} than SOURCE does; prepare into a new folder"
                )
        elif file.data is None and storage.is_local(target):
            Path(target).mkdir(parents=True, exist_ok=True)
        elif file.data is not None and storage.is_local(target):
            # No sync here: the catalog, written last and synced, is what makes the set whole.
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).write_bytes(file.data)
        else:
            storage.write_bytes(target, file.data or b"")

    try:
        with ThreadPoolExecutor(8) as pool:
            batch: list[sources.SourceFile] = []
            for file in files:
                batch.append(file)
                if len(batch) == _WRITE_BATCH:
                    sources.require_space(dest, sum(len(f.data or b"") for f in batch))
                    list(pool.map(place, batch))
                    batch.clear()
            list(pool.map(place, batch))
    except BaseException as error:
        if previous is None:
            storage.delete_folder(images)
            storage.delete_file(storage.join(dest, _UNFINISHED))
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            kept = "nothing was kept" if previous is None else "the data set is as it was"
            raise CatdogError(f"could not write the images to {dest}: {reason}; {kept}") from error
        raise
    total = hashlib.sha256()
    for key in sorted(digests):
        total.update(key.encode() + b"\0" + digests[key])
    empty = hashlib.sha256(b"").digest()
    short = {key: None if digest == empty else int.from_bytes(digest[:8], "big") for key, digest in digests.items()}
    return total.hexdigest(), short
