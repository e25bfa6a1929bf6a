"""A CSV and its sidecars: they belong together while each is the file that `meta.json` was written for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from catdog.errors import CatdogError, UsageError
from catdog.reporting import result_set


@pytest.fixture
def out(tmp_path: Path) -> str:
    """The URI of a CSV, written with its sidecars."""
    uri = str(tmp_path / "results.csv")
    row = {"id": "7", "key": "=HYPERLINK(1),b.jpg", "detail": "is empty (0 bytes)"}
    columns = {name: pa.string() for name in row}
    empty, unreadable = (pa.Table.from_pylist(rows, pa.schema(columns)) for rows in ([], [row]))
    digests = {
        "csv": result_set.write_sidecar(uri, "csv", "id,label\n7,0.5\n"),
        "rejected.csv": result_set.write_rejected(uri, {"valid": empty, "test": unreadable}),
    }
    result_set.write_meta(uri, {"data": "/data/set", "sha256": digests})
    return uri


def test_a_whole_set_is_intact_and_says_where_it_is_from(out: str) -> None:
    assert result_set.require_intact(out) == []
    assert result_set.read_origin(out) == "/data/set"
    rejected = Path(out).with_name("results.rejected.csv").read_bytes()
    assert rejected == b"""split,id,key,reason\ntest,7,"'=HYPERLINK(1),b.jpg",is empty (0 bytes)\n"""
    written = json.loads(Path(out).with_name("results.meta.json").read_text())["sha256"]
    expected = {"csv": Path(out).read_bytes(), "rejected.csv": rejected}
    assert written == {ending: hashlib.sha256(content).hexdigest() for ending, content in expected.items()}


@pytest.mark.parametrize("ending", ["csv", "rejected.csv"])
def test_a_changed_file_is_refused_and_a_missing_one_named(out: str, ending: str) -> None:
    uri = result_set.sidecar(out, ending)
    Path(uri).write_text("other")
    assert not result_set.is_intact(out, ending)
    with pytest.raises(CatdogError, match=r"is not the file that results\.meta\.json was written for"):
        result_set.require_intact(out)
    Path(uri).unlink()
    assert not result_set.is_intact(out, ending)
    assert result_set.require_intact(out) == [uri]


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"sha256": []}', "\x00"])
def test_without_a_readable_meta_nothing_is_vouched_for(out: str, content: str | None) -> None:
    meta = Path(out).with_name("results.meta.json")
    meta.unlink() if content is None else meta.write_text(content)
    assert result_set.read_digests(out) == {}
    assert not result_set.is_intact(out, "csv")
    with pytest.raises(UsageError, match="give its data set with --data DIR"):
        result_set.read_origin(out)
