"""The JSON that is received and answered; OpenAPI describes it in the words that follow each field."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic


class _Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Address(_Body):
    """A picture somewhere on the web."""

    url: Annotated[
        str,
        pydantic.Field(
            min_length=8, max_length=2048, pattern="^[hH][tT][tT][pP][sS]?://", examples=["https://example.com/cat.jpg"]
        ),
    ]
    """Address of the picture itself, http or https; addresses of private networks are refused."""


class Prediction(_Body):
    """What is said about one picture."""

    name: str
    """Name of its file."""
    status: Literal["ok", "recovered", "unreadable"]
    """Whether it could be read: "recovered" is damaged or of an unusual kind, but predicted."""
    detail: str
    """What was odd about the file, in a few words; empty where nothing was."""
    class_name: str | None
    """The likelier class; null if the picture is unreadable."""
    probabilities: dict[str, float]
    """Of both classes, calibrated and clipped; empty if the picture is unreadable."""
    logit: float | None
    """Before temperature and clip, to the last bit that of `catdog score`; null if the picture is unreadable."""
    novelty: float | None = None
    """Distance from the training photos: above 1 it is farther than 99 % of the validation photos, and so perhaps of
    neither class; if it was asked for, and the model has statistics of them."""
    thumbnail: str | None = None
    """The picture as the model saw it, upright and shrunk, as a data URL; if it was asked for."""


class Answer(_Body):
    """What is said about the pictures of a request."""

    predictions: list[Prediction]
    """One for each picture, in the order of the request."""
    seconds: float
    """Time from the first byte of the request to this answer."""


class RandomAnswer(_Body):
    """A picture that the server chose, and what is said about it."""

    prediction: Prediction
    """What is said about it."""
    picture: str
    """The file, as a data URL."""
    label: str | None
    """The class that it is known to have; null if that is unknown."""
    credit: str | None
    """Who made it; null if that is unknown."""
    source: str | None
    """Address of a page about it; null if there is none."""
    seconds: float
    """Time that the answer took."""


class Health(_Body):
    """A server that can predict."""

    status: Literal["ok"]
    """Always ok; otherwise the answer is an error."""
    architecture: str
    """Of the model."""
    class_names: Annotated[list[str], pydantic.Field(min_length=2, max_length=2)]
    """Of labels 0 and 1."""


class Failure(_Body):
    """Why a request was refused."""

    error: str
    """What was received, what was expected, what to do; one line."""
