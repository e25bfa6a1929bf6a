"""Preparing a data set: a source is scanned, copied and split once, and described by a catalog.

`prepare_dataset` copies every image unchanged to `DEST/images/KEY` and writes the catalog last: a folder with a catalog
is a complete data set, one without is none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs as pafs

from catdog import lease, storage
from catdog.data import catalog, label_sources, layouts, sources, splits
from catdog.data.catalog import Catalog
from catdog.data.layouts import Layout, Row
from catdog.data.splits import Duplicates, Remark
from catdog.errors import CatdogError, UsageError
from catdog.events import EventHandler, Progress

# Files that are written at the same time, and the memory that they may take, in bytes.
_WRITE_BATCH, _WRITE_BYTES = 64, 64 << 20
# The lease in DEST during preparation. A folder with one, or a temporary file of one, and no catalog was interrupted.
_LEASE_NAME = "preparing.json"


@dataclass(frozen=True, slots=True)
class _Copied:
    """A copied image: SHA-256 and size of its bytes; the size is None for a folder."""

    sha256: bytes
    size: int | None


def prepare_dataset(
    source: str,
    dest: str,
    valid_fraction: float = 0.1,
    split_seed: int = 0,
    *,
    positive: str | None = None,
    duplicates: Duplicates | None = None,
    ignore: list[str] | None = None,
    labels: str | None = None,
    on_remark: Callable[[Remark], None] | None = None,
    on_event: EventHandler | None = None,
) -> Catalog:
    """Prepares a data set from Kaggle's zips, PetImages, class folders, a folder with a CSV of labels, or Parquet.

    The operation may be repeated: the same source changes nothing, a source with more images adds them, and no image
    moves between splits. It is an error if `dest` has any other content; nothing is overwritten.

    Args:
        source: URI of a zip, a tar, a Parquet file or a folder.
        dest: URI of the folder to create.
        valid_fraction: share of each class's labelled images for validation, in (0, 1); unused if the source has a
            validation folder.
        split_seed: seed of the hash that assigns splits.
        positive: name of the class with label 1, whose probability is predicted; None for dog, or the second class in
            alphabetical order.
        duplicates: handling of byte-equal copies, as for `splits.assign_splits`.
        ignore: shell patterns of files and folders to leave out.
        labels: path in the source, or URI, of a CSV with the labels; None for a CSV that the source has, unless its
            paths name the classes.
        on_remark: called with remarks on files that were left out and on unusual images.
        on_event: told of `Progress`.

    Returns:
        The catalog, already written.

    Raises:
        UsageError: the source does not exist, or a value is out of range.
        CatdogError: the source is not a valid data set, or it could not be written.
    """
    on_remark = on_remark or (lambda _remark: None)
    source, dest = storage.absolute(source), storage.absolute(dest)
    if not 0 < valid_fraction < 1:
        raise UsageError(f"--valid-fraction received {valid_fraction}, expected a number between 0 and 1")
    if storage.kind(source) == "absent":
        raise UsageError(
            f"SOURCE received {source!r}, which does not exist; expected a zip, a tar, a Parquet file or a "
            "folder of images"
        )
    if source == dest:
        raise UsageError(f"SOURCE and DEST are the same folder ({source}); give another DEST")
    if storage.relative(dest, source) != dest:
        raise UsageError(f"DEST {dest} lies inside SOURCE {source}, whose images it would add to; give another DEST")
    options: dict[str, object] = {"split_seed": split_seed, "valid_fraction": valid_fraction}
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        found = sources.scan_source(source, Path(scratch), ignore)
        for remark in _remarks_on_files(found):
            on_remark(remark)
        layout, told = label_sources.read_layout(found, source, labels)
        for remark in told:
            on_remark(remark)
        if positive is not None:
            layout = layouts.choose_positive(layout, positive)
        with contextlib.ExitStack() as stack:
            if catalog.has_catalog(dest):
                held = stack.enter_context(lease.hold(storage.join(dest, _LEASE_NAME), "`catdog data prepare`"))
            else:
                held = stack.enter_context(
                    creating_dataset(dest, ["images", catalog.SAMPLE_NAME], "`catdog data prepare`")
                )
            previous = _previous(dest, options)
            if previous is not None:
                if positive is None and previous.class_names == layout.class_names[::-1]:
                    layout = layout.swapped()
                _require_addition(previous, layout)
            known = {} if previous is None else _columns(previous, "key", "split")
            copied = _copy(
                sources.read_images(source, Path(scratch), layout.rows.keys()), layout, dest, known, on_event
            )
            rows = [dataclasses.replace(row, digest=_digest(copied[row.key])) for row in layout.rows.values()]
            settled = splits.assign_splits(
                rows, layout.own_valid, valid_fraction, split_seed, duplicates, known, on_remark
            )
            kept = {row.key for row in settled}
            for row in rows:
                if row.key not in kept:
                    storage.delete_file(storage.join(dest, "images", row.key))
            settled.sort(key=lambda row: (catalog.SPLITS.index(row.split), layouts.natural_order(row.key)))
            content = options | {"content_sha256": _content_sha256(copied, kept)}
            sample_ids = label_sources.sample_ids(found)
            result = build_catalog(dest, settled, layout.class_names, content, "images", sample_ids)
            _require_copied(dest, {row.key: copied[row.key] for row in settled})
            for remark in _remarks_on_ids(result, sample_ids):
                on_remark(remark)
            if previous is not None and previous.options == result.options and previous.table.equals(result.table):
                return previous
            held.require_held()
            if found.sample is not None:
                storage.write_bytes(storage.join(dest, catalog.SAMPLE_NAME), found.sample)
            result.write()
    return result


@contextlib.contextmanager
def creating_dataset(dest: str, names: list[str], what: str) -> Iterator[lease.Lease]:
    """Holds the lease of a new or empty folder while a data set is created in it; cleans up on failure.

    Args:
        dest: URI of the folder; the incomplete data set of a dead process is deleted.
        names: names of the files and folders that will be created in it, without the catalog.
        what: the operation in progress, for messages.

    Yields:
        The lease.

    Raises:
        CatdogError: `dest` is a file, has other content (which is kept), or another process is preparing it.
    """
    if storage.kind(dest) == "file":
        raise CatdogError(f"DEST {dest} is a file; give a new or empty folder")
    begun = any(name.lstrip(".").startswith(_LEASE_NAME) for name in storage.list_names(dest, temporary=True))
    if storage.list_names(dest) and not begun:
        raise CatdogError(f"DEST {dest} is not empty and holds no data set; give a new or empty folder")

    def delete() -> None:
        if not catalog.has_catalog(dest):  # else it is complete: by another process, or just before an interruption
            for name in names:
                uri = storage.join(dest, name)
                (storage.delete_folder if storage.kind(uri) == "folder" else storage.delete_file)(uri)
        delete_temporary()

    def delete_temporary() -> None:
        for name in filter(storage.is_temporary, storage.list_names(dest, temporary=True)):
            with contextlib.suppress(OSError):  # another process, which waits for the lease, may have deleted it
                storage.delete_file(storage.join(dest, name))

    with lease.hold(storage.join(dest, _LEASE_NAME), what) as held:
        delete()
        # It goes last, so that what could not be deleted is known as catdog's when the lease is gone.
        storage.write_text(storage.join(dest, storage.temporary_name(_LEASE_NAME)), "")
        try:
            yield held
        except BaseException:
            with contextlib.suppress(CatdogError, OSError):  # if another process took over the folder, its files stay
                held.require_held()
                delete()
            raise
        with contextlib.suppress(OSError):
            delete_temporary()


def build_catalog(
    root: str,
    rows: list[Row],
    class_names: tuple[str, str],
    options: dict[str, object],
    folder: str = "",
    sample_ids: Collection[str] = (),
) -> Catalog:
    """Builds the catalog of images whose files are already in the data set's folder.

    Args:
        root: URI of the data set's folder.
        rows: the images, in catalog order.
        class_names: names of labels 0 and 1.
        options: as of `Catalog`.
        folder: folder below `root` that keys are relative to.
        sample_ids: as for `layouts.ids_of`.

    Returns:
        The catalog, not yet written.

    Raises:
        CatdogError: two unlabelled test files have the same id.
    """
    ids = layouts.ids_of(rows, sample_ids)
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


def _columns(data: Catalog, first: str, second: str) -> dict[str, str]:
    return dict(zip(data.table[first].to_pylist(), data.table[second].to_pylist(), strict=True))


def _previous(dest: str, options: dict[str, object]) -> Catalog | None:
    """The existing data set in `dest`, or None. Raises CatdogError if it was split with other options."""
    if not catalog.has_catalog(dest):
        return None
    previous = catalog.read_catalog(dest)
    for option, value in options.items():
        if previous.options.get(option) != value:
            raise CatdogError(
                f"DEST {dest} is split with {option.replace('_', '-')} {previous.options.get(option)}, received "
                f"{value}; a split is made once: prepare into a new folder"
            )
    return previous


def _require_addition(previous: Catalog, layout: Layout) -> None:
    """Checks that the source still has every image of the existing data set, with the same split and label."""
    now = {row.key: (row.split, row.label) for row in layout.rows.values()}
    if previous.class_names != layout.class_names:
        raise CatdogError(
            f"DEST {previous.root} holds {previous.class_names}, SOURCE {layout.class_names}; use a new folder"
        )
    for old in previous.table.select(["key", "split", "label"]).to_pylist():
        key, before = old["key"], (old["split"], old["label"])
        # Without a validation folder, a layout has all labelled images in train; splits are assigned later.
        drawn = not layout.own_valid and now.get(key) == ("train", old["label"]) and old["split"] == "valid"
        if now.get(key) != before and not drawn:
            change = "is not in SOURCE" if key not in now else f"would move from {before[0]} to {now[key][0]}"
            if key in now and before[0] == now[key][0]:
                change = "would have another label"
            raise CatdogError(
                f"DEST {previous.root} already holds another data set: {key} {change}; prepare into a new folder"
            )


# --- writing the data set ----------------------------------------------------------------------------------------


def _copy(
    files: Iterator[tuple[str, bytes | None]],
    layout: Layout,
    dest: str,
    known: dict[str, str],
    on_event: EventHandler | None,
) -> dict[str, _Copied]:
    """Copies the images, several at a time because buckets have a high latency.

    Returns:
        The copied or already existing image of each key.
    """
    images = storage.join(dest, "images")
    copied: dict[str, _Copied] = {}

    def place(file: tuple[str, bytes | None]) -> None:
        key, data = layout.rows[file[0]].key, file[1]
        target = storage.join(images, key)
        copied[key] = _Copied(hashlib.sha256(data or b"").digest(), None if data is None else len(data))
        # A known image whose file has been deleted is copied again.
        if key in known and storage.exists(target):
            if data is not None and storage.read_bytes(target) != data:
                raise CatdogError(
                    f"DEST {dest} already holds another {key} than SOURCE does; prepare into a new folder"
                )
        elif data is None and storage.is_local(target):
            Path(target).mkdir(parents=True, exist_ok=True)
        elif data is not None and storage.is_local(target) and key not in known:
            # No sync: the data set counts as complete only with its catalog, which is written last and synced.
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).write_bytes(data)
        else:
            storage.write_bytes(target, data or b"")

    try:
        with ThreadPoolExecutor(8) as pool:
            batch: list[tuple[str, bytes | None]] = []
            for file in files:
                batch.append(file)
                size = sum(len(data or b"") for _, data in batch)
                if len(batch) == _WRITE_BATCH or size > _WRITE_BYTES:
                    sources.require_space(dest, size)
                    list(pool.map(place, batch))
                    batch.clear()
                    if on_event is not None:
                        on_event(Progress("copying", len(copied), len(layout.rows)))
            list(pool.map(place, batch))
    except OSError as error:
        kept = "the data set is as it was" if known else "nothing was kept"
        raise CatdogError(f"could not write the images to {dest}: {error.strerror or error}; {kept}") from error
    return copied


def _require_copied(dest: str, expected: dict[str, _Copied]) -> None:
    """Checks that every file exists with its full size; to be called before the catalog is written."""
    found = storage.list_files(storage.join(dest, "images"))
    local = storage.is_local(dest)

    def is_as_written(info: pafs.FileInfo | None, file: _Copied) -> bool:
        is_folder = info is not None and info.type == pafs.FileType.Directory
        return is_folder if file.size is None and local else info is not None and info.size == (file.size or 0)

    wrong = [key for key, file in expected.items() if not is_as_written(found.get(key), file)]
    if not local:  # a bucket may list late what it has

        def ask(key: str) -> pafs.FileInfo:
            filesystem, path = storage.resolve(storage.join(dest, "images", key))
            return filesystem.get_file_info(path)

        with ThreadPoolExecutor(8) as pool:
            pairs = zip(wrong, pool.map(ask, wrong), strict=True)
            wrong = [key for key, info in pairs if not is_as_written(info, expected[key])]
    if wrong:
        raise CatdogError(
            f"{len(wrong)} of {len(expected)} images in {dest} have changed since they were written, e.g. {wrong[0]}; "
            "another program uses that folder: prepare into a new one"
        )


def _content_sha256(copied: dict[str, _Copied], kept: set[str]) -> str:
    """SHA-256 (hex) over keys and bytes, independent of the order of the source."""
    total = hashlib.sha256()
    for key in sorted(kept):
        total.update(key.encode() + b"\0" + copied[key].sha256)
    return total.hexdigest()


def _digest(file: _Copied) -> int | None:
    return int.from_bytes(file.sha256[:8], "big") if file.size else None


# --- remarks on the data set -------------------------------------------------------------------------------------


def _remarks_on_files(found: sources.Survey) -> list[Remark]:
    taken = Counter(_suffix(path) for path in found.images)
    remarks = []
    if taken:
        remarks.append(Remark("Images: " + ", ".join(f"{count:,} {suffix}" for suffix, count in taken.most_common())))
    skipped = Counter((_suffix(path), reason) for path, reason in found.skipped)
    for (suffix, reason), count in skipped.most_common():
        example = next(path for path, why in found.skipped if why == reason and _suffix(path) == suffix)
        remarks.append(Remark(f"Not taken: {count:,} {suffix} ({reason}), e.g. {example}"))
    return remarks


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower() or "without a suffix"


def _remarks_on_ids(data: Catalog, wanted: set[str]) -> list[Remark]:
    if not data.count("test"):
        return []
    ids = data.split("test")["id"].to_pylist()
    remarks = []
    if gaps := layouts.missing_numbers(ids):
        named = ", ".join(map(str, gaps[:5]))
        remarks.append(
            Remark(f"Numbers missing among the {len(ids):,} test ids: {len(gaps)}, such as {named}", warning=True)
        )
    if wanted:
        for lacking, where, holder in (
            (wanted - set(ids), "the sample submission", "the test files lack"),
            (set(ids) - wanted, "the test files", "the sample submission lacks"),
        ):
            if lacking:
                example = min(lacking, key=layouts.natural_order)
                remarks.append(Remark(f"Ids of {where} that {holder}: {len(lacking)}, such as {example}", warning=True))
        if wanted == set(ids):
            remarks.append(Remark(f"Sample submission: {len(wanted):,} ids, those of the test files"))
    return remarks
