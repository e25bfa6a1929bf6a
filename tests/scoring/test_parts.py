"""Parts that are damaged, or not parts at all, are made again; none is an error."""

from __future__ import annotations

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
    made = Part("test", 0, rows, str(tmp_path / "part.parquet"))
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
