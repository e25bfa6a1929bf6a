"""The application for Ray Serve's own tools: `serve run`, `serve deploy`, and KubeRay's RayService."""

from __future__ import annotations

from typing import Any

from ray import serve

from catdog.inference import bundle
from catdog.serving import deployment, flickr, pictures, server
from catdog.serving.config import Replicas, ServeConfig


def build_application(arguments: dict[str, Any]) -> serve.Application:
    """Builds the application from the `args` of a Serve configuration file.

    Ray Serve listens where its own configuration says, so `host` and `port` have no effect here.

    Args:
        arguments: fields of `ServeConfig`, such as {"model": ["s3://bucket/runs/first"], "max_replicas": 4}.

    Raises:
        pydantic.ValidationError: a field is unknown, missing or of the wrong kind.
        UsageError, CatdogError: there is no such model or folder.
    """
    config = ServeConfig.model_validate(arguments)
    saved = [bundle.read_info(model) for model in config.model]
    engine = "tensorflow" if config.gpu else server.engines_of(config, saved)[0]
    batch_size = config.batch_size or server.BATCH_SIZES[engine]
    replicas = Replicas(
        engine=engine,
        batch_size=batch_size,
        threads=1,
        gpu=bool(config.gpu),
        least=config.min_replicas,
        most=max(config.min_replicas, config.max_replicas or config.min_replicas),
    )
    folder = pictures.open_folder(config.pictures, config.limits.bytes) if config.pictures else None
    return deployment.application(saved, replicas, config.limits, folder or flickr.from_environment())
