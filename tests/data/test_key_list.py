"""Lists of keys: every name that a file may have can be written down, by programs and by hand."""

from __future__ import annotations

import csv
import io

import pyarrow as pa
import pytest

from catdog.data import catalog, key_list
from catdog.data.catalog import Catalog
from catdog.errors import UsageError
from catdog.experiments import audit
from catdog.experiments.audit import Finding
from catdog.training import corrections

KEYS = (
    "train/plain.jpg", "train/a, b.jpg", 'train/say "hi".jpg', "train/two\nlines.jpg", "train/old\rmac.jpg",
    '"quoted".jpg', " space ", "train/\u2028.jpg", "train/\x0b.jpg", "# no comment", "é,\n\"",
    "=1+1.jpg", "+.jpg", "-rf.jpg", "@x.jpg", "\tx.jpg", "\rx.jpg", "'=x.jpg", "''-x.jpg", "'plain'.jpg", '="x".jpg',
)  # fmt: skip


@pytest.fixture
def data(tmp_path) -> Catalog:
    rows = [
        {"key": key, "id": key, "uri": f"/{at}.jpg", "label": at % 2, "split": "train"}
        for at, key in enumerate([*KEYS, "other,1.jpg", '"'])
    ]
    return Catalog(pa.Table.from_pylist(rows, schema=catalog.SCHEMA), ("cat", "dog"), str(tmp_path), {})


def left_out(data: Catalog, text: str, tmp_path) -> set[str]:
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode())
    return corrections.read_corrections(str(path), data).left_out


def test_an_audits_csv_round_trips(data: Catalog, tmp_path) -> None:
    audit.write_findings([Finding(key, "train", "cat", "label", 0.1) for key in KEYS], str(tmp_path / "audit.csv"))
    text = (tmp_path / "audit.csv").read_bytes().decode()
    assert left_out(data, text, tmp_path) == set(KEYS)
    # Kept in part, and saved with a byte-order mark and other line ends, as a spreadsheet does.
    rows = list(csv.reader(io.StringIO(text, newline="")))
    kept = io.StringIO()
    csv.writer(kept, quoting=csv.QUOTE_ALL).writerows([rows[0], *rows[3:6]])
    assert left_out(data, "\ufeff" + kept.getvalue(), tmp_path) == set(KEYS[2:5])


def test_a_review_round_trips_and_a_list_of_ones_own_is_taken_as_it_is(data: Catalog, tmp_path) -> None:
    actions = {key: key_list.ACTIONS[at % 3] for at, key in enumerate(KEYS)}
    text = key_list.format_actions(actions)
    assert key_list.parse_actions(text) == actions
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r"]
    own = io.StringIO()
    csv.writer(own).writerows([["key"], ["-rf.jpg"], ["''-x.jpg"], ["'plain'.jpg"]])
    assert left_out(data, own.getvalue(), tmp_path) == {"-rf.jpg", "''-x.jpg", "'plain'.jpg"}


def test_a_key_a_line_is_the_key_quoted_or_not(data: Catalog, tmp_path) -> None:
    by_program = io.StringIO()
    csv.writer(by_program).writerows([[key] for key in KEYS])
    assert left_out(data, by_program.getvalue(), tmp_path) == set(KEYS)
    one_line = [key for key in KEYS if "\n" not in key]
    for end in ("\n", "\r\n"):
        assert left_out(data, end.join([*one_line, "", '"', '"other,1.jpg"']), tmp_path) == {
            *one_line, '"', "other,1.jpg"
        }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("split,key\ntrain\n", r"line 2 has no column key: \['train'\]"),
        ('key\n"train/plain.jpg\n', "line 2: unexpected end of data"),
        ('"train/plain.jpg"x\n', "1 unknown keys such as '\"train/plain.jpg\"x'; .* one a line, or a CSV"),
        ("train/plain.jpg,cat\n", "1 unknown keys such as 'train/plain.jpg,cat'"),
    ],
)
def test_a_list_that_cannot_be_is_refused(data: Catalog, tmp_path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        left_out(data, text, tmp_path)
