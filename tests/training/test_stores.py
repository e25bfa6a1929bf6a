"""Images of a packed data set in a bucket: the pixels of the local files, in any order, with no more groups kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from s3_server import S3Server

from catdog import storage
from catdog.data import images, packing, synthetic
from catdog.errors import CatdogError
from catdog.training.stores import FileStore

SIZE = 32


def store(uris: list[str]) -> FileStore:
    where = np.stack([np.zeros(len(uris), int), np.arange(len(uris))], axis=1)
    return FileStore([pa.array(uris)], where, [], SIZE)


def test_a_packed_set_in_a_bucket(bucket: S3Server, tmp_path: Path) -> None:  # noqa: ARG001
    local = synthetic.synthesize(str(tmp_path / "set"), 300, 0, seed=4).table
    packed = packing.pack_dataset(str(tmp_path / "set"), "s3://bucket/packed")[0].table
    rows = np.random.default_rng(0).permutation(packed.num_rows)
    opened = store(packed["uri"].to_pylist())
    expected = [images.read_image(local["uri"][int(row)].as_py(), SIZE).pixels for row in rows]
    for order in (slice(None), slice(0, 5), slice(0, 0)):
        found = list(opened.images(rows[order]))
        assert len(found) == len(rows[order])
        assert all(np.array_equal(one, other) for one, other in zip(found, expected[order], strict=True))


def test_a_file_that_has_become_none_is_told(tmp_path: Path) -> None:
    uris = synthetic.synthesize(str(tmp_path / "set"), 8, 0, seed=4).table["uri"].to_pylist()
    storage.write_text(uris[2], "no image any more")
    opened = store(uris)
    assert len(list(opened.images(np.array([0, 1])))) == 2
    with pytest.raises(CatdogError, match=f"{uris[2]} could be read when the run began, and cannot any more: "):
        opened.take(np.array([1, 2]))
