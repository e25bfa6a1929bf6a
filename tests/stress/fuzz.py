"""Coverage-guided fuzzing of everything that reads what users and other programs hand over.

    python tests/stress/fuzz.py decode --seconds 300

`make fuzz` runs all targets. Only errors that a caller does not expect count, and hangs of 5 s, and 2 GB of memory. The
inputs that reached something new are kept in `--corpus`, from which the next run goes on; one that shows a fault is
written beside them.

Atheris sees the branches of Python code only, so native decoders are reached by mutations of valid files. Images are
limited to a million pixels here, so that each run is short.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np
import pyarrow as pa

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

with atheris.instrument_imports(include=["catdog", "PIL", "zipfile", "tarfile", "csv", "imagehash"]):
    # Here, because they import what is to be instrumented.
    import image_kinds
    from bad_images import every_bad_file
    from helpers import class_folders, kaggle_zip, saved_info, zipped

    from catdog import storage, tables
    from catdog.data import (
        catalog,
        csv_tables,
        fallback,
        images,
        jpeg,
        key_list,
        label_tables,
        parquet_images,
        sources,
    )
    from catdog.data.sources import Given
    from catdog.errors import CatdogError
    from catdog.inference import bundle
    from catdog.inference.novelty import FeatureStatistics
    from catdog.inference.provenance import Provenance
    from catdog.reporting import submission
    from catdog.scoring import parts
    from catdog.scoring.parts import Part

IMAGES = ["cat.1.jpg", "cat.2.jpg", "dog.1.jpg", "dog.2.jpg", 'a "b", c.jpg']
FOLDER = Path(tempfile.mkdtemp(prefix="catdog-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
SCHEMA_ROWS = {
    "key": IMAGES,
    "id": ["1", "2", "3", "4", "5"],
    "uri": [f"images/{name}" for name in IMAGES],
    "label": [0, 0, 1, 1, None],
    "split": ["train", "valid", "train", "valid", "test"],
    "digest": [1, 2, 3, 4, None],
}
CATALOG = catalog.Catalog(pa.Table.from_pydict(SCHEMA_ROWS, schema=catalog.SCHEMA), ("cat", "dog"), str(FOLDER / "set"))


def decode(data: bytes) -> None:
    """Images of all formats, by the one decoder."""
    found = images.decode_whole(data)
    assert found.status in ("ok", "recovered", "unreadable")
    assert "\n" not in found.detail
    assert bool(found.detail) == (found.status != "ok")
    assert found.pixels.dtype == np.uint8
    assert found.pixels.ndim == 3
    fallback.declared_size(data)


def read_bundle(data: bytes) -> None:
    """`bundle.json`, and the two binary files that its checksums name."""
    (FOLDER / "model").mkdir(exist_ok=True)
    (FOLDER / "model" / "bundle.json").write_bytes(data)
    expecting(lambda: bundle.read_info(str(FOLDER / "model")))
    expecting(lambda: Provenance.from_bytes(data, True), pa.ArrowInvalid, KeyError)
    expecting(lambda: FeatureStatistics.from_bytes(data))


def read_catalog(data: bytes) -> None:
    """`catalog.parquet`."""
    (FOLDER / "set").mkdir(exist_ok=True)
    (FOLDER / "set" / "catalog.parquet").write_bytes(data)
    expecting(lambda: catalog.read_catalog(str(FOLDER / "set")).fingerprint)


def read_part(data: bytes) -> None:
    """A part of the predictions: it is whole, or made again."""
    path = FOLDER / "part.parquet"
    path.write_bytes(data)
    rows = CATALOG.table.slice(4, 1)
    parts.is_complete(Part("test", 0, len(rows), rows, str(path)))


def read_labels(data: bytes) -> None:
    """CSVs of labels."""
    expecting(lambda: label_tables.choose_labels({"labels.csv": data}, IMAGES, "set"))
    expecting(lambda: label_tables.choose_labels({}, IMAGES, "set", ("labels.csv", data)))
    csv_tables.own_split(data.decode("latin-1"))


def read_keys(data: bytes) -> None:
    """Lists for `--leave-out`."""
    text = data.decode("utf-8", "replace")
    expecting(lambda: key_list.parse_corrections(text, set(IMAGES)), ValueError)


def check_submission(data: bytes) -> None:
    """A submission, and the sample of one."""
    (FOLDER / "set").mkdir(exist_ok=True)
    sample, own = FOLDER / "set" / catalog.SAMPLE_NAME, FOLDER / "results.csv"
    for target, other in ((own, sample), (sample, own)):
        target.write_bytes(data)
        other.write_bytes(b"id,label\n5,0.5\n")
        expecting(lambda: submission.check_submission(str(own), CATALOG))


def walk_archive(data: bytes) -> None:
    """Zips and tars, with what is in them."""
    path = FOLDER / "source.zip"
    path.write_bytes(data)

    def walk() -> None:
        for entry in sources.iter_entries(str(path), FOLDER, set()):
            entry.read(64)
        found = sources.scan_source(str(path), FOLDER)
        assert len(found.images) == len(set(found.images))
        assert not any(name.startswith("/") or ".." in name.split("/") for name in found.images)

    expecting(walk)


def read_parquet(data: bytes) -> None:
    """Parquet files with images and labels."""
    path = FOLDER / "images.parquet"
    path.write_bytes(data)

    def read() -> None:
        with storage.open_seekable(str(path)) as stream:
            rows = list(parquet_images.read_rows(stream, "images.parquet") or ())
        if rows:
            label_tables.labels_of_rows({f"{row.number}": Given(row.label, None) for row in rows}, "it")

    expecting(read)


def expecting(call: Callable[[], object], *also: type[Exception]) -> None:
    """Calls what may fail in a way that its callers expect; a message for people has one line."""
    message = ""
    try:
        call()
    except CatdogError as error:
        message = str(error)
    except also:
        pass
    assert "\n" not in message


def seeds(name: str) -> list[bytes]:
    """Inputs from which a target begins."""
    if name == "decode":
        small = [kind.data for kind in image_kinds.every_kind()]
        return small + [bad.content for bad in every_bad_file() if isinstance(bad.content, bytes)]
    if name == "read_bundle":
        return [saved_info(CATALOG).model_dump_json().encode(), json.dumps({"schema_version": 2}).encode()]
    if name == "walk_archive":
        return [
            kaggle_zip(),
            zipped(class_folders("cats", "dogs")),
            zipped({"a.zip": zipped({"train/cat.1.jpg": b"x"})}),
        ]
    if name in ("read_catalog", "read_part", "read_parquet"):
        CATALOG.write()
        rows = {"image": [b"x", b"y"], "label": [0, 1], "split": ["train", "test"]}
        predicted = {"logit": [0.5], "probability": [0.5], "status": ["ok"], "detail": [""]}
        part = CATALOG.table.slice(4, 1).select(["key", "id", "label"]).to_pydict() | predicted
        whole = [pa.table(rows), pa.Table.from_pydict(part, schema=parts.PART_SCHEMA)]
        written = [tables.table_to_bytes(table, kind) for table in whole for kind in ("none", "zstd")]
        return [storage.read_bytes(str(FOLDER / "set" / "catalog.parquet")), *written]
    texts = [
        "id,label\n5,0.5\n",
        "file,label\ncat.1.jpg,cat\ndog.1.jpg,dog\n",
        "key,action\ncat.1.jpg,flip\n",
        "cat.1.jpg\ndog.1.jpg\n",
        '"a ""b"", c.jpg"\n',
        "sep=;\nid;class;split\n1;cat;train\n2;dog;valid\n",
        ",image,breed\n0,cat.1,0\n1,dog.1,1.0\n",
        "id,label\n5,50%\n",
        "id,label\n5,[0.5]\n",
        "5,0,5\n",
    ]
    return [text.encode(coding) for text in texts for coding in ("utf-8", "utf-8-sig", "utf-16")]


TARGETS = (
    decode,
    read_bundle,
    read_catalog,
    read_part,
    read_labels,
    read_keys,
    check_submission,
    walk_archive,
    read_parquet,
)


def main() -> None:
    """Fuzzes one target until its time is over."""
    names = [target.__name__ for target in TARGETS]
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("target", choices=names)
    words.add_argument("--seconds", type=int, default=60)
    words.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "catdog-fuzz")
    given = words.parse_args()
    images.MAX_PIXELS = 1_000_000
    jpeg._MOST_SCANS = 20
    folder = given.corpus / given.target
    folder.mkdir(parents=True, exist_ok=True)
    for at, data in enumerate(seeds(given.target)):
        (folder / f"seed-{at:04d}").write_bytes(data)
    options = ["-timeout=5", "-rss_limit_mb=2000", "-max_len=65536", f"-artifact_prefix={folder}-fault-", str(folder)]
    atheris.Setup([sys.argv[0], *options], bounded(dict(zip(names, TARGETS, strict=True))[given.target], given.seconds))
    atheris.Fuzz()


def bounded(target: Callable[[bytes], None], seconds: float) -> Callable[[bytes], None]:
    """A target that ends this process when its time is over; libFuzzer's own end can hang in threads of libraries."""
    runs, end = 0, 0.0

    def run(data: bytes) -> None:
        nonlocal runs, end
        end = end or time.monotonic() + seconds
        if time.monotonic() > end:
            print(f"{target.__name__}: {runs:,} executions in {seconds:g} s, no fault", flush=True)
            shutil.rmtree(FOLDER, ignore_errors=True)
            os._exit(0)
        runs += 1
        target(data)

    return run


if __name__ == "__main__":
    main()
