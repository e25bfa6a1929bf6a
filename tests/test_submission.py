"""What Kaggle would refuse is refused here, with the row and the reason."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
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


class Answer:
    """What Kaggle's client returns: ApiCreateSubmissionResponse of 2.2.5 (message and ref), or SubmitResult of 1.6."""

    def __init__(self, message: str = "", **fields: int) -> None:
        self.message = message
        self.__dict__.update(fields)


class NoNetworkError(OSError):
    """As `requests` raises: with the request."""

    request = None


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        # KaggleApi.competition_submit of 2.2.5 returns the response of create_submission, with the submission's ref.
        (Answer("Successfully submitted to Mine", ref=123), "Sent {}: Successfully submitted to Mine (submission 123)"),
        # Of 1.5 and 1.6 a SubmitResult, which has no ref.
        (Answer("Successfully submitted to Mine"), "Sent {}: Successfully submitted to Mine"),
        # After a failed upload 2.2.5 returns a response with COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE ...
        (
            Answer("Could not submit to competition", ref=0),
            "not take .*Could not submit to competition: quota is gone.",
        ),
        # ... and 1.5 to 1.7 the text itself. `upload_complete` prints the reason of both.
        ("Could not submit to competition", "not take .*.Could not submit to competition: quota is gone."),
        # A response that no one filled, or a text that is not known to mean success.
        (Answer(ref=0), "did not say .*it answered 'nothing'.*/c/mine/submissions before you send it again"),
        (Answer("Submission was queued", ref=0), "did not say .*it answered 'Submission was queued'"),
        (None, "did not say .*it answered 'nothing'"),
        # KaggleHttpClient._prepare_response raises requests' HTTPError with Kaggle's message.
        (RuntimeError("403 - Forbidden\nmore"), "not take the submission .403 - Forbidden.;"),
    ],
)
def test_sent_is_said_of_what_kaggle_has(answer: object, shown: str, tmp_path: Path, drawn: Catalog, catdog, client):
    path = tmp_path / "results.csv"
    path.write_text("\n".join(good()) + "\n")
    sent = []

    def competition_submit(*arguments: str, quiet: bool) -> object:
        assert quiet
        sent.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        if "Could not" in str(getattr(answer, "message", answer)):
            print("quota is gone")
        return answer

    client(competition_submit)
    done = catdog("submit", path, "-m", "first", "--data", drawn.root, "--competition", "mine")
    assert sent == [(str(path), "first", "mine")]
    if shown.startswith("Sent"):
        assert done.code == 0, done.err
        assert done.out.splitlines()[-1] == shown.format(path)
    else:
        assert done.code == 1
        assert re.search(shown, done.err), done.err
        assert f"the file is {path}, and https://www.kaggle.com/c/mine/submit takes it by hand" in done.err
        assert "Sent" not in done.out
        assert "quota" not in done.out


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (SystemExit(1), "no Kaggle credentials: run"),
        (OSError("Could not find kaggle.json"), "no Kaggle credentials .Could not find kaggle.json.: run"),
        (NoNetworkError("Failed to resolve"), "could not ask Kaggle about the credentials .Failed to resolve."),
    ],
)
def test_credentials_that_are_missing_and_those_nobody_could_ask_about(
    error: BaseException, shown: str, tmp_path: Path, drawn: Catalog, catdog, client
) -> None:
    path = tmp_path / "results.csv"
    path.write_text("\n".join(good()) + "\n")
    client(lambda *_, **__: pytest.fail("sent without credentials"), error)
    done = catdog("submit", path, "-m", "first", "--data", drawn.root)
    assert done.code == 1
    assert re.search(shown, done.err), done.err
    assert str(path) in done.err


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a stand-in for Kaggle's client in its place."""

    def install(submit: Callable[..., object], refusal: BaseException | None = None) -> None:
        class KaggleApi:
            competition_submit = staticmethod(submit)

            def authenticate(self) -> None:
                if refusal is not None:
                    raise refusal

        for name in ("kaggle", "kaggle.api", "kaggle.api.kaggle_api_extended"):
            monkeypatch.setitem(sys.modules, name, type(sys)(name))
        sys.modules["kaggle.api.kaggle_api_extended"].KaggleApi = KaggleApi

    return install
