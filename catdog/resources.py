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
# Ray counts GPUs in these.
_GPU_UNITS = 10_000


@dataclass(frozen=True)
class TrainPlan:
    """Resources of a training run.

    Attributes:
        workers: Ray Train workers, one replica each.
        cpus_per_worker: CPUs and TensorFlow threads of each worker.
        gpu: whether each worker has a GPU.
        gpus_per_worker: how much of one, in (0, 1], if so.
        bounds: the least and the most workers, if their number may change while the run goes on; `workers` is then how
            many the cluster has room for now.
    """

    workers: int
    cpus_per_worker: int
    gpu: bool
    bounds: tuple[int, int] | None = None
    gpus_per_worker: float = 1.0

    @property
    def fewest(self) -> int:
        """The least number of workers."""
        return self.bounds[0] if self.bounds else self.workers

    @property
    def worker_resources(self) -> dict[str, float]:
        """The CPUs and GPUs of each worker, as Ray counts them."""
        return {"CPU": float(self.cpus_per_worker)} | ({"GPU": self.gpus_per_worker} if self.gpu else {})


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
        gpus_per_actor: how much of one, in (0, 1], if so.
        why: the decisions and their reasons as text, by name.
    """

    engine: EngineName
    actors: int
    threads: int
    gpu: bool
    gpus_per_actor: float = 1.0
    why: dict[str, str] = field(compare=False, default_factory=dict)

    @property
    def actor_resources(self) -> dict[str, float]:
        """The CPUs or GPUs of each actor, as Ray counts them."""
        return {"GPU": self.gpus_per_actor} if self.gpu else {"CPU": float(self.threads)}


def plan_training(
    batch_size: int,
    workers: int | str | None = None,
    cpus_per_worker: int | None = None,
    gpu: bool | None = None,
    may_grow: bool = False,
    gpus_per_worker: float = 1.0,
) -> TrainPlan:
    """Decides the number and size of the workers of a training run.

    Images are decoded before the workers start, so the workers may take every CPU.

    Args:
        batch_size: the global batch, in images.
        workers: number of workers; "MIN:MAX" for as many of them as the cluster has room for at a time; None for as
            many as fit into it now, with at least 8 images of a batch each, or for one with a part of a GPU.
        cpus_per_worker: CPUs of each worker; None for equal shares, or one with a GPU.
        gpu: True, False, or None to use GPUs if the cluster has any.
        may_grow: an autoscaler may add GPUs.
        gpus_per_worker: how much of a GPU each worker takes, in (0, 1]. Less than one asks for GPUs, as `gpu` does.

    Raises:
        UsageError: the request exceeds the cluster, or the batch has fewer images than there are workers.
    """
    if isinstance(workers, str):
        return _plan_elastic(batch_size, workers, cpus_per_worker, gpu, may_grow, gpus_per_worker)
    cpus, gpus = _per_node("CPU"), _per_node("GPU")
    if not cpus:
        raise UsageError("the cluster has no CPU to give; expected at least one")
    gpu = bool(gpus) or gpus_per_worker < 1 if gpu is None else gpu
    if gpu:
        share = cpus_per_worker or 1
        room, needed = count_room(share, gpus_per_worker), in_words({"CPU": share, "GPU": gpus_per_worker})
        usual = min(room, max(1, batch_size // _MIN_SHARE)) if gpus_per_worker == 1 else 1
        count = workers or (usual if room else 0)
        if not count and not gpus:
            hint = "give --workers N to wait for N of them" if may_grow else "expected at least one; use --cpu"
            option = "--gpu" if gpus_per_worker == 1 else f"gpus_per_worker={gpus_per_worker:g}"
            raise UsageError(f"{option} received, but the cluster has no GPU; {hint}")
        if not count:
            raise UsageError(f"no node has {needed} for a worker (GPUs of the nodes: {_listed(gpus)}); use --cpu")
        if count > room and not may_grow:
            raise UsageError(f"received --workers {count} with {needed} each, but the cluster holds {room}")
    else:
        share = cpus_per_worker or 1
        room = count_room(share)
        count = workers or min(room, max(1, batch_size // _MIN_SHARE))
        if count > room:
            raise UsageError(
                f"received --workers {count} with {in_words({'CPU': share})} each, but the cluster holds {room} "
                f"(CPUs of its nodes: {_listed(cpus)}); ask for fewer"
            )
        if cpus_per_worker is None:
            share = next(s for s in range(max(cpus), 0, -1) if sum(n // s for n in cpus) >= count)
    if count > batch_size:
        raise UsageError(f"received --batch-size {batch_size} for {count} workers, expected at least one image each")
    return TrainPlan(count, share, gpu, None, gpus_per_worker)


def _plan_elastic(
    batch_size: int,
    workers: str,
    cpus_per_worker: int | None,
    gpu: bool | None,
    may_grow: bool,
    gpus_per_worker: float,
) -> TrainPlan:
    """Plans as many workers as there is room for now, from the least number to the most."""
    fewest, most = map(int, workers.split(":"))
    if most > batch_size:
        raise UsageError(
            f"received --batch-size {batch_size} for up to {most} workers, expected at least one image each"
        )
    for count in range(most, fewest, -1):
        with contextlib.suppress(UsageError):
            plan = plan_training(batch_size, count, cpus_per_worker, gpu, False, gpus_per_worker)
            return replace(plan, bounds=(fewest, most))
    plan = plan_training(batch_size, fewest, cpus_per_worker, gpu, may_grow, gpus_per_worker)
    return replace(plan, bounds=(fewest, most))


def plan_scoring(
    parts: Mapping[EngineName, int], gpu: bool | None = None, may_grow: bool = False, gpus_per_actor: float = 1.0
) -> ScorePlan:
    """Decides how a scoring run uses the cluster: one actor for each CPU or GPU, and at most one for each part.

    Without GPUs, actors read their own files and no other tasks run, so actors may take every CPU. Each has one thread,
    so that the result is the same to the last bit on any number of CPUs; parallelism comes from the number of actors.

    Args:
        parts: number of parts to score with each allowed engine, the fastest engine on CPUs first.
        gpu: True, False, or None to use GPUs if the cluster has any and TensorFlow is allowed.
        may_grow: an autoscaler may add GPUs.
        gpus_per_actor: how much of a GPU each actor needs, in (0, 1]; as many as that allows share each GPU in equal
            parts. Less than one asks for GPUs, as `gpu` does.

    Raises:
        UsageError: the cluster has no CPU or GPU, or no allowed engine runs on it.
    """
    gpus, cpus = _per_node("GPU"), _per_node("CPU")
    gpu = (bool(gpus) and "tensorflow" in parts) or gpus_per_actor < 1 if gpu is None else gpu
    on_one = _actors_on_a_gpu(gpus_per_actor) if gpu else 1
    units = (sum(gpus if gpu else cpus) or int(gpu and may_grow)) * on_one
    if not units:
        raise UsageError(f"the cluster has no {'GPU' if gpu else 'CPU'}; expected at least one")
    if not cpus and not may_grow:
        raise UsageError("the cluster has no CPU to read images with; expected at least one")
    if gpu and "tensorflow" not in parts:
        option = "--gpu" if gpus_per_actor == 1 else "--gpus-per-actor"
        raise UsageError(
            f"{option} received with --engine {next(iter(parts))}, which runs on CPUs; leave one of them out"
        )
    engine: EngineName = "tensorflow" if gpu else next(iter(parts))
    actors = max(1, min(units, parts[engine]))
    chosen = {
        (True, "tensorflow"): "the cluster has GPUs",
        (False, "onnx"): "the fastest on CPUs, and checked against Keras when the model was saved",
        (False, "tensorflow"): "asked for, or the model has no verified ONNX file",
    }[gpu, engine]
    kind = f"{'one' if on_one == 1 else f'up to {on_one}'} a {'GPU' if gpu else 'CPU'}"
    # Equal parts that leave nothing: Ray adds up what is left of a node's GPUs, and would keep an actor waiting for it.
    part = _GPU_UNITS // on_one / _GPU_UNITS
    if on_one > 1:
        kind += f", with {in_words({'GPU': part})} each"
    why = {
        "engine": f"{engine}: {chosen}",
        "actors": f"{actors}: {kind} (nodes have {_listed(gpus if gpu else cpus)}), {parts[engine]} parts",
        "threads": "1 an actor: the bits of a part do not depend on how many CPUs there are",
        "reading": (
            f"in tasks on {sum(cpus)} CPUs, ahead of the actors"
            if gpu
            else "in each actor, a batch ahead of the model: no CPU is left for others, so none is waited for"
        ),
    }
    return ScorePlan(engine, actors, 1, gpu, part, why)


def count_room(cpus: int, gpus: float = 0.0) -> int:
    """How many workers all nodes have room for.

    Args:
        cpus: of each worker, from 1.
        gpus: how much of a GPU each worker takes, in (0, 1]; 0 for none.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = [int(has.get("CPU", 0)) // cpus for has in alive]
    if gpus:
        on_one = _actors_on_a_gpu(gpus)
        room = [min(most, int(has.get("GPU", 0)) * on_one) for most, has in zip(room, alive, strict=True)]
    return sum(room)


def _actors_on_a_gpu(gpus: float) -> int:
    """How many actors or workers that take so much of a GPU fit on one; none is spread over two."""
    return _GPU_UNITS // round(gpus * _GPU_UNITS)


def in_words(needed: Mapping[str, float]) -> str:
    """The CPUs and GPUs of a worker or an actor: "2 CPUs", "1 CPU and a GPU", "0.25 of a GPU"."""
    cpus, gpus = needed.get("CPU", 0), needed.get("GPU", 0)
    words = [f"{cpus:g} CPU{'s' * (cpus != 1)}"] if cpus else []
    return " and ".join([*words, *(["a GPU" if gpus == 1 else f"{gpus:g} of a GPU"] if gpus else [])])


def _listed(amounts: list[int]) -> str:
    return ", ".join(map(str, amounts)) or "none"


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
