"""A submission is sent once, called sent when Kaggle has it, and its score is shown beside the expected one."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stand_in import StandIn, as_kaggle

from catdog.data.catalog import Catalog
from catdog.kaggle import submission

PENDING, DONE = {"status": "PENDING"}, {"status": "COMPLETE", "publicScore": "0.0411", "privateScore": "0.0702"}
REPORT = {"n": 24, "chosen_on": "these images", "log_loss": 0.05, "log_loss_low": 0.04, "log_loss_high": 0.06}


@pytest.fixture
def path(tmp_path: Path, drawn: Catalog) -> Path:
    """A submission that the check accepts, and a report."""
    path = tmp_path / "results.csv"
    path.write_text("\n".join(["id,label", *(f"{n},0.5" for n in range(1, 25))]) + "\n")
    report = json.dumps(REPORT)
    path.with_name("results.report.json").write_text(report)
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in {"report.json": report}.items()}
    digests["csv"] = hashlib.sha256(path.read_bytes()).hexdigest()
    meta = {"sha256": digests, "data": drawn.root, "catalog_fingerprint": drawn.fingerprint}
    path.with_name("results.meta.json").write_text(json.dumps(meta))
    return path


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(submission, "_FIRST_PAUSE", 0.05)
    with as_kaggle(monkeypatch) as stand_in:
        yield stand_in


@pytest.fixture
def submit(path: Path, drawn: Catalog, catdog) -> Callable:
    def run(*options: object):
        return catdog("submit", path, "-m", "first", "--data", drawn.root, "--competition", "mine", *options)

    return run


def test_the_real_client_sends_waits_and_shows_the_scores(kaggle: StandIn, path: Path, submit) -> None:
    kaggle.scores = [PENDING, PENDING, DONE]
    done = submit("--yes")
    assert done.code == 0, done.err
    assert kaggle.uploads == [path.read_bytes()]
    assert kaggle.calls("CreateSubmission") == [
        {"competitionName": "mine", "blobFileTokens": "blob", "submissionDescription": "first"}
    ]
    assert len(kaggle.calls("ListSubmissions")) == 3
    assert (
        "Expected score: log loss 0.0500 (95 % interval 0.0400 to 0.0600), that of 24 validation images; too "
        in done.out
    )
    assert done.out.splitlines()[-4:] == [
        f"Sent {path}: Successfully submitted to mine (submission 4711)",
        "expected  0.05000  (0.04000 to 0.06000)",
        "public    0.04110  in the interval",
        "private   0.07020  outside of the interval",
    ]
    # Again: Kaggle has it, so nothing is sent, asked or waited for.
    before = len(kaggle.requests)
    again = submit()
    assert again.code == 0, again.err
    assert f"Sent before, so not sent again: {path} (submission 4711)" in again.out
    assert "public    0.04110" in again.out
    assert len(kaggle.requests) == before
    # Another file under the same name is another submission.
    path.write_text(path.read_text().replace("1,0.5", "1,0.6"))
    path.with_name("results.meta.json").unlink()
    kaggle.scores = [DONE | {"privateScore": ""}]
    other = submit("--yes")
    assert other.code == 0, other.err
    assert len(kaggle.uploads) == 2
    assert "Expected score: not known" in other.out
    assert other.out.splitlines()[-2:] == ["public    0.04110", "private   not shown by Kaggle"]


def test_it_asks_before_sending(kaggle: StandIn, submit, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = submit()
    assert refused.code == 2
    assert "submit received no --yes, and there is no terminal to ask in" in refused.err
    assert "Expected score" in refused.out
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, sent in (("n", 0), ("y", 1)):
        monkeypatch.setattr("typer.confirm", lambda text, answer=answer: print(text) or answer == "y")
        kaggle.scores = [DONE]
        shown = submit()
        assert shown.code == 0, shown.err
        assert "to mine on Kaggle?" in shown.out
        assert ("Not sent" in shown.out) == (not sent)
        assert len(kaggle.uploads) == sent


def test_a_score_that_is_late_is_learnt_by_the_same_command(kaggle: StandIn, submit) -> None:
    kaggle.faults["ListSubmissions"] = (503, "busy")
    late = submit("--yes", "--timeout", 0.2)
    assert late.code == 0, late.err
    assert "No score yet (could not ask Kaggle for its submissions (busy)" in late.out
    kaggle.faults.clear()
    late = submit("--timeout", 0)
    assert "No score yet (Kaggle has not scored it yet): run the same command again" in late.out
    kaggle.scores = [DONE]
    assert "private   0.07020" in submit().out
    assert len(kaggle.uploads) == 1


def test_a_submission_that_kaggle_cannot_score(kaggle: StandIn, submit) -> None:
    kaggle.scores = [{"status": "ERROR", "errorDescription": "Evaluation Exception: Id 7 is missing"}]
    failed = submit("--yes")
    assert failed.code == 1
    assert "Kaggle could not score it (Evaluation Exception: Id 7 is missing); see https://www.kaggle.com" in failed.err


@pytest.mark.parametrize("known", [True, False])
def test_after_a_crash_while_sending_it_is_not_sent_twice(known: bool, kaggle: StandIn, submit) -> None:
    """Kaggle has it, or has not, when the next command looks."""
    kaggle.faults["CreateSubmission"] = (500, "crash")
    assert submit("--yes").code == 1
    kaggle.faults.clear()
    others = [{"ref": 1, "fileName": "results.csv", "description": "other", "status": "COMPLETE"}]
    own = {"ref": 2, "fileName": "results.csv", "description": "first", "date": "2999-01-01T00:00:00.000Z"}
    old = own | {"ref": 3, "date": "2001-01-01T00:00:00.000Z", "status": "COMPLETE", "publicScore": "9"}
    kaggle.submissions = [*([own | PENDING] if known else []), *others, old]
    kaggle.scores = [PENDING, DONE] if known else [{}, DONE]
    done = submit("--yes")
    assert done.code == 0, done.err
    assert ("not sent again" in done.out) == known
    assert len(kaggle.uploads) == (1 if known else 2)
    assert "public    0.04110" in done.out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("StartSubmissionUpload", 403, "Permission denied"), "join the competition and accept its rules on https"),
        (("StartSubmissionUpload", 401, "Unauthenticated"), "Kaggle does not know these credentials"),
        (("CreateSubmission", 400, "You have reached your limit"), "You have reached your limit"),
        (("upload", 400, ""), "Could not submit to competition"),
    ],
)
def test_refusals_are_one_line_that_says_what_to_do(
    fault: tuple[str, int, str], message: str, kaggle: StandIn, path: Path, submit
) -> None:
    kaggle.faults[fault[0]] = fault[1:]
    refused = submit("--yes")
    assert refused.code == 1
    assert refused.err.startswith("catdog: Kaggle did not take the submission (")
    assert message in refused.err
    assert f"the file is {path}, and https://www.kaggle.com/c/mine/submit takes it by hand" in refused.err
    assert refused.err.count("\n") == 1
    assert "Sent" not in refused.out


# --- clients that answer otherwise -------------------------------------------------------------------------------


class Answer:
    """An answer of Kaggle's client: ApiCreateSubmissionResponse of 2.2 (message and ref), or SubmitResult of 1.6."""

    def __init__(self, message: str = "", **fields: int) -> None:
        self.message = message
        self.__dict__.update(fields)


class NoNetworkError(OSError):
    """As `requests` raises: with the request."""

    request = None


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        # Of 1.5 and 1.6 a SubmitResult, which has no ref.
        (Answer("Successfully submitted to Mine"), "Sent {}: Successfully submitted to Mine"),
        # After a failed upload 1.5 to 1.7 return the text itself, and `upload_complete` prints the reason.
        ("Could not submit to competition", "not take .*.Could not submit to competition: quota is gone."),
        # A response that no one filled, or a text that is not known to mean success.
        (Answer(ref=0), "did not say .*it answered 'nothing'.*/c/mine/submissions before you send it again"),
        (Answer("Submission was queued", ref=0), "did not say .*it answered 'Submission was queued'"),
        (None, "did not say .*it answered 'nothing'"),
        (RuntimeError("403 - Forbidden\nmore"), "not take the submission .403 - Forbidden.;"),
    ],
)
def test_sent_is_said_of_what_kaggle_has(answer: object, shown: str, path: Path, submit, client) -> None:
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
    done = submit("--yes", "--timeout", 0)
    assert sent == [(str(path), "first", "mine")]
    if shown.startswith("Sent"):
        assert done.code == 0, done.err
        assert shown.format(path) + "\n" in done.out
    else:
        assert done.code == 1
        assert re.search(shown, done.err), done.err
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
    error: BaseException, shown: str, path: Path, submit, client
) -> None:
    client(lambda *_, **__: pytest.fail("sent without credentials"), error)
    done = submit("--yes")
    assert done.code == 1
    assert re.search(shown, done.err), done.err
    assert str(path) in done.err


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an object in the place of Kaggle's client."""

    def install(submit: Callable[..., object], refusal: BaseException | None = None) -> None:
        class KaggleApi:
            competition_submit = staticmethod(submit)
            competition_submissions = staticmethod(lambda _competition: [])

            def authenticate(self) -> None:
                if refusal is not None:
                    raise refusal

        for name in ("kaggle", "kaggle.api", "kaggle.api.kaggle_api_extended"):
            monkeypatch.setitem(sys.modules, name, type(sys)(name))
        sys.modules["kaggle.api.kaggle_api_extended"].KaggleApi = KaggleApi

    return install
