"""The training workers: Ray Train starts them, they find each other, and their events come back to this process."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState, RunningState
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from catdog import cluster, run_directory, storage, waiting
from catdog.errors import CatdogError
from catdog.events import EventHandler, Waiting
from catdog.training import distributed, trainer
from catdog.training.job import Failure, TrainResult, WorkerJob

_MAX_RESTARTS = 3
# Seconds between messages about workers that cannot be placed.
_SAY_AGAIN = 30.0
# gRPC reads it instead of no_proxy, where it is set.
_GRPC_EXEMPT = "no_grpc_proxy"


class _WorkersBackend(Backend):
    """Makes the workers known to each other.

    Ray's own backend for TensorFlow imports it, here and in the controller: 10 s of CPU.
    """

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, _WorkersConfig)
        gpu = backend_config.gpu
        addresses = worker_group.execute(_free_address if gpu else distributed.listen)
        introduce: Callable[..., None] = _introduce if gpu else distributed.connect
        key = {} if gpu else {"key": secrets.token_bytes(32)}
        ray.get(
            [
                worker_group.execute_single_async(rank, introduce, rank, addresses, **key)
                for rank in range(len(addresses))
            ]
        )


@dataclass
class _WorkersConfig(BackendConfig):
    gpu: bool

    @property
    def backend_cls(self) -> type[Backend]:
        return _WorkersBackend


class _Trainer(DataParallelTrainer):
    """Ray's trainer without what costs time here and is of no use."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leaves SIGINT to Python: Ray would train on for seconds to end in order, which no checkpoint needs."""

    def _create_default_callbacks(self) -> list[Any]:
        """Leaves out the one for datasets of Ray Data, which starts a process, and loads Ray Data in every worker."""
        return [one for one in super()._create_default_callbacks() if not isinstance(one, DatasetsCallback)]


class _Waiter(ControllerCallback):
    """Says what a run waits for whose workers died and cannot be started again, and ends it after a limit.

    It lives in the process of Ray Train's controller, which would try for ever without a word.
    """

    def __init__(self, job: WorkerJob) -> None:
        self._events, self._limit = job.events, job.config.resources.wait
        self._bundles = [job.plan.worker_resources] * job.plan.fewest
        self._name = job.config.run.name
        self._since: float | None = None
        self._said = -_SAY_AGAIN
        self._lost = ""

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, RunningState):
            self._since, self._said, self._lost = None, -_SAY_AGAIN, "a worker was lost; "
        elif self._since is None and isinstance(current_state, RestartingState | ReschedulingState):
            self._since = time.monotonic()
        # With a fixed number of workers the second state follows a failed attempt to place them; with a variable one
        # the first state lasts until there are enough.
        waits = isinstance(current_state, ReschedulingState) or (
            isinstance(current_state, RestartingState) and isinstance(previous_state, RestartingState)
        )
        if not waits or self._since is None:
            return
        seconds = time.monotonic() - self._since
        if self._limit is not None and seconds >= self._limit:
            why = waiting.describe_need(self._bundles)
            raise CatdogError(
                f"{self._lost}gave up after {self._limit:g} s (--wait) of {why}; --resume --name {self._name} "
                "continues from the last epoch"
            )
        if seconds - self._said >= _SAY_AGAIN:
            self._said = seconds
            self._events.put(Waiting(seconds, f"{self._lost}{waiting.describe_need(self._bundles)}", self._limit))


def _free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{listener.getsockname()[1]}"


def _introduce(rank: int, addresses: list[str]) -> None:
    """Tells TensorFlow's strategy where the others are."""
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
    # Behind a proxy, which knows nothing of workers, they would wait for each other forever.
    kept = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    exempt = {"no_proxy": kept, "NO_PROXY": kept, _GRPC_EXEMPT: os.environ.get(_GRPC_EXEMPT) or kept}
    hosts = list(dict.fromkeys(address.rpartition(":")[0] for address in addresses))
    os.environ.update({name: ",".join([*filter(None, [before]), *hosts]) for name, before in exempt.items()})


def run_workers(job: WorkerJob) -> TrainResult:
    """Runs `trainer.run_worker` in every worker.

    Args:
        job: what to train.

    Raises:
        CatdogError: training failed; the last checkpoint stays.
    """
    config, plan = job.config, job.plan
    ray_trainer = _Trainer(
        _run_worker,
        train_loop_config={"job": job},  # Ray takes a dict only
        backend_config=_WorkersConfig(plan.gpu),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.bounds or plan.workers,
            use_gpu=plan.gpu,
            resources_per_worker=plan.worker_resources,
            placement_strategy="SPREAD",
        ),
        run_config=ray.train.RunConfig(
            # For a bucket ours, which knows the server also where a worker's environment does not.
            storage_filesystem=None if storage.is_local(config.run.uri) else storage.resolve(config.run.uri)[0],
            storage_path=storage.resolve(config.run.uri)[1],
            name=run_directory.CHECKPOINTS,
            failure_config=ray.train.FailureConfig(max_failures=_MAX_RESTARTS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[_Waiter(job)],
        ),
    )
    later = f"--debug shows why, and --resume --name {config.run.name} continues from the last epoch"
    try:
        with cluster.ray_errors(f"training failed ({{cause}}); {later}"):  # of Ray itself, such as its controller
            outcome = ray_trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        if isinstance(failure := getattr(error, "controller_failure", None), CatdogError):
            raise failure from error
        raise CatdogError(
            f"training failed, also after {_MAX_RESTARTS} restarts ({cluster.cause(error)}); {later}"
        ) from error
    if isinstance(outcome, Failure):
        raise CatdogError(outcome.message)
    return outcome


def _run_worker(options: dict[str, WorkerJob]) -> TrainResult | Failure | None:
    return trainer.run_worker(options["job"])


@contextlib.contextmanager
def listening(on_event: EventHandler) -> Iterator[Any]:
    """A queue that workers put events in and a thread of this process hands to `on_event`."""
    from ray.util.queue import Empty, Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this node, because another one may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    over = threading.Event()

    def listen() -> None:
        while True:
            last = over.is_set()
            with contextlib.suppress(Empty, ray.exceptions.RayError):
                while True:
                    on_event(queue.get(timeout=None if last and not queue.empty() else 0.3))
            if last:
                return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield queue
    except (KeyboardInterrupt, SystemExit):
        # Nobody waits for events any more, nor for the actor to come up.
        ray.kill(queue.actor, no_restart=True)
        raise
    finally:
        over.set()
        thread.join(timeout=10)
        queue.shutdown(force=True)
