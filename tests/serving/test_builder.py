"""The application as `serve deploy` and Kubernetes build it, from a file's options."""

from __future__ import annotations

import pydantic
import pytest
from ray import serve

from catdog.data.catalog import Catalog
from catdog.errors import UsageError
from catdog.inference import bundle
from catdog.serving import builder
from catdog.serving.config import ServeConfig


def test_the_application_has_the_options_of_the_file(untrained: str, drawn: Catalog) -> None:
    options = {"model": [untrained], "max_replicas": 4, "pictures": drawn.root, "max_requests": 7}
    built = builder.build_application(options)
    assert isinstance(built, serve.Application)


@pytest.mark.parametrize(
    ("options", "engine", "batch", "least", "most"),
    [
        ({}, "onnx", 4, 1, 3),
        ({"engine": "tensorflow"}, "tensorflow", 64, 1, 3),
        ({"gpu": True}, "tensorflow", 64, 1, 3),
        ({"max_replicas": 2, "batch_size": 8}, "onnx", 8, 1, 2),
        ({"min_replicas": 5}, "onnx", 4, 5, 5),
    ],
)
def test_replicas(options: dict, engine: str, batch: int, least: int, most: int, untrained: str) -> None:
    config = ServeConfig(model=[untrained], **options)
    chosen = builder.choose_engines(config, [bundle.read_info(untrained)])[0]
    planned = builder.plan_replicas(config, chosen, 1, bool(config.gpu), room=3)
    assert (planned.engine, planned.batch_size, planned.least, planned.most) == (engine, batch, least, most)


def test_a_model_without_onnx_is_run_by_tensorflow(untrained: str) -> None:
    info = bundle.read_info(untrained).info.model_copy(update={"onnx": "it was not asked for"})
    saved = [bundle.read_info(untrained), bundle.SavedBundle("plain", info)]
    assert builder.choose_engines(ServeConfig(model=["x"]), saved) == ("tensorflow",)
    with pytest.raises(UsageError, match="--engine received onnx, but plain has no ONNX model .*; use tensorflow"):
        builder.choose_engines(ServeConfig(model=["x"], engine="onnx"), saved)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"port": 80}, UsageError, "received the argument port, which the cluster decides"),
        ({"models": "x"}, pydantic.ValidationError, "models"),
        ({"max_replicas": 0}, pydantic.ValidationError, "max_replicas"),
    ],
)
def test_options_that_cannot_be(more: dict, error: type[Exception], message: str, untrained: str) -> None:
    with pytest.raises(error, match=message):
        builder.build_application({"model": untrained, **more})
