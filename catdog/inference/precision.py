"""The precision that a bundle predicts in, and what an int8 bundle was made with and judged by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import pydantic

if TYPE_CHECKING:
    from catdog.choices import EngineName

FLOAT32, INT8 = "float32", "int8"


class Quantisation(pydantic.BaseModel):
    """How the ONNX files of a bundle were made int8, and what that changed; `quantisation` in `bundle.json`.

    Attributes:
        weight_bits: 7 for weights that give the same on CPUs without VNNI, else 8.
        calibration_images: training photos that the ranges of activations were taken from.
        in_float: by member, the names of the convolutions that stayed in float32.
        n: validation photos that it was judged on.
        log_loss_float32: of them, in nats, with all views, cross-fitted if the bundle is calibrated.
        log_loss_change: by how much int8 has more.
        log_loss_change_low: low end of its 95 % interval, paired.
        log_loss_change_high: high end of it.
        float32_fingerprint: of the bundle that it was made from.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    weight_bits: Annotated[int, pydantic.Field(ge=7, le=8)]
    calibration_images: Annotated[int, pydantic.Field(ge=1)]
    in_float: list[list[str]]
    n: Annotated[int, pydantic.Field(ge=1)]
    log_loss_float32: float
    log_loss_change: float
    log_loss_change_low: float
    log_loss_change_high: float
    float32_fingerprint: str


def precision_of(quantisations: Iterable[Quantisation | None], engine: EngineName) -> str:
    """What an engine predicts in with these bundles, in words: TensorFlow always reads the float32 weights.

    Args:
        quantisations: `BundleInfo.quantisation` of each bundle.
        engine: what predicts.
    """
    found = {INT8 if engine == "onnx" and each else FLOAT32 for each in quantisations}
    return " and ".join(sorted(found, reverse=True))
