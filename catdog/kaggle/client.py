"""Kaggle's own client: opened with the user's credentials, and its errors explained."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from catdog.errors import CatdogError, first_line

COMPETITION = "dogs-vs-cats-redux-kernels-edition"


def site(competition: str) -> str:
    """Address of a competition's page."""
    return f"https://www.kaggle.com/c/{competition}"


def open_client(instead: str) -> Any:
    """Opens Kaggle's client with the user's credentials.

    Args:
        instead: what can be done without the client, to end a message.

    Returns:
        A `KaggleApi`.

    Raises:
        CatdogError: no client, no credentials, or Kaggle could not be asked about them.
    """
    try:
        # Without credentials the client prints a page and leaves the process, already while it is imported.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.authenticate()
    except ImportError as error:
        raise CatdogError(
            f"the kaggle client is not installed: `pip install kaggle`, or catdog with [kaggle]; {instead}"
        ) from error
    except (SystemExit, Exception) as error:
        if hasattr(error, "request"):  # of the library `requests`: a token is there, and Kaggle was asked about it
            raise CatdogError(f"could not ask Kaggle about the credentials ({first_line(error)}); {instead}") from error
        reason = "" if isinstance(error, SystemExit) else f" ({first_line(error)})"
        raise CatdogError(
            f"no Kaggle credentials{reason}: run `kaggle auth login`, or make a token on your account's settings page "
            f"and set KAGGLE_API_TOKEN; {instead}"
        ) from error
    return api


def explain(error: BaseException, competition: str) -> str:
    """What an error of Kaggle's client means, and what to do about it, in words.

    Args:
        error: raised by the client: its own, or one of `requests` or `urllib3`.
        competition: its name in Kaggle's URL.
    """
    said, code = first_line(error), getattr(getattr(error, "response", None), "status_code", None)
    if code == 401:
        return f"{said}: Kaggle does not know these credentials; make a new token on your account's settings page"
    if code == 403:
        return f"{said}: join the competition and accept its rules on {site(competition)}/rules, then try again"
    if code == 404:
        return f"{said}: there is no competition {competition!r}, or it is closed; look at {site(competition)}"
    if code == 429:
        return f"{said}: too many requests; wait some minutes, then try again"
    return said
