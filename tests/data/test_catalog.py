"""Catalogs that anybody may have made: they reach no file of another folder, and what is none is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from catdog import storage, tables
from catdog.data import catalog
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError

HEADER = {"schema_version": catalog.SCHEMA_VERSION, "class_names": ["cat", "dog"], "options": {}}
ROWS = {
    "key": ["a.jpg", "b.jpg"],
    "id": ["1", "2"],
    "uri": ["images/a.jpg", "images/b.jpg"],
    "label": [0, None],
    "split": ["train", "test"],
    "digest": [1, 2],
}


def with_uri(folder: str, uri: str) -> None:
    """Makes a catalog name another file for its first image."""
    place = storage.join(folder, catalog.FILE_NAME)
    table = tables.read_table(place)
    uris = pa.array([uri, *table["uri"].to_pylist()[1:]], pa.string())
    tables.write_table(place, table.set_column(2, catalog.SCHEMA.field("uri"), uris))


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd", "file:///etc/passwd", "../secret.jpg", "images/../../secret.jpg", "images/..", "..",
        "s3://another/secret.jpg", "http://127.0.0.1/secret.jpg", "/etc/secret.parquet#0", "images/a\0.jpg",
    ],
)  # fmt: skip
def test_files_outside_of_the_folder_are_refused(drawn: Catalog, tmp_path: Path, catdog, uri: str) -> None:
    folder = shutil.copytree(drawn.root, tmp_path / "set")
    with_uri(str(folder), uri)
    shown = catdog("data", "pack", folder, tmp_path / "packed")
    assert (shown.code, shown.err.count("\n")) == (1, 1)
    assert f"names {uri!r}, which is not in the data set's folder" in shown.err
    assert not (tmp_path / "packed").exists()


def test_who_trusts_a_catalog_can_say_so(drawn: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Catalog(drawn.table, drawn.class_names, str(tmp_path / "set"), drawn.options)
    elsewhere.write()
    with pytest.raises(CatdogError, match=f"set {catalog.ALLOW_OUTSIDE}=1 if you trust"):
        catalog.read_catalog(elsewhere.root)
    monkeypatch.setenv(catalog.ALLOW_OUTSIDE, "1")
    assert catalog.read_catalog(elsewhere.root).table.equals(drawn.table)


def test_names_that_only_look_like_it_are_files(drawn: Catalog, tmp_path: Path) -> None:
    folder = str(shutil.copytree(drawn.root, tmp_path / "set"))
    for uri in ("images/a..b.jpg", "..images/x.jpg", "images/x../y.jpg", "images/what?.jpg", "C:/x.jpg", "~/x.jpg"):
        with_uri(folder, uri)
        assert catalog.read_catalog(folder).table["uri"][0].as_py() == f"{folder}/{uri}"


def test_a_buckets_catalog_names_no_other_server(drawn: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory")))
    monkeypatch.setattr(storage, "_bucket_filesystem", lambda _scheme, _bucket, _query: bucket)
    root = "s3://safe/set?region=x"
    Catalog(drawn.table, drawn.class_names, root, {}).write()
    for uri in ("images/a.jpg?endpoint_override=127.0.0.1:9", "s3://safe/other/a.jpg", "../other/a.jpg"):
        with_uri(root, uri)
        with pytest.raises(CatdogError, match="which is not in the data set's folder"):
            catalog.read_catalog(root)


def write(folder: Path, header: bytes | dict, **columns: list) -> str:
    """Writes a catalog as another program may."""
    arrays = []
    for field, values in zip(catalog.SCHEMA, (ROWS | columns).values(), strict=True):
        in_bytes = isinstance(values[0], bytes)
        arrays.append(pa.array(values, pa.binary()).view(pa.string()) if in_bytes else pa.array(values, field.type))
    metadata = {"catdog": header if isinstance(header, bytes) else json.dumps(header)}
    table = pa.Table.from_arrays(arrays, schema=catalog.SCHEMA).replace_schema_metadata(metadata)
    pq.write_table(table, folder / catalog.FILE_NAME)
    return str(folder)


def test_a_catalog_is_read(tmp_path: Path) -> None:
    data = catalog.read_catalog(write(tmp_path, HEADER))
    assert data.table["key"].to_pylist() == ROWS["key"]
    assert data.table["uri"][0].as_py() == f"{tmp_path}/images/a.jpg"


@pytest.mark.parametrize(
    ("header", "columns", "fault"),
    [
        (HEADER | {"class_names": ["cat"]}, {}, "class names ['cat'], expected two"),
        (HEADER | {"class_names": 5}, {}, "class names 5, expected two"),
        (HEADER | {"options": []}, {}, "options [], expected an object"),
        (HEADER | {"schema_version": [2]}, {}, "schema version [2], expected 2"),
        (b"[]", {}, "is not a catalog that catdog wrote"),
        (b"\xff", {}, "is not a catalog that catdog wrote"),
        (HEADER, {"key": [b"\xff", b"b"]}, "Invalid UTF8 sequence"),
        (HEADER, {"label": [5, 1]}, "has label 5, expected one of [0, 1, None]"),
        (HEADER, {"split": ["trian", "test"]}, "has split 'trian', expected one of ['train', 'valid', 'test']"),
    ],
)
def test_what_is_no_catalog_is_refused(tmp_path: Path, header: bytes | dict, columns: dict, fault: str) -> None:
    with pytest.raises(CatdogError) as caught:
        catalog.read_catalog(write(tmp_path, header, **columns))
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_catalog_of_several_pieces_is_written_read_and_marked_as_one(tmp_path: Path) -> None:
    """It is worked on 65,536 rows at a time."""
    count = 140_000
    keys = [f"{number}.jpg" for number in range(count)]
    labels = [None if number % 3 else number % 2 for number in range(count)]
    uris = [f"{tmp_path}/images/{key}" for key in keys]
    columns = [keys, keys, uris, pa.array(labels, pa.int8()), ["test"] * count, pa.array(range(count), pa.uint64())]
    data = Catalog(pa.table(columns, schema=catalog.SCHEMA), ("cat", "dog"), str(tmp_path), {"content_sha256": "abc"})
    data.write()
    again = catalog.read_catalog(str(tmp_path))
    assert again.table.equals(data.table)
    rows = [*keys, *keys, *labels, *["test"] * count]
    content = json.dumps([1, ["cat", "dog"]]) + "abc" + "".join(f"{value}\0" for value in rows)
    assert again.fingerprint == hashlib.sha256(content.encode()).hexdigest()
