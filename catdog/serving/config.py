"""The options of the server, and the limits that it sets to requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic

from catdog.choices import EngineChoice, EngineName, ModelUris
from catdog.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask for.

    Attributes:
        bytes: most bytes of a request's body, of a fetched file, and of a picture of a folder.
        files: most pictures in a request.
        pixels: most pixels of a picture.
        seconds: longest time for a request, from its first byte to its answer.
        requests: requests for predictions that are worked on at the same time; others are sent away at once.
    """

    bytes: int = 20_000_000
    files: int = 16
    pixels: int = 64_000_000
    seconds: float = 30.0
    requests: int = 32


@dataclass(frozen=True)
class Replicas:
    """How replicas of the model are started.

    Attributes:
        engine: what predicts.
        batch_size: images that the engine gets together.
        threads: of each replica.
        gpu: whether each has a GPU.
        least: number that is always there.
        most: largest number.
    """

    engine: EngineName
    batch_size: int
    threads: int
    gpu: bool
    least: int
    most: int


class ServeConfig(pydantic.BaseModel):
    """The options of `catdog serve`.

    Attributes:
        model: URIs of runs or of bundles; the logits of several are averaged.
        pictures: URI of a folder of images, or of a prepared data set, from which "Random" takes one.
        host: the address that is listened on.
        port: likewise.
        engine: what predicts; "auto" is ONNX Runtime on CPUs if the model has a verified file for it.
        batch_size: images that the engine gets together, padded if there are fewer. None is the one that gives the bits
            of `catdog score` with its defaults.
        min_replicas: copies of the model that are always there.
        max_replicas: most copies of the model; None is one for each CPU, or GPU if GPUs are used.
        max_upload: most megabytes of a request.
        max_files: most pictures of a request.
        max_pixels: most megapixels of a picture.
        timeout: most seconds for a request.
        max_requests: requests that are worked on at the same time.
        gpu: a GPU for each replica; None where there are any.
        address: of the Ray cluster.
        wait: seconds to wait for CPUs or GPUs that others hold; None is for as long as it takes.
        debug: show Ray's log and tracebacks.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    model: ModelUris
    pictures: str | None = None
    host: Annotated[str, pydantic.Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, pydantic.Field(ge=1, le=65535)] = 8000
    engine: EngineChoice = "auto"
    batch_size: Annotated[int, pydantic.Field(ge=1, le=4096)] | None = None
    min_replicas: Annotated[int, pydantic.Field(ge=1, le=1000)] = 1
    max_replicas: Annotated[int, pydantic.Field(ge=1, le=1000)] | None = None
    max_upload: Annotated[float, pydantic.Field(gt=0, le=1000)] = 20.0
    max_files: Annotated[int, pydantic.Field(ge=1, le=1000)] = 16
    max_pixels: Annotated[float, pydantic.Field(gt=0, le=178)] = 64.0
    timeout: Annotated[float, pydantic.Field(gt=0, le=3600)] = 30.0
    max_requests: Annotated[int, pydantic.Field(ge=1, le=10_000)] = 32
    gpu: bool | None = None
    address: str | None = None
    wait: Annotated[float, pydantic.Field(ge=0)] | None = None
    debug: bool = False

    @pydantic.field_validator("max_replicas")
    @classmethod
    def _require_order(cls, value: int | None, info: pydantic.ValidationInfo) -> int | None:
        least = info.data.get("min_replicas", 1)
        if value is not None and value < least:
            raise UsageError(f"--max-replicas received {value}, expected at least --min-replicas, {least}")
        return value

    @property
    def limits(self) -> Limits:
        """The limits among them, in the units that the server counts in."""
        return Limits(
            bytes=int(self.max_upload * 1e6),
            files=self.max_files,
            pixels=int(self.max_pixels * 1e6),
            seconds=self.timeout,
            requests=self.max_requests,
        )
