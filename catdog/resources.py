"""Resource plans: how many workers or actors a run starts, with how many CPUs, GPUs and threads each."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import ray

from catdog.choices import EngineName
from catdog.errors import UsageError

# Minimum images of a batch per worker; with fewer, starting the worker costs more time than it saves.
_MIN_SHARE = 8


@dataclass(frozen=True)
class TrainPlan:
    """Resources of a training run.

    Attributes:
        workers: Ray Train workers, one replica each.
        cpus_per_worker: CPUs and TensorFlow threads of each worker.
        gpu: whether each worker has a GPU.
        bounds: the least and the most workers, if their number may change while the run goes on; `workers` is then how
            many the cluster has room for now.
    """

    workers: int
    cpus_per_worker: int
    gpu: bool
    bounds: tuple[int, int] | None = None

    @property
    def fewest(self) -> int:
        """The least number of workers."""
        return self.bounds[0] if self.bounds else self.workers


@dataclass(frozen=True)
class ScorePlan:
    """Resources of a scoring run.

    Attributes:
        engine: the inference engine.
        actors: number of actors; each holds the model in memory.
        threads: threads of each actor, and the CPUs that it reserves. With a GPU it reserves none, so that all CPUs
            stay free for reading.
        gpu: whether each actor has a GPU. If so, tasks on the CPUs read and decode ahead of the actors; if not, each
            actor reads its own files, since the actors take all CPUs.
        why: the decisions and their reasons as text, by name.
    """

    engine: EngineName
    actors: int
    threads: int
    gpu: bool
    why: dict[str, str] = field(compare=False, default_factory=dict)


def plan_training(
    batch_size: int,
    workers: int | str | None = None,
    cpus_per_worker: int | None = None,
    gpu: bool | None = None,
    may_grow: bool = False,
) -> TrainPlan:
    """Decides the number and size of the workers of a training run.

    Images are decoded before the workers start, so the workers may take every CPU.

    Args:
        batch_size: the global batch, in images.
        workers: number of workers; "MIN:MAX" for as many of them as the cluster has room for at a time; None for as
            many as fit into it now, with at least 8 images of a batch each.
        cpus_per_worker: CPUs of each worker; None for equal shares.
        gpu: True, False, or None to use GPUs if the cluster has any.
        may_grow: an autoscaler may add GPUs.

    Raises:
        UsageError: the request exceeds the cluster, or the batch has fewer images than there are workers.
    """
    if isinstance(workers, str):
        return _plan_elastic(batch_size, workers, cpus_per_worker, gpu, may_grow)
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


def _plan_elastic(
    batch_size: int, workers: str, cpus_per_worker: int | None, gpu: bool | None, may_grow: bool
) -> TrainPlan:
    """Plans as many workers as there is room for now, from the least number to the most."""
    fewest, most = map(int, workers.split(":"))
    if most > batch_size:
        raise UsageError(
            f"received --batch-size {batch_size} for up to {most} workers, expected at least one image each"
        )
    for count in range(most, fewest, -1):
        with contextlib.suppress(UsageError):
            return replace(plan_training(batch_size, count, cpus_per_worker, gpu), bounds=(fewest, most))
    return replace(plan_training(batch_size, fewest, cpus_per_worker, gpu, may_grow), bounds=(fewest, most))


def plan_scoring(parts: Mapping[EngineName, int], gpu: bool | None = None, may_grow: bool = False) -> ScorePlan:
    """Decides how a scoring run uses the cluster: one actor for each CPU or GPU, and at most one for each part.

    Without GPUs, actors read their own files and no other tasks run, so actors may take every CPU. Each has one thread,
    so that the result is the same to the last bit on any number of CPUs; parallelism comes from the number of actors.

    Args:
        parts: number of parts to score with each allowed engine, the fastest engine on CPUs first.
        gpu: True, False, or None to use GPUs if the cluster has any and TensorFlow is allowed.
        may_grow: an autoscaler may add GPUs.

    Raises:
        UsageError: the cluster has no CPU or GPU, or no allowed engine runs on it.
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
    """Size of the smallest object store of a node, in bytes; one copy of a data set must fit into it."""
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(min((size for size in stores if size), default=0))


def object_store_use() -> tuple[int, int] | None:
    """Bytes in use of all nodes' object stores, and their size; None if this process is not connected to Ray."""
    if not ray.is_initialized():
        return None
    size = ray.cluster_resources().get("object_store_memory", 0)
    return int(size - ray.available_resources().get("object_store_memory", 0)), int(size)


def _per_node(resource: str) -> list[int]:
    """Amount of a resource on each living node that has any."""
    amounts = [int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"]]
    return [amount for amount in amounts if amount]
