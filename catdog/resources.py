"""What a run asks of the cluster: how many workers or actors, with which CPUs, GPUs and threads each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import ray

from catdog.choices import EngineName
from catdog.errors import UsageError

# Fewer images than this in a worker's share of a batch, and starting the worker costs more than it brings.
_MIN_SHARE = 8


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


def _per_node(resource: str) -> list[int]:
    """How much of a resource each living node has, nodes without it left out."""
    amounts = [int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"]]
    return [amount for amount in amounts if amount]
