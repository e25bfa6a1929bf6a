"""A submission sent once, Kaggle's score awaited, and the score that the validation split lets expect.

What was sent is written to `results.kaggle.json` beside the CSV, with the SHA-256 of the CSV: the same file is not sent
twice, and a later command learns its score.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import io
import json
import time
from collections.abc import Callable
from typing import Any, Literal

from catdog import lease, storage
from catdog.errors import CatdogError, UsageError, first_line
from catdog.kaggle.client import COMPETITION, explain, open_client, site
from catdog.reporting import result_set

_ENDING = "kaggle.json"
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0
# By how much the clocks of Kaggle and this machine may differ, in seconds.
_CLOCKS = 300


@dataclasses.dataclass(frozen=True)
class Receipt:
    """What is known of a sent submission.

    Attributes:
        competition: its name in Kaggle's URL.
        sha256: of the CSV, in hex.
        message: description that Kaggle shows beside it.
        state: "sending" until Kaggle has said that it has it; "sent" until it has a score; then "scored" or "failed".
        started: when sending began, in seconds since 1970.
        ref: Kaggle's number of it, or None if Kaggle did not say.
        answer: what Kaggle said when it took it, or why it gave no score.
        public: score on the public part of the test split, or None.
        private: score on the rest, or None while Kaggle does not show it.
        again: the file was sent by an earlier command, not by this one; not stored.
    """

    competition: str
    sha256: str
    message: str
    state: Literal["sending", "sent", "scored", "failed"]
    started: float
    ref: int | None = None
    answer: str = ""
    public: float | None = None
    private: float | None = None
    again: bool = False


@dataclasses.dataclass(frozen=True)
class Expected:
    """The log loss to expect on Kaggle: that of the validation split.

    Attributes:
        log_loss: in nats.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        n: number of validation images.
        chosen_on: which images chose the epoch, in words; if these, the log loss is too optimistic.
    """

    log_loss: float
    low: float
    high: float
    n: int
    chosen_on: str = "nothing"


def expected_score(path: str) -> Expected | None:
    """Reads the validation log loss from the report beside a submission; None without one that belongs to it."""
    out = storage.absolute(path)
    if not result_set.is_intact(out, "report.json"):
        return None
    try:
        content = json.loads(storage.read_bytes(result_set.sidecar(out, "report.json")))
        value, low, high = (float(content[name]) for name in ("log_loss", "log_loss_low", "log_loss_high"))
        return Expected(value, low, high, int(content["n"]), str(content.get("chosen_on", "nothing")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_receipt(path: str, competition: str = COMPETITION) -> Receipt | None:
    """What is known of a submission, if this very file was sent, or begun to be sent, to this competition.

    Args:
        path: the CSV.
        competition: its name in Kaggle's URL.

    Raises:
        CatdogError: what is known could not be read.
    """
    out = storage.absolute(path)
    try:
        found = Receipt(**json.loads(storage.read_if_there(result_set.sidecar(out, _ENDING)) or b""))
    except (ValueError, TypeError):
        return None
    same = (found.sha256, found.competition) == (_sha256(out), competition)
    return dataclasses.replace(found, again=True) if same else None


def send_submission(path: str, message: str, competition: str = COMPETITION) -> Receipt:
    """Sends a submission with Kaggle's own client, unless it has been sent.

    Args:
        path: the CSV, on this machine.
        message: description that Kaggle shows beside it.
        competition: its name in Kaggle's URL.

    Returns:
        What Kaggle said; `again` if an earlier command sent it.

    Raises:
        UsageError: the file is not on this machine.
        CatdogError: no client, no credentials, or Kaggle refused or did not say that it has it; or another process is
            sending it.
    """
    require_local(path)
    out = storage.absolute(path)
    with lease.hold(result_set.sidecar(out, "kaggle.lease.json"), "sending a submission"):
        return _send(out, message, competition)


def _send(out: str, message: str, competition: str) -> Receipt:
    before = read_receipt(out, competition)
    if before is not None and before.state != "sending":
        return before
    instead = f"the file is {out}, and {site(competition)}/submit takes it by hand"
    api = open_client(instead)
    if before is not None:
        # Sending was cut short, after Kaggle had it or before.
        found = _find(api, before, out)
        if found is not None:
            return _write(out, dataclasses.replace(before, state="sent", ref=found.ref or None, again=True))
    receipt = _write(out, Receipt(competition, _sha256(out), message, "sending", time.time()))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            answer = api.competition_submit(out, message, competition, quiet=True)
    except Exception as error:  # the client raises its own, requests' and urllib3's
        raise CatdogError(f"Kaggle did not take the submission ({explain(error, competition)}); {instead}") from error
    # After a failed upload the client returns this text, or an answer with it, and prints why.
    text = answer if isinstance(answer, str) else str(getattr(answer, "message", "") or "")
    if isinstance(answer, str) or text.strip() == "Could not submit to competition":
        why = " ".join(printed.getvalue().split())
        raise CatdogError(f"Kaggle did not take the submission ({text}{': ' + why if why else ''}); {instead}")
    reference = getattr(answer, "ref", None) or None
    if reference is None and not text.startswith("Successfully submitted"):
        raise CatdogError(
            f"Kaggle did not say whether it took the submission (it answered {text or 'nothing'!r}); look at "
            f"{site(competition)}/submissions before you send it again; {instead}"
        )
    return _write(out, dataclasses.replace(receipt, state="sent", ref=reference, answer=text))


def wait_for_score(
    path: str, receipt: Receipt, seconds: float = 300.0, on_wait: Callable[[str], None] | None = None
) -> Receipt:
    """Waits until Kaggle has scored a submission.

    Args:
        path: the CSV.
        receipt: of it.
        seconds: how long to wait.
        on_wait: told in a few words what is waited for.

    Returns:
        The receipt with the scores; its state is still "sent" if Kaggle had none in time, or could not be asked.

    Raises:
        CatdogError: no client or no credentials.
    """
    out, competition = storage.absolute(path), receipt.competition
    if receipt.state in ("scored", "failed"):
        return receipt
    api = open_client(f"the score is on {site(competition)}/submissions")
    end, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        try:
            found, why = _find(api, receipt, out), "Kaggle has not scored it yet"
        except CatdogError as error:  # the connection may come back
            found, why = None, str(error)
        state = getattr(getattr(found, "status", None), "name", "")
        if state in ("COMPLETE", "ERROR"):
            return _write(out, _scored(receipt, found, state == "COMPLETE"))
        left = end - time.monotonic()
        if left <= 0:
            return dataclasses.replace(receipt, answer=why)
        if on_wait is not None:
            on_wait(why)
        time.sleep(min(pause, left))
        pause = min(1.5 * pause, _LONGEST_PAUSE)


def require_local(path: str) -> None:
    """Checks that a submission is on this machine.

    Raises:
        UsageError: it is in a bucket.
    """
    if not storage.is_local(path):
        raise UsageError(f"FILE received {path!r}; Kaggle's client sends files of this machine, so copy it here first")


def _scored(receipt: Receipt, found: Any, complete: bool) -> Receipt:
    public, private = (_number(getattr(found, name, "")) for name in ("public_score", "private_score"))
    said = " ".join(str(getattr(found, "error_description", "") or "").split())
    return dataclasses.replace(
        receipt, state="scored" if complete else "failed", ref=found.ref or receipt.ref, answer=said,
        public=public, private=private,
    )  # fmt: skip


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None


def _find(api: Any, receipt: Receipt, out: str) -> Any:
    """The submission in Kaggle's list: by its number, or else by its name and description; None if it is not there."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = [each for each in api.competition_submissions(receipt.competition) or [] if each is not None]
    except Exception as error:  # as above
        raise CatdogError(
            f"could not ask Kaggle for its submissions ({explain(error, receipt.competition)}); see "
            f"{site(receipt.competition)}/submissions"
        ) from error
    if receipt.ref is not None:
        return next((each for each in found if each.ref == receipt.ref), None)
    earliest = receipt.started - _CLOCKS
    return next(
        (
            each
            for each in found
            if (each.file_name, each.description) == (storage.name(out), receipt.message)
            and (each.date is None or each.date.replace(tzinfo=datetime.UTC).timestamp() >= earliest)
        ),
        None,
    )


def _sha256(out: str) -> str:
    try:
        return hashlib.sha256(storage.read_bytes(out)).hexdigest()
    except OSError as error:
        raise UsageError(f"FILE received {out!r}, which could not be read ({first_line(error)})") from error


def _write(out: str, receipt: Receipt) -> Receipt:
    fields = dataclasses.asdict(receipt)
    fields.pop("again")
    result_set.write_sidecar(out, _ENDING, json.dumps(fields, indent=2) + "\n")
    return receipt
