"""Training: a catalog and a config in, a model bundle out, data-parallel on Ray Train.

A Ray Data job decodes every image once into Ray's shared memory; then the workers start, each a replica of the model
(`catdog.training.trainer`), and after every epoch one of them leaves a checkpoint that any later start continues from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from catdog import cluster, resources, stall, storage, tables
from catdog.data import catalog, web
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.evaluation import calibration
from catdog.events import (
    DecodingStarted,
    EventHandler,
    MemberStarted,
    PortsExposed,
    Progress,
    RunOpened,
    RunWritten,
)
from catdog.inference import bundle, export
from catdog.inference.engines import set_up
from catdog.inference.provenance import Provenance
from catdog.lease import Lease
from catdog.models import pretrained, registry
from catdog.run_directory import RunDirectory
from catdog.training import corrections, distillation, feature_cache, launch, orders, stores
from catdog.training.bundle_writer import training_record
from catdog.training.config import ResolvedConfig, default_options, resolve
from catdog.training.int8_version import describe_int8, is_int8_due, make_int8
from catdog.training.job import SplitData, TrainResult, WorkerJob
from catdog.training.request import PLACE_FIELDS, SHAPE_FIELDS, TrainConfig
from catdog.waiting import wait_for


def train_model(
    config: TrainConfig | ResolvedConfig,
    on_event: EventHandler | None = None,
    patience: float = 0.0,
    data: Catalog | None = None,
) -> TrainResult:
    """Trains a model and writes its bundle to `RUNS/NAME/model/`.

    Args:
        config: what to do, as it is asked for or as it was resolved.
        on_event: called in this process with each `events.TrainingEvent`.
        patience: how long to wait for another process that works on the run, in seconds.
        data: the catalog, if it was read or made already.

    Returns:
        Where the bundle is, and its validation figures.

    Raises:
        UsageError: options that cannot be.
        CatdogError: the data, the cluster or the training failed, and the last checkpoint stays; or another process
            works on the run.
    """
    on_event = on_event or (lambda _event: None)
    resolved = config if isinstance(config, ResolvedConfig) else resolve(config)
    data = data or catalog.read_catalog(resolved.data.uri)
    trained = _train_members if resolved.run.members else _train_one
    return _train_exclusively(trained, resolved, data, on_event, patience)


def _train_exclusively(
    trained: Callable[[ResolvedConfig, Catalog, EventHandler, Lease], TrainResult],
    config: ResolvedConfig,
    data: Catalog,
    on_event: EventHandler,
    patience: float = 0.0,
    nested: bool = False,
) -> TrainResult:
    """Trains while no other process may work on the run; a finished run to resume needs no training.

    Args:
        trained: `_train_one` or `_train_members`.
        config: resolved.
        data: the catalog.
        on_event: as for `train_model`.
        patience: as for `train_model`.
        nested: the run is a member of one around it.
    """
    config = _with_own_order(config)
    corrections.read_corrections(config.data.leave_out, data)
    distillation.require_unseen(distillation.find_teacher(config, data), distillation.judging_rows(data))
    finished = _check_run(config, data, nested)
    if finished is None or is_int8_due(config):
        with RunDirectory(config.run.uri).hold("training", patience) as held:
            # Checked again: another process may have opened or finished it since.
            finished = _check_run(config, data, nested) or trained(config, data, on_event, held)
            if is_int8_due(config):
                make_int8(config, data, on_event)
    return dataclasses.replace(finished, int8=describe_int8(config.run.uri)) if config.validation.int8 else finished


def _with_own_order(config: ResolvedConfig) -> ResolvedConfig:
    """Gives a run to resume the order that it has, where none is asked for: by now its images may be kept elsewhere."""
    if not config.run.resume or config.data.shuffle is not None:
        return config
    before = RunDirectory(config.run.uri).read()
    return config if before is None else config.replace("data", shuffle=before["options"].get("shuffle"))


def _train_one(config: ResolvedConfig, data: Catalog, on_event: EventHandler, held: Lease) -> TrainResult:
    """Trains one model, unless there is no progress."""
    started = time.time()
    rows = {split: data.split(split) for split in ("train", "valid")}
    # Of the training split only: the images that judge a model must be neither selected nor changed.
    rows["train"] = corrections.correct_rows(rows["train"], corrections.read_corrections(config.data.leave_out, data))
    if len(pc.unique(rows["train"]["label"])) < 2:
        raise UsageError(
            f"--leave-out received {config.data.leave_out}, which leaves fewer than two classes to train on"
        )
    run, asked = RunDirectory(config.run.uri), config.resources
    advice = f"finished epochs are kept: run it again, with --resume --name {config.run.name} if it had begun"
    with cluster.connect(asked.address, asked.debug) as may_grow:
        try:
            with stall.watching(on_event, asked.stall_timeout, advice) as watch:
                return _train_on_cluster(config, data, rows, started, watch.event, may_grow, held)
        except CatdogError:
            # Ray Train's processes may hang at their own end, when nothing is left to be done.
            if not (isinstance(watch.last, RunWritten) and run.finished):
                raise
    return _read_result(run)


def _train_on_cluster(
    config: ResolvedConfig,
    data: Catalog,
    rows: dict[str, pa.Table],
    started: float,
    on_event: EventHandler,
    may_grow: bool,
    held: Lease,
) -> TrainResult:
    """Decodes the images, fits the head if that is asked for, and starts the workers."""
    uris = pa.chunked_array([chunk for table in rows.values() for chunk in table["uri"].chunks])
    plan = plan_resources(config, may_grow)
    workers = plan.workers if plan.bounds is None else config.resources.workers
    config = config.replace("resources", workers=workers, cpus_per_worker=plan.cpus_per_worker, gpu=plan.gpu)
    wait_for([{"CPU": 1}], on_event, config.resources.wait)  # for what comes before the workers
    weights, teacher = load_weights(config), distillation.load_teacher(config)
    store = stores.choose_store(config.resources.store, uris, config.model.image_size)
    in_pieces = store.name == "files" and storage.is_packed(uris[0].as_py())
    config = config.replace("data", shuffle=config.data.shuffle or ("blocks" if in_pieces else "full"))
    # Only now, when nothing more can be refused, is an old run deleted or a name taken.
    _open_run(config, data, on_event)
    on_event(DecodingStarted(len(uris), config.run.uri, "" if store.name == "decoded" else store.why))
    head = None
    if config.optimizer.head_first:
        head = _fit_head(config, data, rows["train"], weights, on_event, may_grow)
    loaded = stores.load_images(rows, config.model.image_size, store.name, on_event)
    splits = {split: _split_data(data, table, loaded[split]) for split, table in rows.items()}
    made_by = [Provenance.of(rows["train"], rows["valid"]), *([teacher.provenance] if teacher else [])]
    wait_for([plan.worker_resources] * plan.fewest, on_event, config.resources.wait)
    addresses = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    if plan.gpu and plan.workers > 1 and (public := list(filter(web.is_public, addresses))):
        on_event(PortsExposed(public))
    on_event(Progress("starting", 0, plan.workers))
    with launch.listening(on_event) as events:
        return launch.run_workers(
            WorkerJob(
                config,
                plan,
                splits["train"],
                splits["valid"],
                weights,
                head,
                prior=float(np.clip(splits["train"].labels.mean(), 0.01, 0.99)),
                class_names=data.class_names,
                catalog_fingerprint=data.fingerprint,
                provenance=Provenance.union(made_by),
                lease=held,
                events=events,
                started=started,
                teacher=teacher,
            )
        )


def plan_resources(config: ResolvedConfig, may_grow: bool) -> resources.TrainPlan:
    """Decides the workers of a run on the current cluster.

    Args:
        config: resolved.
        may_grow: the cluster may start more nodes.

    Raises:
        UsageError: the cluster cannot give what was asked for.
    """
    asked = config.resources
    return resources.plan_training(
        config.data.batch_size,
        asked.workers,
        asked.cpus_per_worker,
        asked.gpu,
        may_grow,
        asked.gpus_per_worker,
    )


def _split_data(data: Catalog, rows: pa.Table, loaded: stores.LoadedImages) -> SplitData:
    at = pc.index_in(rows["key"], data.table["key"].combine_chunks()).to_numpy()
    labels = rows["label"].to_numpy().astype(np.int64)
    return SplitData(loaded, rows["key"], labels, orders.block_of(at.astype(np.int64)))


def cache_features(
    config: ResolvedConfig,
    data: Catalog,
    rows: pa.Table,
    weights: ray.ObjectRef | None,
    views: list[str],
    on_event: EventHandler,
    may_grow: bool,
) -> str:
    """Computes the features of a run's frozen backbone that are not in its cache yet.

    Args:
        config: of the run.
        data: the catalog.
        rows: of the catalog, the images.
        weights: the backbone's, from `load_weights`.
        views: how each image is shown.
        on_event: as for `train_model`.
        may_grow: the cluster may start more nodes.

    Returns:
        URI of the folder of the cache.
    """
    spec, seed, asked = config.model.spec, config.run.seed, config.resources
    folder = feature_cache.cache_folder(config.run.features, data, spec, weights, seed)
    feature_cache.compute_features(
        rows, spec, weights, seed, views, folder, on_event, asked.gpu, may_grow, asked.wait, asked.gpus_per_worker
    )
    return folder


def _fit_head(
    config: ResolvedConfig,
    data: Catalog,
    rows: pa.Table,
    weights: ray.ObjectRef | None,
    on_event: EventHandler,
    may_grow: bool,
) -> list[np.ndarray]:
    """Fits the head to the frozen backbone's features of the training images; returns its variables' values."""
    views = ["identity"] if config.optimizer.epochs else config.validation.views
    folder = cache_features(config, data, rows, weights, views, on_event, may_grow)
    return feature_cache.fit_head(folder, rows, config.model.spec, config.run.seed, views, config.optimizer.epochs > 0)


def _train_members(config: ResolvedConfig, data: Catalog, on_event: EventHandler, held: Lease) -> TrainResult:
    """Trains each member as a run of its own in `RUNS/NAME/member-N`, then makes one bundle of them."""
    run = RunDirectory(config.run.uri)
    members = member_configs(config)
    results = []
    with cluster.connect(config.resources.address, config.resources.debug) as may_grow:
        # Before an old run is deleted, and before the first member is trained.
        for member in members:
            plan_resources(member, may_grow)
        for member in {member.model: member for member in members if member.model != members[0].model}.values():
            load_weights(member)  # the first one's are asked for at once
        for member in {member.train_size: member for member in members}.values():
            distillation.load_teacher(member)
        _open_run(config, data, on_event)
        for number, member in enumerate(members, 1):
            on_event(MemberStarted(number, len(members)))
            member = member.replace("run", resume=RunDirectory(member.run.uri).exists)
            results.append(_train_exclusively(_train_one, member, data, on_event, nested=True))
    valid = [tables.read_table(RunDirectory(member.run.uri).valid) for member in members]
    logits = np.mean([table["logit"].to_numpy() for table in valid], axis=0)
    labels, keys = valid[0]["label"].to_numpy(), valid[0]["key"].to_pylist()
    figures, temperature, clip = calibration.judge_and_calibrate(labels, logits, keys, config.validation.calibrate)
    validation = {"epoch": max(int(result.validation["epoch"]) for result in results), **figures}
    chosen_on = "validation" if any(result.chosen_on == "validation" for result in results) else "none"
    at = valid[0].column_names.index("logit")
    held.require_held()
    tables.write_table(run.valid, valid[0].set_column(at, "logit", pa.array(logits)))
    infos = [bundle.read_info(result.bundle).info for result in results]
    seconds = sum(info.training.get("seconds", 0.0) for info in infos)
    export.assemble_bundle(
        run.model,
        [result.bundle for result in results],
        **infos[0].model_dump(include={"image_size", "class_names", "views", "calibration", "prior"}),
        architecture=bundle.merged_architecture(infos),
        temperature=temperature,
        clip=clip,
        validation=validation,
        chosen_on=chosen_on,
        catalog_fingerprint=data.fingerprint,
        seed=config.run.seed,
        training={
            **training_record(config),
            "history": [],
            "members": [info.training for info in infos],
            **({"teacher": infos[0].training["teacher"]} if config.optimizer.teacher else {}),
            "seconds": seconds,
        },
    )
    return TrainResult(config.run.uri, run.model, validation, chosen_on, max(result.epochs for result in results), [])


def member_configs(config: ResolvedConfig) -> list[ResolvedConfig]:
    """The runs of a run's members, in `RUNS/NAME/member-N`; empty if it trains one model."""
    own = {"members": [], "runs": config.run.uri, "overwrite": False, "resume": False, "int8": False}
    options = config.options() | own
    return [
        resolve(TrainConfig(**(options | difference | {"name": f"member-{number}"})))
        for number, difference in enumerate(config.run.members, 1)
    ]


def stored_config(runs: str, name: str) -> dict[str, Any]:
    """The options a run was started with, for `--resume`.

    Raises:
        UsageError: there is no such run.
        CatdogError: what it says of itself is damaged.
    """
    return RunDirectory(storage.join(storage.absolute_output(runs, "--runs"), name)).require_run(runs)["options"]


def _computed(config: ResolvedConfig) -> dict[str, Any]:
    """The options that decide what a run computes; the same run has the same ones, wherever it goes on."""
    return {name: value for name, value in config.options().items() if name not in PLACE_FIELDS}


def _inputs(config: ResolvedConfig, data: Catalog) -> dict[str, str | None]:
    """Digests of the files that a run reads."""
    leave_out = config.data.leave_out
    listed = hashlib.sha256(storage.read_bytes(leave_out)).hexdigest() if leave_out else None
    teacher = distillation.find_teacher(config, data)
    return {
        "catalog_fingerprint": data.fingerprint,
        "leave_out_sha256": listed,
        "teacher_fingerprint": bundle.fingerprint_of(teacher.info) if teacher else None,
    }


def _open_run(config: ResolvedConfig, data: Catalog, on_event: EventHandler) -> None:
    """Writes down what the run is, deleting the old one of its name if that was asked for."""
    kept = {"data", *SHAPE_FIELDS}
    options = {name: value for name, value in config.options().items() if name not in PLACE_FIELDS or name in kept}
    strangers = RunDirectory(config.run.uri).open({"options": options} | _inputs(config, data), config.run.overwrite)
    on_event(RunOpened(config.run.uri, strangers))


def _check_run(config: ResolvedConfig, data: Catalog, nested: bool = False) -> TrainResult | None:
    """Makes sure that the run's folder may be written: new, to be overwritten, or resumed with options and data it had.

    Returns:
        The result, where the run to resume is finished already.
    """
    run = RunDirectory(config.run.uri)
    if not config.run.resume:
        run.require_free(config.run.overwrite, nested)
        return None
    before = run.require_run(config.run.runs)
    usual = default_options()  # what a run of a version without an option was computed with
    for name, value in _computed(config).items():
        if (then := before["options"].get(name, usual.get(name))) != value:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"--resume: run {config.run.name!r} was started with {option} {then}, received {value}; resume "
                "it as it was, or start another"
            )
    what = {
        "catalog_fingerprint": f"the data set in {config.data.uri}",
        "leave_out_sha256": f"the list {config.data.leave_out}",
        "teacher_fingerprint": f"the teacher {config.optimizer.teacher}",
    }
    for name, digest in _inputs(config, data).items():
        if before.get(name) != digest:
            raise UsageError(f"--resume: {what[name]} has changed since {config.run.name!r} was started")
    return _read_result(run) if run.finished else None


def _read_result(run: RunDirectory) -> TrainResult:
    """The result of a finished run, as its bundle has it."""
    uri, info = bundle.read_info(run.uri)
    history = info.training["history"]
    epochs = max(len(history), int(info.validation["epoch"]))
    return TrainResult(run.uri, uri, info.validation, info.chosen_on, epochs, history)


def load_weights(config: ResolvedConfig) -> ray.ObjectRef | None:
    """Puts the backbone's weights where every worker can read them.

    Args:
        config: resolved.

    Returns:
        A reference to the bytes of a Keras weights file, or None for random weights.

    Raises:
        CatdogError: they could not be read or downloaded.
    """
    if config.model.weights == "none":
        return None
    if config.model.weights == "imagenet":
        # In a process of its own, so that later tasks can still set TensorFlow's number of threads.
        reference = ray.remote(max_calls=1)(_download).remote(config.model.spec)
        error = ray.get(reference)[1]
        if error:
            raise CatdogError(error)
        return ray.put(ray.get(reference)[0])
    try:
        return ray.put(storage.read_bytes(config.model.weights))
    except OSError as error:
        raise CatdogError(f"--weights: could not read {config.model.weights}: {error.strerror or error}") from error


def _download(spec: registry.ModelSpec) -> tuple[bytes, str]:
    """Runs on the cluster, which may have the internet that this process lacks."""
    set_up(1, gpu=False)
    try:
        return pretrained.download_imagenet(spec), ""
    except CatdogError as error:
        return b"", str(error)
