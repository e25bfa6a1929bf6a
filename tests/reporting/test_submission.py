"""Submissions that Kaggle would refuse are refused here, with the row and the reason."""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn import metrics as sklearn_metrics

from catdog.data import catalog
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError
from catdog.reporting import submission


def good(count: int = 24) -> list[str]:
    return ["id,label", *(f"{n},0.5" for n in range(1, count + 1))]


def with_row(number: int, line: str) -> list[str]:
    """A good submission with another row of that number; row 1 is the header."""
    return [*good()[: number - 1], line, *good()[number:]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "csv is empty, expected the header id,label"),
        (["", *good()], "row 1: a blank line; remove empty lines"),
        (["id", *good()[1:]], "row 1: columns id .missing label., expected id,label"),
        (["id,label,x", *good()[1:]], "row 1: columns id,label,x .extra x."),
        (["label,id", *good()[1:]], "in another order"),
        (["Id, Label", *good()[1:]], "row 1: columns Id, Label, expected id,label in small letters"),
        (good()[1:], "row 1: 1,0.5 is data, expected the header id,label above it"),
        ([f",{line}" for line in good()], "row 1: an unnamed first column, .*pandas.*: use to_csv.index=False."),
        ([line.replace(",", ";") for line in good()], "row 1: fields are separated by semicolons, expected commas"),
        ([line.replace(",", "\t") for line in good()], "row 1: fields are separated by tabs, expected commas"),
        ([line.replace(",", " ") for line in good()], "row 1: fields are separated by spaces, expected commas"),
        ([f'"{line}"' for line in good()], 'row 1: "id,label" is quoted as a whole, expected id,label'),
        (with_row(5, "4;0.5"), "row 5: fields are separated by semicolons"),
        ([*good(), "5,0.5"], "row 26: id 5 is there a second time .first in row 6."),
        ([*good(), "99,0.5"], "row 26: id '99' is not an id of the test split, expected one such as 1"),
        ([*good(), "0,0.5"], "row 26: id '0' .* counts from 1: is it an index that counts from 0"),
        (with_row(5, "4.0,0.5"), "row 5: id '4.0' is not written as a whole number, .*, expected 4"),
        (with_row(5, "4.jpg,0.5"), "row 5: id '4.jpg' is the name of a file, expected 4"),
        (with_row(5, "test/4.jpg,0.5"), "row 5: id 'test/4.jpg' is the name of a file, expected 4"),
        (with_row(5, "0004,0.5"), "row 5: id '0004' has leading zeros, expected 4"),
        (with_row(5, " 4,0.5"), "row 5: id ' 4' has spaces around it, expected 4"),
        (with_row(5, "'4',0.5"), "row 5: id \"'4'\" has quotes of its own, expected 4"),
        (with_row(5, ",0.5"), "row 5: no id before the comma"),
        (with_row(5, ","), "row 5: a blank line"),
        (good()[:-2], "has 22 rows, expected 24: it lacks 2 ids of sample_submission.csv, e.g. 23$"),
        (with_row(5, "4,nan"), "row 5: id 4: label 'nan' is not a number, expected a probability"),
        (with_row(5, "4,"), "row 5: id 4: label '' is not a number"),
        (with_row(5, "4,1_0"), "row 5: id 4: label '1_0' is not a number"),
        (with_row(5, "4,1.2"), "row 5: id 4: label 1.2 is outside .*, not a percentage or a logit"),
        (with_row(5, "4,-0.1"), "row 5: id 4: label -0.1 is outside"),
        (with_row(5, "4,Dog"), "row 5: id 4: label 'Dog' is an answer, expected the probability of dog"),
        (with_row(5, "4,True"), "row 5: id 4: label 'True' is an answer"),
        (with_row(5, "4,93.5 %"), "row 5: id 4: label '93.5 %' is a percentage, expected 0.935"),
        (with_row(5, '4,"0,93"'), "row 5: id 4: label '0,93' has a decimal comma, expected 0.93"),
        (with_row(5, "4,0,93"), "row 5: 4,0,93 has a decimal comma, expected 4,0.93"),
        (with_row(5, "4,[[0.93]]"), "row 5: id 4: label '..0.93..' is a list, expected 0.93"),
        (with_row(5, "4,0.5,1"), "row 5: 3 fields, expected 2"),
        (with_row(5, ""), "row 5: a blank line"),
        ([*good(), ""], "row 26: a blank line; remove empty lines"),
        ([*good(), '"25,0.5'], "is not a CSV file in UTF-8 .after row 25: unexpected end of data."),
    ],
)
def test_what_check_refuses(lines: list[str], message: str, tmp_path: Path, drawn: Catalog) -> None:
    path = tmp_path / "results.csv"
    path.write_text("\n".join(lines) + "\n" * bool(lines))
    with pytest.raises(CatdogError, match=message) as refused:
        submission.check_submission(str(path), drawn)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n".join(good()).encode("utf-16"), "is UTF-16, .* save it as CSV UTF-8"),
        ("\n".join(good()).encode("utf-16-le"), "is UTF-16"),
        ("\r".join(good()).encode(), "ends its lines with CR alone"),
        (b"PK\3\4", "is a zip or an Excel workbook"),
        (b"id,label\n1,0.5\n2,caf\xe9\n", "is not a CSV file in UTF-8"),
        (b"\xef\xbb\xbf" + "\n".join(good()).encode(), None),
        ("\r\n".join(good()).encode(), None),
        ("\n".join(f'"{line.replace(",", chr(34) + "," + chr(34))}"' for line in good()).encode(), None),
    ],
)
def test_encodings_and_line_ends(content: bytes, message: str | None, tmp_path: Path, drawn: Catalog) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    if message is None:
        checked = submission.check_submission(str(path), drawn)
        assert checked.rows == 24
        assert any("byte order mark" in line for line in checked.warnings) == content.startswith(b"\xef\xbb\xbf")
    else:
        with pytest.raises(CatdogError, match=message):
            submission.check_submission(str(path), drawn)


def test_a_thousands_separator_is_told(tmp_path: Path, drawn: Catalog) -> None:
    many = numbered(drawn, range(1, 1101), str(tmp_path))
    path = tmp_path / "results.csv"
    for row, message in [("1,100,0.5", "expected 1100,0.5"), ('"1,100",0.5', "id '1,100' has .*, expected 1100")]:
        path.write_text("\n".join([*good(1099), row]))
        with pytest.raises(CatdogError, match=rf"row 1101: .*thousands separator.*{message}|row 1101: {message}"):
            submission.check_submission(str(path), many)


def test_check_accepts_what_write_writes(tmp_path: Path, drawn: Catalog) -> None:
    ids = [str(n) for n in range(24, 0, -1)]
    path = str(tmp_path / "results.csv")
    # As sure as a float can be, and still no 0 or 1 in the file.
    sure = np.array([1e-6, 1 - 1e-6, 1e-14, 1 - 1e-14, *([1 / 3] * 20)])
    digest = submission.write_submission(path, pa.chunked_array([ids]), sure)
    assert digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    checked = submission.check_submission(path, drawn)
    assert checked.rows == 24
    assert len(checked.warnings) == 1
    assert "nothing says what made results.csv: results.meta.json is not there" in checked.warnings[0]
    lines = Path(path).read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["id", *map(str, range(1, 25))]
    assert lines[21:] == ["21,0.999999999999", "22,1e-12", "23,0.999999", "24,1e-06"]


@pytest.mark.parametrize("name", ["a\rb.jpg", "a\nb.jpg", "a\r\nb.jpg", 'a "b", c.jpg', "\r", "=1+1", " a "])
def test_ids_of_any_characters_are_read_as_they_were_written(tmp_path: Path, drawn: Catalog, name: str) -> None:
    table = drawn.table.filter(pc.equal(drawn.table["split"], "test")).slice(0, 2)
    table = table.set_column(1, catalog.SCHEMA.field("id"), pa.array([name, "other"]))
    path = tmp_path / "s.csv"
    submission.write_submission(str(path), table["id"], np.array([0.25, 0.75]))
    with open(path, newline="") as lines:
        assert list(csv.reader(lines)) == [["id", "label"], [name, "0.25"], ["other", "0.75"]]
    assert path.read_bytes().endswith(b",0.75\n")
    assert submission.check_submission(str(path), Catalog(table, drawn.class_names, str(tmp_path))).rows == 2


def test_hard_zeros_and_ones_are_told_with_their_cost(tmp_path: Path, drawn: Catalog, catdog) -> None:
    path = tmp_path / "results.csv"
    rows = good()
    for number, label in {3: "1", 4: "0.0", 5: "1e-16", 6: "1e-14"}.items():
        rows[number] = f"{number},{label}"
    path.write_text("\n".join(rows))
    checked = catdog("submission", "check", path, "--data", drawn.root)
    assert checked.code == 0
    assert "Warning: 3 labels are 0 or 1, or as good as that (e.g. row 4, id 3)" in checked.err
    # What it is told to cost is what scikit-learn makes of one wrong row, clipped as Kaggle clips.
    loss = sklearn_metrics.log_loss([0, *[1] * 23], np.clip([1.0, *[1.0] * 23], 1e-15, 1 - 1e-15), labels=[0, 1])
    assert f"adds {loss:.2g} to the log loss of 24 rows" in checked.err


def numbered(drawn: Catalog, ids: Iterable[int], root: str, sample: list[str] | None = None) -> Catalog:
    """A data set of no files with these test ids, and perhaps with a sample submission."""
    rows = [{"key": f"test/{n}.jpg", "id": str(n), "uri": "", "label": None, "split": "test"} for n in ids]
    if sample is not None:
        (Path(root) / "sample_submission.csv").write_text("\n".join(sample))
    return Catalog(pa.Table.from_pylist(rows, catalog.SCHEMA), drawn.class_names, root)


def test_gaps_in_numbered_ids_are_told(tmp_path: Path, drawn: Catalog) -> None:
    def warnings(ids: list[int]) -> str:
        path = tmp_path / "mine.csv"
        path.write_text("\n".join(["id,label", *(f"{n},0.5" for n in ids)]))
        return "\n".join(submission.check_submission(str(path), numbered(drawn, ids, str(tmp_path))).warnings)

    assert "1 of the numbers up to 25 is no id of the test split, e.g. 7" in warnings([*range(1, 7), *range(8, 26)])
    assert "2 of the numbers up to 26 are no ids of the test split, e.g. 1" in warnings([*range(3, 27)])
    for whole in ([*range(1, 25)], [*range(24)], [*range(9001, 9025)], [*range(1, 10_000, 400)]):
        assert "no id" not in warnings(whole)


def test_the_sample_submission_says_which_ids_kaggle_expects(tmp_path: Path, drawn: Catalog) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(good()))
    # The test split lacks 25 and 26, and has 1, which Kaggle does not know.
    sample = ["id,label", *(f"{n},0.5" for n in range(2, 27))]
    data = numbered(drawn, range(1, 25), str(tmp_path), sample)
    with pytest.raises(CatdogError) as refused:
        submission.check_submission(str(path), data)
    assert "has 24 rows, expected 25: it lacks 2 ids of sample_submission.csv, e.g. 25, and" in str(refused.value)
    assert "its test split lacks 2 ids of sample_submission.csv, e.g. 25, and has 1 more, e.g. 1" in str(refused.value)
    assert "prepare the data set again" in str(refused.value)
    # With the rows added by hand Kaggle takes it; that the data set lacks them is told.
    path.write_text("\n".join(sample))
    told = "\n".join(submission.check_submission(str(path), data).warnings)
    assert "its test split lacks 2 ids" in told
    # What is no sample submission is told too, and the test split stands for it.
    path.write_text("\n".join(good()))
    told = "\n".join(
        submission.check_submission(str(path), numbered(drawn, range(1, 25), str(tmp_path), ["nothing"])).warnings
    )
    assert "sample_submission.csv is not a sample submission" in told
    told = submission.check_submission(str(path), numbered(drawn, range(1, 25), str(tmp_path), [])).warnings
    assert "sample_submission.csv is not a sample submission (it has no rows)" in "\n".join(told)


def test_line_breaks_in_cells_do_not_break_the_message(tmp_path: Path, drawn: Catalog) -> None:
    for text in ('"id\r\nlabel",x,y\n1,2,3\n', 'id,label\n1,"a\nb",c\n'):
        (tmp_path / "s.csv").write_text(text)
        with pytest.raises(CatdogError) as refused:
            submission.check_submission(str(tmp_path / "s.csv"), drawn)
        assert len(str(refused.value).splitlines()) == 1


def test_the_command_checks_before_it_sends(tmp_path: Path, drawn: Catalog, catdog, monkeypatch) -> None:
    path = tmp_path / "results.csv"
    path.write_text("\n".join(good()) + "\n")
    assert catdog("submission", "check", path, "--data", drawn.root).code == 0
    assert catdog("submission", "check", tmp_path / "none.csv", "--data", drawn.root).code == 2
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", None)
    without = catdog("submit", path, "-m", "first", "--data", drawn.root, "--yes")
    assert without.code == 1
    assert "the kaggle client is not installed" in without.err
    assert str(path) in without.err
    path.write_text("\n".join(good()[:-1]) + "\n")
    assert "it lacks 1 id of" in catdog("submit", path, "-m", "first", "--data", drawn.root).err
    assert "--data DIR" in catdog("submit", path, "-m", "first").err
