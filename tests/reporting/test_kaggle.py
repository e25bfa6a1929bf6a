"""A submission is called sent when Kaggle has it, and only then; a stand-in speaks as Kaggle's client does."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from catdog.data.catalog import Catalog


def write_good(path: Path) -> None:
    """Writes a submission that the check accepts."""
    path.write_text("\n".join(["id,label", *(f"{n},0.5" for n in range(1, 25))]) + "\n")


class Answer:
    """An answer of Kaggle's client: ApiCreateSubmissionResponse of 2.2.5 (message and ref), or SubmitResult of 1.6."""

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
    write_good(path)
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
    write_good(path)
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
