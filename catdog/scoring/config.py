"""The options of a scoring run."""

from __future__ import annotations

from typing import Annotated

import pydantic

from catdog import stall
from catdog.choices import EngineChoice, ModelUris, PrecisionChoice, SplitChoice
from catdog.errors import UsageError


class ScoreConfig(pydantic.BaseModel):
    """The options of `catdog score`.

    Attributes:
        model: URIs of runs or of bundles; the logits of several are averaged.
        data: URI of a prepared data set.
        split: which splits; "all" is validation and, where there is one, test.
        out: URI of the CSV; its sidecars take its stem.
        engine: what predicts; "auto" is ONNX Runtime on CPUs if the model has a verified file for it.
        precision: "int8" takes the int8 version of each model; "auto" takes each as it is, "float32" none that is int8.
        batch_size: images decoded together, and then handed to the engine.
        max_unreadable: share of a split's images that may be unreadable.
        gpu: a GPU for each actor; None where there are any.
        gpus_per_actor: how much of a GPU each takes; with less than 1 several share each, and `gpu` is true.
        address: of the Ray cluster.
        wait: seconds to wait for CPUs or GPUs that others hold; None is as long as `stall_timeout` allows.
        stall_timeout: seconds without progress after which scoring ends; 0 is no limit.
        debug: show Ray's log and tracebacks.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    model: ModelUris
    data: str
    split: SplitChoice = "all"
    out: str = "submissions/results.csv"
    engine: EngineChoice = "auto"
    precision: PrecisionChoice = "auto"
    batch_size: Annotated[int, pydantic.Field(ge=1, le=4096)] = 64
    max_unreadable: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01
    gpu: bool | None = None
    gpus_per_actor: Annotated[float, pydantic.Field(ge=0.01, le=1)] = 1.0
    address: str | None = None
    wait: Annotated[float, pydantic.Field(ge=0)] | None = None
    stall_timeout: Annotated[float, pydantic.Field(ge=0)] = stall.DEFAULT_SECONDS
    debug: bool = False

    @pydantic.model_validator(mode="after")
    def _ask_for_gpus(self) -> ScoreConfig:
        if self.gpus_per_actor < 1:
            if self.gpu is False:
                raise UsageError(f"--cpu received with --gpus-per-actor {self.gpus_per_actor:g}; leave one of them out")
            self.gpu = True
        return self
