"""Training: a catalog and a config in, a model bundle out, data-parallel on Ray Train.

A Ray Data job decodes every image once into Ray's shared memory; then the workers start, each a replica of the model
(`catdog.replica`), and after every epoch one of them leaves a checkpoint that any later start continues from.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from catdog import augment, bundle, catalog, cluster, features, ingest, models, replica, storage
from catdog.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.recipes import TrainConfig

CONFIG_NAME = "config.json"
_MAX_RESTARTS = 3
# A resumed run takes the workers it had, unless told otherwise: with others it differs by float noise and by
# batch-norm's share of the batch.
_SHAPE_FIELDS = frozenset({"workers", "cpus_per_worker", "gpu"})
# What may differ when a run is resumed. The data set is compared by its fingerprint, wherever it lies.
_PLACE_FIELDS = frozenset({"data", "runs", "features", "resume", "overwrite", "address", "debug"}) | _SHAPE_FIELDS

EventHandler = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """What training came to.

    Attributes:
        run: URI of the run.
        bundle: URI of the model bundle.
        validation: epoch, n, log_loss and accuracy of the kept weights.
        epochs: how many were run.
    """

    run: str
    bundle: str
    validation: dict[str, float | int]
    epochs: int


def train(config: TrainConfig, on_event: EventHandler | None = None) -> TrainResult:
    """Trains a model and writes its bundle to `RUNS/NAME/model/`.

    Args:
        config: what to do.
        on_event: called in this process with what happens: `{"kind": "decode" | "start" | "step" | "epoch", …}`.

    Returns:
        Where the bundle is, and its validation figures.

    Raises:
        UsageError: options that cannot be.
        CatdogError: the data, the cluster or the training failed; the last checkpoint stays.
    """
    config = config.resolve()
    on_event = on_event or (lambda _event: None)
    data = catalog.read(config.data)
    rows = {split: data.split(split) for split in ("train", "valid")}
    finished = _check_run(config, data)
    if finished is not None:
        return finished
    with cluster.connect(config.address, config.debug) as may_grow:
        plan = cluster.plan_training(config.batch_size, config.workers, config.cpus_per_worker, config.gpu, may_grow)
        config = config.model_copy(update=vars(plan))
        weights = _weights(config)
        ingest.require_memory(sum(table.num_rows for table in rows.values()), config.image_size or 0)
        # Only now, when nothing more can be refused, is an old run deleted or a name taken.
        _open_run(config, data)
        on_event({"kind": "decode", "images": sum(table.num_rows for table in rows.values()), "run": config.run})
        labels = {split: table["label"].to_numpy().astype(np.int64) for split, table in rows.items()}
        keys = {split: table["key"].to_pylist() for split, table in rows.items()}
        head = None
        if config.head_first:
            views = ["identity"] if config.epochs else ["identity", "mirror"]
            folder = features.cache(config.features or "", data, config.spec, weights, config.seed)
            features.compute(rows["train"], config.spec, weights, config.seed, views, folder, on_event)
            head = features.fit_head(folder, rows["train"], config.spec, config.seed, views)
        # Kept until the end: the blocks live as long as somebody holds the data set.
        decoded = {split: ingest.decode(table, config.image_size or 0) for split, table in rows.items()}
        with _listening(on_event) as events:
            outcome = _fit(
                config,
                {
                    "config": config,
                    "refs": {split: dataset.to_arrow_refs() for split, dataset in decoded.items()},
                    "labels": labels,
                    "keys": keys,
                    "hashes": {split: augment.key_hash(names) for split, names in keys.items()},
                    "weights": weights,
                    "head": head,
                    "prior": float(np.clip(labels["train"].mean(), 0.01, 0.99)),
                    "class_names": data.class_names,
                    "catalog_fingerprint": data.fingerprint,
                    "run": config.run,
                    "events": events,
                },
            )
    return TrainResult(config.run, outcome["bundle"], outcome["validation"], outcome["epochs"])


def stored_config(runs: str, name: str) -> dict[str, Any]:
    """The options a run was started with, for `--resume`.

    Raises:
        UsageError: there is no such run.
    """
    path = storage.join(storage.absolute_output(runs, "--runs"), name, CONFIG_NAME)
    if storage.kind(path) != "file":
        raise UsageError(f"--resume received, but there is no run {name!r} in {runs}; expected {path}")
    try:
        return json.loads(storage.read_bytes(path))["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise CatdogError(f"{path} is damaged ({error}); start the run again with --overwrite") from error


def _computed(config: TrainConfig) -> dict[str, Any]:
    """The options that decide what a run computes; the same run has the same ones, wherever it goes on."""
    # As it is read back from JSON, where a tuple is a list.
    return {name: value for name, value in config.model_dump(mode="json").items() if name not in _PLACE_FIELDS}


def _open_run(config: TrainConfig, data: Catalog) -> None:
    """Writes down what the run is, deleting the old one of its name if that was asked for."""
    path = storage.join(config.run, CONFIG_NAME)
    if config.overwrite:
        # config.json last: until then it can be seen that this is a run.
        for name in ("model", "checkpoints", "tensorboard"):
            storage.delete_folder(storage.join(config.run, name))
        storage.delete_folder(config.run)
    options = _computed(config) | {name: getattr(config, name) for name in {"data", *_SHAPE_FIELDS}}
    content = json.dumps({"options": options, "catalog_fingerprint": data.fingerprint}, indent=2) + "\n"
    if config.resume:
        storage.write_text(path, content)
    elif not storage.create_text(path, content):
        raise UsageError(
            f"--name received {config.name!r}, which another start of it has just taken; give another name"
        )


def _check_run(config: TrainConfig, data: Catalog) -> TrainResult | None:
    """Makes sure that the run's folder may be written: new, to be overwritten, or resumed with options and data it had.

    Returns:
        The result, where the run to resume is finished already.
    """
    path = storage.join(config.run, CONFIG_NAME)
    if not storage.exists(config.run):
        if config.resume:
            raise UsageError(f"--resume received, but there is no run {config.name!r} in {config.runs}")
        return None
    if config.overwrite:
        if not storage.exists(path):
            raise UsageError(
                f"--overwrite received, but {config.run} is not a run (it has no {CONFIG_NAME}); left alone"
            )
        return None
    if not config.resume:
        raise UsageError(
            f"--name received {config.name!r}, and {config.run} exists; give another name, --resume or --overwrite"
        )
    before = stored_config(config.runs, config.name or "")
    for name, value in _computed(config).items():
        if before.get(name) != value:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"--resume: run {config.name!r} was started with {option} {before.get(name)}, received {value}; resume "
                "it as it was, or start another"
            )
    fingerprint = json.loads(storage.read_bytes(path))["catalog_fingerprint"]
    if fingerprint != data.fingerprint:
        raise UsageError(f"--resume: the data set in {config.data} has changed since {config.name!r} was started")
    if not storage.exists(storage.join(config.run, "model", bundle.FILE_NAME)):
        return None
    uri, info = bundle.read_info(config.run)
    return TrainResult(config.run, uri, info.validation, len(info.training["history"]))


def _weights(config: TrainConfig) -> ray.ObjectRef | None:
    """Puts the backbone's weights where every worker can read them."""
    if config.weights == "none":
        return None
    if config.weights == "imagenet":
        reference = ray.remote(_download).remote(config.spec)
        error = ray.get(reference)[1]
        if error:
            raise CatdogError(error)
        return ray.put(ray.get(reference)[0])
    try:
        return ray.put(storage.read_bytes(config.weights or ""))
    except OSError as error:
        raise CatdogError(f"--weights: could not read {config.weights}: {error.strerror or error}") from error


def _download(spec: models.Spec) -> tuple[bytes, str]:
    """Runs on the cluster, which may have the internet that this process lacks."""
    try:
        return models.download_imagenet(spec), ""
    except CatdogError as error:
        return b"", str(error)


class _TensorFlowBackend(Backend):
    """Tells each worker where the others are, which is all that TensorFlow's strategy wants to know.

    Ray's own backend does so too, but importing it imports TensorFlow, here and in the controller: 10 s of CPU.
    """

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002
        addresses = worker_group.execute(_free_address)
        ray.get(
            [worker_group.execute_single_async(rank, _set_tf_config, addresses, rank) for rank in range(len(addresses))]
        )


class _TensorFlowConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _TensorFlowBackend


def _free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{listener.getsockname()[1]}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})


def _fit(config: TrainConfig, job: dict[str, Any]) -> dict[str, Any]:
    resources = {"CPU": config.cpus_per_worker or 1} | ({"GPU": 1} if config.gpu else {})
    trainer = DataParallelTrainer(
        replica.run,
        train_loop_config=job,
        backend_config=_TensorFlowConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=bool(config.gpu),
            resources_per_worker=resources,
            placement_strategy="SPREAD",
        ),
        run_config=ray.train.RunConfig(
            storage_path=config.run,
            name="checkpoints",
            failure_config=ray.train.FailureConfig(max_failures=_MAX_RESTARTS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        outcome = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise CatdogError(
            f"training failed, also after {_MAX_RESTARTS} restarts ({cluster.cause(error)}); --debug "
            f"shows why, and --resume --name {config.name} continues from the last epoch"
        ) from error
    if "error" in outcome:
        raise CatdogError(outcome["error"])
    return outcome


@contextlib.contextmanager
def _listening(on_event: EventHandler) -> Iterator[Any]:
    """A queue that workers put events in and a thread of this process hands to `on_event`."""
    from ray.util.queue import Empty, Queue

    queue = Queue(actor_options={"num_cpus": 0})
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
    finally:
        over.set()
        thread.join(timeout=10)
        queue.shutdown(force=True)
