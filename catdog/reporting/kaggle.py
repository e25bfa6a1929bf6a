"""Kaggle: a submission sent with its own client, and its answer understood."""

from __future__ import annotations

import contextlib
import io

from catdog.errors import CatdogError, first_line

COMPETITION = "dogs-vs-cats-redux-kernels-edition"


def send_submission(path: str, message: str, competition: str = COMPETITION) -> str:
    """Sends a submission with Kaggle's own client.

    Args:
        path: the CSV, on this machine.
        message: description that Kaggle shows beside it.
        competition: its name in Kaggle's URL.

    Returns:
        Kaggle's answer.

    Raises:
        CatdogError: no client, no credentials, or Kaggle refused or did not say that it has it.
    """
    site = f"https://www.kaggle.com/c/{competition}"
    place = f"the file is {path}, and {site}/submit takes it by hand"
    printed = io.StringIO()
    try:
        # Without credentials the client prints a page and leaves the process, already while it is imported.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.authenticate()
    except ImportError as error:
        raise CatdogError(f"the kaggle client is not installed: `pip install kaggle`; {place}") from error
    except (SystemExit, Exception) as error:
        if hasattr(error, "request"):  # of the library `requests`: a token is there, and Kaggle was asked about it
            raise CatdogError(f"could not ask Kaggle about the credentials ({first_line(error)}); {place}") from error
        reason = "" if isinstance(error, SystemExit) else f" ({first_line(error)})"
        raise CatdogError(
            f"no Kaggle credentials{reason}: run `kaggle auth login`, or make a token on your account's settings page "
            f"and set KAGGLE_API_TOKEN; {place}"
        ) from error
    try:
        with contextlib.redirect_stdout(printed):
            answer = api.competition_submit(path, message, competition, quiet=True)
    except Exception as error:  # the client raises its own, requests' and urllib3's
        raise CatdogError(f"Kaggle did not take the submission ({first_line(error)}); {place}") from error
    # After a failed upload the client returns this text, or an answer with it, and prints why.
    text = answer if isinstance(answer, str) else str(getattr(answer, "message", "") or "")
    if isinstance(answer, str) or text.strip() == "Could not submit to competition":
        why = " ".join(printed.getvalue().split())
        raise CatdogError(f"Kaggle did not take the submission ({text}{': ' + why if why else ''}); {place}")
    reference = getattr(answer, "ref", None)
    if not reference and not text.startswith("Successfully submitted"):
        raise CatdogError(
            f"Kaggle did not say whether it took the submission (it answered {text or 'nothing'!r}); look at "
            f"{site}/submissions before you send it again; {place}"
        )
    return text + (f" (submission {reference})" if reference else "")
