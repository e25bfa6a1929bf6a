"""The application from its options alone, for `serve deploy` and Kubernetes (KubeRay's RayService).

import_path: catdog.serving.builder:build_application
args: {model: [s3://my-bucket/runs/first], max_replicas: 4}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from catdog.choices import EngineName
from catdog.errors import UsageError
from catdog.inference import bundle
from catdog.inference.bundle import SavedBundle
from catdog.inference.engines import CHUNK
from catdog.serving import flickr, pictures
from catdog.serving.config import Replicas, ServeConfig
from catdog.serving.pictures import Pictures

if TYPE_CHECKING:
    from ray import serve

# As of `catdog score`: TensorFlow gives the same bits only in batches of the same size.
_BATCH: dict[EngineName, int] = {"onnx": CHUNK, "tensorflow": 64}
# What is decided by the cluster that the application is deployed to.
_OF_THE_CLUSTER = {"host", "port", "address", "wait"}


def build_application(options: dict[str, Any]) -> serve.Application:
    """Describes the application to Ray Serve, which starts it.

    Args:
        options: as of `ServeConfig`, without those of the cluster; a GPU for each replica only where `gpu` is true.

    Raises:
        UsageError: there is no such model or folder.
        CatdogError: the model is of another version, incomplete or damaged.
    """
    from catdog.serving import deployment

    strange = sorted(options.keys() & _OF_THE_CLUSTER)
    if strange:
        raise UsageError(f"received the argument {strange[0]}, which the cluster decides; leave it out")
    config = ServeConfig.model_validate(options)
    saved = [bundle.read_info(model) for model in config.model]
    # The cluster's nodes may come later, so nothing is read from it.
    engine = choose_engines(config, saved)[0]
    replicas = plan_replicas(config, engine, 1, bool(config.gpu), config.min_replicas)
    for each in saved:
        bundle.require_intact(each, engine)
    return deployment.application(saved, replicas, config.limits, open_pictures(config), None, config.debug)


def choose_engines(config: ServeConfig, saved: list[SavedBundle]) -> tuple[EngineName, ...]:
    """What may predict, the fastest on a CPU first.

    Args:
        config: the options.
        saved: the models.

    Raises:
        UsageError: one of the models lacks the engine that was asked for.
    """
    if config.engine == "auto":
        return ("tensorflow",) if config.gpu else bundle.merge_infos([each.info for each in saved]).engines
    for uri, info in saved:
        if config.engine not in info.engines:
            raise UsageError(f"--engine received onnx, but {uri} has no ONNX model ({info.onnx}); use tensorflow")
    return (config.engine,)


def plan_replicas(config: ServeConfig, engine: EngineName, threads: int, gpu: bool, room: int) -> Replicas:
    """Decides how the model is started.

    Args:
        config: the options.
        engine: what predicts.
        threads: of each replica.
        gpu: whether each has a GPU.
        room: replicas that the cluster has room for, if there is no other limit.
    """
    most = max(config.min_replicas, config.max_replicas or room)
    return Replicas(engine, config.batch_size or _BATCH[engine], threads, gpu, config.min_replicas, most)


def open_pictures(config: ServeConfig) -> Pictures | None:
    """Where random pictures come from: the folder, else Flickr, if its key is in the environment.

    Raises:
        UsageError: the folder has no pictures.
    """
    if config.pictures:
        return pictures.open_folder(config.pictures, config.limits.bytes)
    return flickr.from_environment()
