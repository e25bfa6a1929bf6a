"""One file of each kind that is hard to read ends with a status and a reason; tests/stress/ has all of them."""

from __future__ import annotations

from pathlib import Path

from bad_images import decode_each, find_faults, one_of_each_kind, write


def test_one_file_of_each_kind_ends_with_a_reason(tmp_path: Path) -> None:
    files = one_of_each_kind()
    assert len(files) > 90
    assert find_faults(files, decode_each([write(bad, tmp_path) for bad in files])) == []
