"""What the app asks for answers: predictions and explanations, wherever they are computed."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from catdog.data import thumbnails
from catdog.data.images import Status
from catdog.inference import explanation
from catdog.inference.explanation import Explainer

# Of pictures that are sent back, in pixels.
PICTURE_SIDE = 640


class Predicted(NamedTuple):
    """What the predictor said about one file.

    Attributes:
        logit: before temperature and clip; NaN if the file is unreadable.
        probability: of the second class.
        status: "ok", "recovered" or "unreadable".
        detail: what was odd about the file, in a few words.
        batch: number of files that were predicted together with it, itself included.
    """

    logit: float
    probability: float
    status: Status
    detail: str
    batch: int


class Backend(Protocol):
    """What computes the answers."""

    async def predict(self, files: list[bytes]) -> list[Predicted]:
        """Predicts files, in their order.

        Raises:
            RefusedError: there is too much to do, or nobody to do it.
        """

    async def novelty(self, data: bytes) -> float | None:
        """Measures how far a readable file is from the training photos, as `NoveltyScorer.scores`.

        Returns:
            None if the model has no statistics of them.

        Raises:
            RefusedError: there is too much to do, or nobody to do it.
        """

    async def explain(self, data: bytes, label: int) -> bytes:
        """Draws over a readable picture what speaks for a class.

        Returns:
            A JPEG file.

        Raises:
            RefusedError: there is too much to do, or nobody to do it.
        """

    async def require_ready(self) -> None:
        """Makes sure that there is somebody to predict.

        Raises:
            RefusedError: there is nobody.
        """


def draw(explainer: Explainer, data: bytes, label: int) -> bytes:
    """Draws over a picture what speaks for a class.

    Args:
        explainer: of the model.
        data: the bytes of a readable file.
        label: of the class.

    Returns:
        A JPEG file, as large as the picture on the page.
    """
    pixels = thumbnails.thumbnail(data, PICTURE_SIDE)
    assert pixels is not None  # it is readable
    return thumbnails.encode_jpeg(explanation.overlay_heat(pixels, explainer.heat_map(data, label)))
