"""Joining or starting Ray, and the plan: how many workers or actors, with which resources each."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig

from catdog import imports, interruption
from catdog.engines import EngineName
from catdog.errors import CatdogError, UsageError

# Whether the cluster that `connect` joined may grow.
_may_grow = False

# Fewer images than this in a worker's share of a batch, and starting the worker costs more than it brings.
_MIN_SHARE = 8
# A head that is there answers in milliseconds.
_ANSWER_SECONDS = 10


@contextlib.contextmanager
def connect(address: str | None = None, debug: bool = False) -> Iterator[bool]:
    """Joins the cluster at `address`, else at RAY_ADDRESS, else starts one of this machine's size for the while.

    Args:
        address: what `ray.init` takes, or None.
        debug: shows Ray's own log and what the workers print.

    Yields:
        Whether the cluster may grow: somebody else's may have an autoscaler, one's own has not.

    Raises:
        CatdogError: no cluster there.
    """
    global _may_grow
    if ray.is_initialized():  # by a `connect` around this one, or by somebody who calls the library
        yield _may_grow
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address and address.startswith("http"):
        raise UsageError(
            f"received the address {address}, which is that of the Jobs API; expected HOST:PORT of a head, or auto "
            "(`ray job submit` takes its own from RAY_API_SERVER_ADDRESS)"
        )
    # Reports reach the Train controller by polling; its two seconds are as long as a small epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if not debug:
        # Ray Data starts its actors in a way that Ray's core calls an error; it is none.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": logging.INFO if debug else logging.ERROR}
    try:
        if address:
            _require_head(address)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # Nobody reclaims a machine of one's own, and the watcher is one more process to start.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            # Workers that Ray starts before anybody asks are not ready when actors are, and get replaced.
            os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
            # Half of the time Ray knocks at its object store before it listens, and would then sleep for a second.
            os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "20")
            os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "500")
            options["include_dashboard"] = False
        if not (address or "").startswith("ray://"):  # where the driver is another process, with a path of its own
            options["job_config"] = _JobConfig()
        # Ray Data is slow to import, and Ray to start: each mostly waits, so they do it together.
        with quiet_stderr(not debug), ThreadPoolExecutor(1) as meanwhile:
            meanwhile.submit(importlib.import_module, "ray.data")
            # "local": without it Ray would join whatever cluster this machine last heard of.
            with interruption.keeping_handlers():
                ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError, RayError) as error:
        where = f"reach the Ray cluster at {address}" if address else "start Ray on this machine"
        raise CatdogError(f"could not {where}: {_first_line(error)}") from error
    try:
        from ray.data import DataContext

        if not debug:
            for name in ("ray.data", "ray.train"):  # Ray Data's has its level set by importing it
                # Their errors come as exceptions too, of which `cause` makes one line.
                logging.getLogger(name).setLevel(logging.CRITICAL)
        DataContext.get_current().enable_progress_bars = debug
        _may_grow = bool(address)
        yield _may_grow
    finally:
        _may_grow = False
        try:
            if not address:
                _stop_autoscaler(ray.get_runtime_context().gcs_address)
        finally:
            ray.shutdown()


class _JobConfig(JobConfig):
    """Gives Ray's workers this process's path.

    Ray itself puts the working folder first on it, where the `catdog` command does not look, and a `keras.py` there
    would be imported in place of Keras. In a submitted job both have the path of the uploaded folder.
    """

    def _serialize(self) -> str:
        if not self._runtime_env_has_working_dir():
            # Each is put before those that are there.
            self._py_driver_sys_path = imports.driver_path()[::-1]
        return super()._serialize()


def _stop_autoscaler(head: str) -> None:
    """Kills the autoscaler of one's own cluster, which has nothing to scale.

    `ray.shutdown` stops the head before it, which it then tries to reach until it is killed, a second later.
    """
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children():
            words = child.cmdline()
            if f"--gcs-address={head}" in words and any(
                word.endswith("autoscaler/_private/monitor.py") for word in words
            ):
                child.kill()


@dataclass(frozen=True)
class TrainPlan:
    """What a training run asks of the cluster.

    Attributes:
        workers: Ray Train workers, one replica each.
        cpus_per_worker: CPUs, and TensorFlow threads, of each.
        gpu: whether each has a GPU.
    """

    workers: int
    cpus_per_worker: int
    gpu: bool


@dataclass(frozen=True)
class ScorePlan:
    """What a scoring run asks of the cluster.

    Attributes:
        engine: what predicts.
        actors: each with the model in memory.
        threads: of each, and the CPUs it is counted with; with a GPU its CPUs stay free for reading.
        gpu: whether each has a GPU. If so, tasks on the CPUs read and decode ahead of the actors; if not, each actor
            reads its own files, for there is no other CPU.
        why: the plan and its reasons, by name, for people.
    """

    engine: EngineName
    actors: int
    threads: int
    gpu: bool
    why: dict[str, str] = field(compare=False, default_factory=dict)


def plan_training(
    batch_size: int,
    workers: int | None = None,
    cpus_per_worker: int | None = None,
    gpu: bool | None = None,
    may_grow: bool = False,
) -> TrainPlan:
    """Decides the workers of a training run from what was asked and what the cluster has.

    Decoding is over before the workers start, so they may take every CPU.

    Args:
        batch_size: the global batch, in images.
        workers: how many, or None for as many as the cluster holds and the batch is worth.
        cpus_per_worker: CPUs of each, or None for an even share.
        gpu: True, False, or None for GPUs where there are any.
        may_grow: an autoscaler may bring GPUs that are not there yet.

    Raises:
        UsageError: more than the cluster has, or a batch too small to share.
    """
    cpus, gpus = _per_node("CPU"), _per_node("GPU")
    if not cpus:
        raise UsageError("the cluster has no CPU to give; expected at least one")
    gpu = sum(gpus) > 0 if gpu is None else gpu
    if gpu:
        count = workers or sum(gpus)
        if not count:
            hint = "give --workers N to wait for N of them" if may_grow else "expected at least one; use --cpu"
            raise UsageError(f"--gpu received, but the cluster has no GPU; {hint}")
        share = cpus_per_worker or 1
        room = sum(
            min(int(node["Resources"].get("GPU", 0)), int(node["Resources"].get("CPU", 0)) // share)
            for node in ray.nodes()
            if node["Alive"]
        )
        if count > room and not may_grow:
            raise UsageError(
                f"received --workers {count} with a GPU and {share} CPU{'s' * (share > 1)} each, but the cluster holds "
                f"{room}"
            )
    else:
        share = cpus_per_worker or 1
        room = sum(count // share for count in cpus)
        count = workers or min(room, max(1, batch_size // _MIN_SHARE))
        if count > room:
            raise UsageError(
                f"received --workers {count} with {share} CPU{'s' * (share > 1)} each, but the cluster holds {room} "
                f"(CPUs of its nodes: {', '.join(map(str, cpus)) or 'none'}); ask for fewer"
            )
        if cpus_per_worker is None:
            share = next(s for s in range(max(cpus), 0, -1) if sum(n // s for n in cpus) >= count)
    if count > batch_size:
        raise UsageError(f"received --batch-size {batch_size} for {count} workers, expected at least one image each")
    return TrainPlan(count, share, gpu)


def plan_scoring(parts: Mapping[EngineName, int], gpu: bool | None = None, may_grow: bool = False) -> ScorePlan:
    """Decides how a scoring run uses the cluster: an actor a CPU, or a GPU, and no more than there are parts.

    Where there is no GPU actors read their own files and the catalog's blocks need no task, so they may take every
    CPU. Each has one thread, so that a part's bits do not depend on how many CPUs there are; more actors do more.

    Args:
        parts: by engine that may predict, how many are to be made; the fastest on a CPU first.
        gpu: True, False, or None for GPUs where there are any and TensorFlow may use them.
        may_grow: an autoscaler may bring a GPU that is not there yet.

    Raises:
        UsageError: the cluster has no CPU or GPU to give, or there is no engine for it.
    """
    gpus, cpus = _per_node("GPU"), _per_node("CPU")
    gpu = bool(gpus) and "tensorflow" in parts if gpu is None else gpu
    units = sum(gpus if gpu else cpus) or int(gpu and may_grow)
    if not units:
        raise UsageError(f"the cluster has no {'GPU' if gpu else 'CPU'}; expected at least one")
    if not cpus and not may_grow:
        raise UsageError("the cluster has no CPU to read images with; expected at least one")
    if gpu and "tensorflow" not in parts:
        raise UsageError(f"--gpu received with --engine {next(iter(parts))}, which runs on CPUs; leave one of them out")
    engine: EngineName = "tensorflow" if gpu else next(iter(parts))
    actors = max(1, min(units, parts[engine]))
    device = "GPU" if gpu else "CPU"
    chosen = {
        (True, "tensorflow"): "the cluster has GPUs",
        (False, "onnx"): "the fastest on CPUs, and checked against Keras when the model was saved",
        (False, "tensorflow"): "asked for, or the model has no verified ONNX file",
    }[gpu, engine]
    why = {
        "engine": f"{engine}: {chosen}",
        "actors": (
            f"{actors}: one a {device} (nodes have {', '.join(map(str, gpus if gpu else cpus))}), {parts[engine]} parts"
        ),
        "threads": "1 an actor: the bits of a part do not depend on how many CPUs there are",
        "reading": (
            f"in tasks on {sum(cpus)} CPUs, ahead of the actors"
            if gpu
            else "in each actor, a batch ahead of the model: no CPU is left for others, so none is waited for"
        ),
    }
    return ScorePlan(engine, actors, 1, gpu, why)


def object_store_bytes() -> int:
    """The smallest node's share of Ray's shared memory, in bytes: what one copy of a data set must fit in."""
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(min((size for size in stores if size), default=0))


@contextlib.contextmanager
def quiet_stderr(quiet: bool = True) -> Iterator[None]:
    """Drops what is written to standard error below Python, such as TensorFlow's remarks while it is imported."""
    if not quiet:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _per_node(resource: str) -> list[int]:
    """How much of a resource each living node has, nodes without it left out."""
    amounts = [int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"]]
    return [amount for amount in amounts if amount]


def cause(error: BaseException) -> str:
    """The line of an error from a Ray task, actor or worker that says what went wrong there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b.*: ", line)]
    ours = [line.partition("Error: ")[2] for line in raised if line.startswith("catdog.errors.")]
    theirs = [line for line in raised if not line.startswith("ray.exceptions.")]
    return (ours or theirs or raised or lines or [type(error).__name__])[-1]


def _require_head(address: str) -> None:
    """Asks the head at an address whether it is one and takes our token: Ray would go on trying, and not say why."""
    import grpc
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray._private.services import get_ray_address_from_environment

    where = get_ray_address_from_environment("auto", None) if address == "auto" else address.removeprefix("ray://")
    host, _, port = where.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    token: list[tuple[str, str]] = []
    with contextlib.suppress(RayError):  # there is none
        token = [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", _ANSWER_SECONDS, token)
            return
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
    if code == grpc.StatusCode.UNAUTHENTICATED and not token:
        raise CatdogError(
            f"the Ray cluster at {where} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH unless ~/.ray/auth_token holds it"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        given = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
        source = given[0] if given else "~/.ray/auth_token"
        raise CatdogError(
            f"the Ray cluster at {where} refused the token of {source}; expected the one that its head has"
        )
    if code == grpc.StatusCode.UNIMPLEMENTED and address.startswith("ray://"):
        return  # Ray's client server knows of no nodes
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        reason = f"no answer within {_ANSWER_SECONDS} s"
    elif code == grpc.StatusCode.UNIMPLEMENTED or "HTTP/2" in details:
        reason = "what answers there is no Ray head"
    else:
        reason = details.rpartition(": ")[2].rstrip("]")
    raise CatdogError(f"could not reach the Ray cluster at {where}: {reason}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
