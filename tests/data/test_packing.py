"""A packed data set is the same data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catdog import storage, tables
from catdog.data import catalog, images, packing
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError


def test_a_packed_set_is_the_same_set_in_fewer_files(
    drawn: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PACKED_GROUP", 16)
    monkeypatch.setattr(packing, "SHARD_ROWS", 48)
    storage._row_group.cache_clear()
    packed, absent = packing.pack_dataset(drawn.root, str(tmp_path / "packed"))
    assert absent == 0
    shards = sorted((tmp_path / "packed" / "shards").iterdir())
    assert len(shards) == 3  # 120 images
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [
        "catalog.parquet",
        "sample_submission.csv",
        "shards",
    ]
    again = catalog.read_catalog(str(tmp_path / "packed"))
    assert again.fingerprint == packed.fingerprint == drawn.fingerprint
    for ours, theirs in zip(again.table["uri"].to_pylist(), drawn.table["uri"].to_pylist(), strict=True):
        assert storage.read_bytes(ours) == Path(theirs).read_bytes()
    # Anybody can read it: the columns say what they are.
    table = pq.read_table(shards[0])
    assert table.column_names == ["key", "id", "split", "label", "size", "bytes"]
    assert table["size"][5].as_py() == len(table["bytes"][5].as_py())
    # Moved as a whole, it is read where it is.
    shutil.move(tmp_path / "packed", tmp_path / "moved")
    moved = catalog.read_catalog(str(tmp_path / "moved"))
    assert storage.read_bytes(moved.table["uri"][100].as_py()) == Path(drawn.table["uri"][100].as_py()).read_bytes()


def test_rows_that_a_shard_does_not_have_are_unreadable_images(tmp_path: Path) -> None:
    shard = str(tmp_path / "a.parquet")
    tables.write_table(shard, pa.table({"bytes": [1, 2]}))
    for row in (0, 5, 200, 10**9 * storage.PACKED_GROUP, 10**17):
        assert str(images.fetch(f"{shard}#{row}")).startswith("could not be read: a.parquet is damaged: ")
    assert str(images.fetch(f"{shard}#{'9' * 5000}")).startswith("could not be read: ")


def test_packing_again_is_harmless_and_other_folders_are_left_alone(drawn: Catalog, tmp_path: Path, catdog) -> None:
    dest = tmp_path / "packed"
    done = catdog("data", "pack", drawn.root, dest)
    assert done.code == 0, done.err
    before = {path: path.stat().st_mtime_ns for path in dest.rglob("*.parquet")}
    assert catdog("data", "pack", drawn.root, dest).code == 0
    assert before == {path: path.stat().st_mtime_ns for path in dest.rglob("*.parquet")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(CatdogError, match="is not empty and holds no data set"):
        packing.pack_dataset(drawn.root, str(tmp_path / "mine"))
    with pytest.raises(UsageError, match="DATA and DEST are the same folder"):
        packing.pack_dataset(drawn.root, drawn.root)


def test_a_lost_image_and_a_damaged_shard_are_unreadable_images(drawn: Catalog, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(drawn.root, root)
    data = catalog.read_catalog(str(root))
    Path(data.table["uri"][3].as_py()).unlink()
    packed, absent = packing.pack_dataset(str(root), str(tmp_path / "packed"))
    assert absent == packing.pack_dataset(str(root), str(tmp_path / "packed"))[1] == 1
    storage._row_group.cache_clear()
    uris = packed.table["uri"].to_pylist()
    assert storage.read_bytes(uris[2])
    with pytest.raises(OSError, match="was not there when the data set was packed"):
        storage.read_bytes(uris[3])
    shard = next((tmp_path / "packed" / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    storage._row_group.cache_clear()
    with pytest.raises(OSError, match="images-00000.parquet is damaged"):
        storage.read_bytes(uris[2])
