"""What Kaggle would refuse is refused here, with the row and the reason."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catdog import submission
from catdog.catalog import Catalog
from catdog.errors import CatdogError


def good(count: int = 24) -> list[str]:
    return ["id,label", *(f"{n},0.5" for n in range(1, count + 1))]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "row 1: columns none"),
        (["id", *good()[1:]], "row 1: columns id .missing label., expected id,label"),
        (["id,label,x", *good()[1:]], "row 1: columns id,label,x .extra x."),
        (["label,id", *good()[1:]], "in another order"),
        ([*good(), "5,0.5"], "row 26: id 5 is there a second time .first in row 6."),
        ([*good(), "99,0.5"], "row 26: id '99' is not an id of the test split"),
        (good()[:-2], "has 22 rows, expected 24: 2 ids are missing, e.g. 23"),
        ([*good()[:4], "4,nan", *good()[5:]], "row 5: label 'nan' of id 4 is not a number"),
        ([*good()[:4], "4,", *good()[5:]], "row 5: label '' of id 4 is not a number"),
        ([*good()[:4], "4,1.2", *good()[5:]], "row 5: label 1.2 of id 4 is outside"),
        ([*good()[:4], "4,-0.1", *good()[5:]], "row 5: label -0.1 of id 4 is outside"),
        ([*good()[:4], "4,0.5,1", *good()[5:]], "row 5: 3 fields, expected 2"),
        ([*good()[:4], "", *good()[5:]], "row 5: 0 fields, expected 2"),
    ],
)
def test_what_check_refuses(lines: list[str], message: str, tmp_path: Path, drawn: Catalog) -> None:
    path = tmp_path / "results.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CatdogError, match=message):
        submission.check(str(path), drawn)


def test_check_accepts_what_write_writes(tmp_path: Path, drawn: Catalog) -> None:
    ids = [str(n) for n in range(24, 0, -1)]
    path = str(tmp_path / "results.csv")
    submission.write(path, pa.chunked_array([ids]), np.array([1e-6, 1 - 1e-6, *([1 / 3] * 22)]))
    assert submission.check(path, drawn) == 24
    lines = Path(path).read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["id", *map(str, range(1, 25))]
    assert lines[23:] == ["23,0.999999", "24,1e-06"]
    assert all(0 < float(line.split(",")[1]) < 1 for line in lines[1:])


def test_the_command_checks_before_it_sends(tmp_path: Path, drawn: Catalog, catdog, monkeypatch) -> None:
    path = tmp_path / "results.csv"
    path.write_text("\n".join(good()) + "\n")
    assert catdog("submission", "check", path, "--data", drawn.root).code == 0
    assert catdog("submission", "check", tmp_path / "none.csv", "--data", drawn.root).code == 2
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", None)
    without = catdog("submit", path, "-m", "first", "--data", drawn.root)
    assert without.code == 1
    assert "the kaggle client is not installed" in without.err
    assert str(path) in without.err
    path.write_text("\n".join(good()[:-1]) + "\n")
    assert "1 ids are missing" in catdog("submit", path, "-m", "first", "--data", drawn.root).err
    assert "--data DIR" in catdog("submit", path, "-m", "first").err


@pytest.mark.parametrize("failure", ["credentials", "refused", None])
def test_kaggles_client_is_the_one_that_sends(failure: str | None, tmp_path: Path, drawn: Catalog, catdog, monkeypatch):
    sent = []

    class KaggleApi:
        def authenticate(self) -> None:
            if failure == "credentials":
                raise OSError("Could not find kaggle.json")

        def competition_submit(self, *arguments: str) -> None:
            if failure == "refused":
                raise RuntimeError("403 - Forbidden")
            sent.append(arguments)

    module = type(sys)("kaggle.api.kaggle_api_extended")
    module.KaggleApi = KaggleApi
    monkeypatch.setitem(sys.modules, "kaggle", type(sys)("kaggle"))
    monkeypatch.setitem(sys.modules, "kaggle.api", type(sys)("kaggle.api"))
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", module)
    path = tmp_path / "results.csv"
    path.write_text("\n".join(good()) + "\n")
    done = catdog("submit", path, "-m", "first", "--data", drawn.root, "--competition", "mine")
    if failure is None:
        assert done.code == 0
        assert sent == [(str(path), "first", "mine")]
    else:
        assert done.code == 1
        assert {"credentials": "no Kaggle credentials", "refused": "403 - Forbidden"}[failure] in done.err
        assert str(path) in done.err
