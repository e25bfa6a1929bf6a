"""The server: Ray and Ray Serve started, the application deployed, and all of it ended again."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator

from catdog import cluster, interruption, resources, waiting
from catdog.errors import CatdogError, UsageError
from catdog.events import EventHandler
from catdog.inference import bundle
from catdog.inference.bundle import SavedBundle
from catdog.serving import builder, pictures
from catdog.serving.config import Replicas, ServeConfig

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# `plan_scoring` starts no more actors than there are parts: here, as many as the cluster has room for.
_ANY_NUMBER = 1_000_000


@contextlib.contextmanager
def running(config: ServeConfig, on_event: EventHandler) -> Iterator[str]:
    """Runs the server while the block runs.

    Args:
        config: the options.
        on_event: told of waiting for CPUs or GPUs.

    Yields:
        The URL of the page.

    Raises:
        UsageError: there is no such model or folder, or the host cannot be listened on.
        CatdogError: the port is in use, or the cluster or the server could not be started.
    """
    saved = [bundle.read_info(model) for model in config.model]
    engines = builder.choose_engines(config, saved)
    source = builder.open_pictures(config)
    own = not (config.address or os.environ.get("RAY_ADDRESS"))
    if own:
        _require_free(config.host, config.port)
    with cluster.connect(config.address, config.debug) as may_grow:
        plan = resources.plan_scoring(dict.fromkeys(engines, config.max_replicas or _ANY_NUMBER), config.gpu, may_grow)
        for each in saved:
            bundle.require_intact(each, plan.engine)
        first: waiting.Bundle = {"GPU": 1} if plan.gpu else {"CPU": plan.threads}
        waiting.wait_for([first] * config.min_replicas, on_event, config.wait)
        replicas = builder.plan_replicas(config, plan.engine, plan.threads, plan.gpu, plan.actors)
        hosts = sorted({*LOOPBACK, config.host}) if config.host in LOOPBACK else None
        with _served(config, saved, replicas, source, hosts, own):
            yield f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}/"


@contextlib.contextmanager
def _served(
    config: ServeConfig,
    saved: list[SavedBundle],
    replicas: Replicas,
    source: pictures.Pictures | None,
    hosts: list[str] | None,
    own: bool,
) -> Iterator[None]:
    """Deploys the application while the block runs."""
    # Imported late: it takes a second.
    from ray import serve

    from catdog.serving import deployment

    if not config.debug:
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    if not own and serve.status().proxies:
        raise CatdogError(
            "Ray Serve runs on this cluster already, and listens where it was told to then; end it with "
            "`serve shutdown`, or use another cluster"
        )
    target = deployment.application(saved, replicas, config.limits, source, hosts, config.debug)
    try:
        try:
            with cluster.quiet_stderr(not config.debug), interruption.keeping_handlers():
                options = {"host": config.host, "port": config.port}
                serve.start("HeadOnly", options, logging_config=deployment.logging_config(config.debug))
                serve.run(target, name=deployment.NAME, route_prefix="/")
        except (RuntimeError, TimeoutError, cluster.RayError) as error:
            raise CatdogError(f"could not start the server: {cluster.cause(error)} (--debug shows more)") from error
        yield
    finally:
        with cluster.quiet_stderr(not config.debug):
            if own:  # the rest ends with the cluster
                serve.delete(deployment.NAME)
            else:
                serve.shutdown()


def _require_free(host: str, port: int) -> None:
    """Makes sure that a port of this machine can be listened on, before anything is started."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise UsageError(f"--host received {host!r}, which is no address of this machine") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CatdogError(f"port {port} of {host} is in use; give another --port") from error
        raise UsageError(f"--host {host} --port {port} cannot be listened on: {error.strerror}") from error
