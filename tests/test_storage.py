"""Paths, buckets and atomic writes."""

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from catdog import storage, tables
from catdog.data import images
from catdog.errors import CatdogError, UsageError


def test_join_and_parent_keep_a_buckets_options() -> None:
    uri = "s3://bucket/a?region=eu-west-1"
    assert storage.join(uri, "b", "c") == "s3://bucket/a/b/c?region=eu-west-1"
    assert storage.parent(storage.join(uri, "b.csv")) == uri
    assert storage.name(storage.join(uri, "b.csv")) == "b.csv"
    assert storage.parent("/x") == "/"
    assert storage.relative(storage.join(uri, "b", "c"), uri) == "b/c"
    assert storage.relative("/a/b/c", "/a") == "b/c"
    assert storage.relative("/ab/c", "/a") == "/ab/c"


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    storage.write_text(str(target), "one")
    storage.write_text(str(target), "two")
    assert target.read_text() == "two"
    assert storage.list_names(str(target.parent)) == ["file.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file.txt"
    storage.write_text(str(target), "old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CatdogError, match="could not write .*file.txt: No space left on device"):
        storage.write_text(str(target), "new")
    assert target.read_text() == "old"
    assert storage.list_names(str(tmp_path)) == ["file.txt"]


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CatdogError, match="could not write .*new.txt: Not a directory"):
        storage.write_text(str(tmp_path / "file" / "folder" / "new.txt"), "x")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_cannot_be_read_is_not_taken_for_absent(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    assert storage.read_if_there(str(tmp_path / "file")) == b"x"
    for absent in ("none", "file/below", ""):
        assert storage.read_if_there(str(tmp_path / absent)) is None
    with pytest.raises(CatdogError, match="could not read .*pipe: is not a regular file; run the same command again"):
        storage.read_if_there(str(tmp_path / "pipe"))


def test_temporary_files_are_listed_on_request_only(tmp_path: Path) -> None:
    for name in ("b.csv", storage.temporary_name("b.csv"), ".hidden"):
        (tmp_path / name).touch()
    assert storage.list_names(str(tmp_path)) == [".hidden", "b.csv"]
    assert len(storage.list_names(str(tmp_path), temporary=True)) == 3


def test_a_submitted_job_refuses_relative_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.absolute_output("runs", "--runs") == str(Path("runs").absolute())
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UsageError, match="--runs received the relative path 'runs' in a submitted job"):
        storage.absolute_output("runs", "--runs")
    assert storage.absolute_output("/data/runs", "--runs") == "/data/runs"
    assert storage.absolute_output("s3://bucket/runs", "--runs") == "s3://bucket/runs"


def test_an_unknown_scheme_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'ftp://host/x'"):
        storage.kind("ftp://host/x")


def test_a_bucket_works_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    (tmp_path / "bucket").mkdir()
    monkeypatch.setattr(storage, "_bucket_filesystem", lambda _scheme, _bucket, _query: bucket)
    (tmp_path / "bucket" / "a").mkdir()
    storage.write_bytes("s3://bucket/a/x.bin", b"12")
    assert storage.read_bytes("s3://bucket/a/x.bin") == b"12"
    assert storage.list_names("s3://bucket/a") == ["x.bin"]
    for number in range(40):
        storage.write_bytes(f"s3://bucket/a/{number}", b"%d" % number)
    uris = [f"s3://bucket/a/{number}" for number in range(41)]
    *files, absent = images.fetch_all(uris)
    assert files == [b"%d" % number for number in range(40)]
    assert str(absent).startswith("could not be read")
    assert storage.kind("s3://bucket/a") == "folder"
    storage.delete_folder("s3://bucket/a")
    assert not storage.exists("s3://bucket/a/x.bin")


def test_a_table_is_read_as_it_was_written_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("logit", pa.float32())])
    table = pa.Table.from_pydict({"key": ["a", "b"], "logit": [0.5, None]}, schema=schema)
    uri = str(tmp_path / "table.parquet")
    tables.write_table(uri, table)
    assert tables.read_table(uri).equals(table)
    assert tables.read_table(uri).schema.equals(schema)
    assert tables.read_table(uri, ["logit"]).column_names == ["logit"]
    assert tables.table_to_bytes(table) == Path(uri).read_bytes()
    with pytest.raises(pa.ArrowInvalid, match="no column absent"):
        tables.read_table(uri, ["key", "absent"])
    with pytest.raises(pa.ArrowInvalid):
        tables.table_from_bytes(Path(uri).read_bytes()[:-5])
