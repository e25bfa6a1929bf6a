"""Parts: their number stays bounded; those that are damaged, or not parts at all, are made again."""

from __future__ import annotations

import heapq
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catdog import tables
from catdog.data.catalog import Catalog
from catdog.inference.predictor import Predictions
from catdog.scoring import parts
from catdog.scoring.parts import Part


@pytest.fixture
def part(drawn: Catalog, tmp_path: Path) -> Part:
    """A part of four test images, which is there."""
    rows = drawn.split("test").slice(0, 4)
    made = Part("test", 0, 4, rows, str(tmp_path / "part.parquet"))
    half = np.full(4, 0.5, np.float32)
    parts.write_part(made.uri, rows, Predictions(half, half.astype(float), ["ok"] * 4, ["none here"] * 4))
    return made


def test_a_part_is_complete(part: Part) -> None:
    assert parts.is_complete(part)
    assert parts.read_part(part.uri)["key"].to_pylist() == part.rows["key"].to_pylist()


def test_a_part_with_any_byte_changed_is_no_error(part: Part) -> None:
    """Found by fuzzing: text and names that are no UTF-8, and types that pyarrow does not know."""
    whole = Path(part.uri).read_bytes()
    random = np.random.default_rng(0)
    for at in [*range(len(whole) - 700, len(whole)), *random.integers(0, len(whole), 100)]:
        changed = bytearray(whole)
        changed[at] ^= 1 << random.integers(0, 8)
        Path(part.uri).write_bytes(changed)
        parts.is_complete(part)


@pytest.mark.parametrize("column", ["logit", "probability", "detail", "label"])
@pytest.mark.parametrize("values", [[{"a": 1}] * 4, ["x"] * 4, [b"\xff"] * 4, [None] * 4], ids=str)
def test_a_part_of_other_types_is_made_again(part: Part, column: str, values: list) -> None:
    table = parts.read_part(part.uri)
    at = table.column_names.index(column)
    tables.write_table(part.uri, table.set_column(at, column, pa.array(values)))
    expected = column in ("label", "logit") and values[0] is None  # which may be unknown
    assert parts.is_complete(part) == (expected or (column == "detail" and values == ["x"] * 4))


@pytest.mark.parametrize("count", [1, 511, 512, 2_500, 12_500, 1_000_000, 1_048_575])
def test_parts_of_up_to_a_million_images_are_cut_as_ever(count: int) -> None:
    """What an older version scored is gone on with."""
    tail = max(0, count // 512 - 4) * 512
    starts = [*range(0, tail, 512), *range(tail, count, 128)]
    expected = [*zip(starts, [*starts[1:], count], strict=True)]
    assert [*parts.ranges(count, 64, 8)] == expected


@pytest.mark.parametrize(("count", "most"), [(2_000_000, 4_100), (10_000_000, 6_000), (100_000_000, 28_000)])
def test_more_images_make_larger_parts(count: int, most: int) -> None:
    cut = np.array([*parts.ranges(count, 64, parts.most_growth("onnx", [192]))])
    assert cut[0, 0] == 0
    assert cut[-1, 1] == count
    assert (cut[1:, 0] == cut[:-1, 1]).all()
    sizes = cut[:, 1] - cut[:, 0]
    assert len(sizes) < most
    assert sizes.max() <= 4096
    assert (np.diff(sizes) <= 0).all()  # so that all actors end at about the same time


@pytest.mark.parametrize(("size", "growth"), [(64, 8), (192, 4), (224, 2), (384, 1), (1024, 1)])
def test_the_pixels_of_a_part_for_a_gpu_stay_below_256_mib(size: int, growth: int) -> None:
    assert parts.most_growth("tensorflow", [size]) == growth
    assert parts.most_growth("onnx", [size]) == 8


@pytest.mark.parametrize("actors", [2, 160, 1600])
def test_larger_parts_keep_actors_as_busy_as_small_ones(actors: int) -> None:
    def seconds(growth: int) -> int:
        """Until the last of equally fast actors is done, each of which takes the next part when it has done one."""
        done = [0] * actors
        for start, stop in parts.ranges(10_000_000, 64, growth):
            heapq.heappush(done, heapq.heappop(done) + stop - start)
        return max(done)

    assert seconds(8) <= 1.005 * seconds(1)
