"""What a training run would do, and how long that would take, measured on a few hundred of its own images.

The measurement runs the code of the run itself, in as many processes as there would be workers, and starts nothing
that stays. What the workers spend on waiting for each other, and saving the model, is not in the estimate.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from catdog import cluster, rng, storage
from catdog.data import catalog, images
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.events import EventHandler
from catdog.inference import engines
from catdog.inference.provenance import Provenance
from catdog.lease import Lease
from catdog.resources import TrainPlan, in_words
from catdog.run_directory import RunDirectory
from catdog.training import corrections, distillation, ingest, stores, train
from catdog.training.checkpoint import Precision, Progress
from catdog.training.config import ResolvedConfig, default_options, resolve
from catdog.training.distillation import Teacher
from catdog.training.distributed import WorkerGroup
from catdog.training.job import SplitData, WorkerJob
from catdog.training.precision import measure_steps, possible_precisions
from catdog.training.recipes import get_recipe
from catdog.training.replica import build_replica
from catdog.training.request import PLACE_FIELDS, TrainConfig
from catdog.training.step import training_step
from catdog.training.stores import LoadedImages, StoreChoice
from catdog.waiting import wait_for

_IMAGES = 256
_SECONDS = 3.0
_SHOWN_ELSEWHERE = frozenset({"recipe", "arch", "image_size", "weights", "name"})
_ALWAYS_SHOWN = frozenset({"epochs", "batch_size", "optimizer", "learning_rate"})


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        start: seconds in which a worker loads its libraries, builds the model and traces the first step.
        decode: images per second of one CPU.
        forward: images per second and view of all workers, predicted.
        train: images per second of all workers, trained on; 0 if no epoch is trained.
        precision: that the run would train in, where it would measure which is faster; else "".
        slower: images per second trained on in the other one, or 0.
    """

    start: float
    decode: float
    forward: float
    train: float
    precision: str = ""
    slower: float = 0.0

    @property
    def words(self) -> str:
        """The same for people."""
        trained = f", {self.train:,.0f} trained on" if self.train else ""
        other = "float32" if self.precision == "bfloat16" else "bfloat16"
        precision = f" in {self.precision} ({self.slower:,.0f} in {other})" if self.precision else ""
        return (
            f"{self.decode:,.0f} images/s decoded by a CPU, {self.forward:,.0f} predicted{trained} by all workers"
            f"{precision}"
        )


@dataclass(frozen=True)
class _Measured:
    """What one worker measured: as `Rates`, of itself; `train` by precision."""

    start: float
    decode: float
    forward: float
    train: dict[Precision, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingEstimate:
    """What a run would do.

    Attributes:
        what: by name, in words.
        seconds: by stage.
    """

    what: dict[str, str]
    seconds: dict[str, float]


def estimate_training(
    asked: TrainConfig, folds: int = 0, only: int | None = None, on_event: EventHandler | None = None
) -> TrainingEstimate:
    """Finds out what `train_model` would do; nothing is written.

    Args:
        asked: as for `train_model`.
        folds: K of a cross-validation with these options, or 0.
        only: the one fold of it that is trained, or None for all.
        on_event: told of `Waiting`.

    Raises:
        UsageError, CatdogError: as `train_model` would, for what can be known before it starts.
    """
    started = time.perf_counter()
    if asked.resume:
        raise UsageError("--dry-run and --resume received together; a dry run is of a new run")
    resolved = resolve(asked)
    data = catalog.read_catalog(resolved.data.uri)
    if not folds:
        RunDirectory(resolved.run.uri).require_free(resolved.run.overwrite)
    left_out = corrections.read_corrections(resolved.data.leave_out, data).left_out
    teacher = distillation.find_teacher(resolved, data)
    if not folds:  # else other images judge
        distillation.require_unseen(teacher, distillation.judging_rows(data))
    runs = train.member_configs(resolved) or [resolved]
    with cluster.connect(resolved.resources.address, resolved.resources.debug) as may_grow:
        connected = time.perf_counter() - started
        plans = [train.plan_resources(run, may_grow) for run in runs]
        counts = data.count("train") - len(left_out), data.count("valid")
        uris = pa.chunked_array([*data.split("train")["uri"].chunks, *data.split("valid")["uri"].chunks])
        store = stores.choose_store(resolved.resources.store, uris, resolved.model.image_size)
        wait_for([plans[0].worker_resources] * plans[0].workers, on_event or (lambda _: None), asked.wait)
        if folds:
            counts = sum(counts) * (folds - 1) // folds, sum(counts) // folds
        rates: dict[str, Rates] = {}
        for run, plan in zip(runs, plans, strict=True):  # members that differ in something else are as fast
            if (network := _network(run)) not in rates:
                steps = counts[0] // max(1, min(counts[0], run.data.batch_size)) * run.optimizer.epochs
                rates[network] = _measure(run, plan, data.split("train"), steps)
        cpus = int(ray.cluster_resources()["CPU"])
    seconds = {"starting Ray": connected}
    probe = bool(folds) and resolved.optimizer.head_first and not resolved.optimizer.epochs and not resolved.run.members
    missing = "fitting heads and saving models" if resolved.optimizer.head_first else "saving models"
    for run in runs * (1 if probe or only else folds or 1):
        for stage, value in _stages(run, counts, rates[_network(run)], cpus, probe).items():
            seconds[stage] = seconds.get(stage, 0.0) + value
    what = _describe(resolved, rates, plans[0], data, counts, folds, store)
    measured = "; ".join(found.words if len(rates) == 1 else f"{name}: {found.words}" for name, found in rates.items())
    return TrainingEstimate(what | {"measured": measured, "besides": f"{missing}, which were not measured"}, seconds)


def _network(config: ResolvedConfig) -> str:
    """The network of a run and whether it is trained, as it is told apart from those of other members."""
    frozen = config.model.freeze or not config.optimizer.epochs
    return f"{config.model.arch}{f' {config.model.alpha:g}' * (config.model.alpha != 1)}{', frozen' * frozen}"


def _stages(
    config: ResolvedConfig, counts: tuple[int, int], rates: Rates, cpus: int, only_features: bool
) -> dict[str, float]:
    """Seconds of each stage of one run, for training and validation images in `counts`."""
    train_images, valid_images = counts
    found = {}
    if config.optimizer.head_first:
        shown = sum(counts) if only_features else train_images
        views = 1 if config.optimizer.epochs else len(config.validation.views)
        found["features"] = rates.start + shown / (rates.decode * cpus) + shown * views / rates.forward
    if only_features:
        return found
    found["decoding"] = sum(counts) / (rates.decode * cpus)
    found["starting workers"] = rates.start
    if config.optimizer.epochs:
        found["training"] = config.optimizer.epochs * (train_images / rates.train + valid_images / rates.forward)
    found["last validation"] = valid_images * len(config.validation.views) / rates.forward
    return found


def _describe(
    config: ResolvedConfig,
    networks: Iterable[str],
    plan: TrainPlan,
    data: Catalog,
    counts: tuple[int, int],
    folds: int,
    store: StoreChoice,
) -> dict[str, str]:
    defaults = default_options()
    options = [
        f"{name}={_short(value, defaults.get(name))}"
        for name, value in config.options().items()
        if name not in PLACE_FIELDS | _SHOWN_ELSEWHERE and (name in _ALWAYS_SHOWN or value != defaults.get(name))
    ]
    kind = f"{folds} runs, one a fold, in {config.run.uri}" if folds else config.run.uri
    members = f", {len(config.run.members)} members one after the other" if config.run.members else ""
    return {
        "run": f"{kind}{members}{', whose run there is deleted first' * config.run.overwrite}",
        "recipe": f"{config.run.recipe}: {get_recipe(config.run.recipe).summary}",
        "model": f"{' + '.join(networks)} at {config.model.image_size} px, weights {config.model.weights}",
        "options": "  ".join(options),
        "data": f"{counts[0]:,} training and {counts[1]:,} validation images{' a fold' * bool(folds)} of "
        f"{' and '.join(data.class_names)} in {data.root}",
        "workers": f"{plan.workers} with {in_words(plan.worker_resources)} each, {config.data.batch_size} images "
        "a step",
        "images": store.why,
        "outputs": ", ".join(
            [storage.join(config.run.uri, "oof.parquet")]
            if folds
            else [RunDirectory(config.run.uri).model, RunDirectory(config.run.uri).tensorboard]
        ),
    }


def _short(value: Any, default: Any) -> Any:
    """An option as it is shown; of several values in one, those that are not the default."""
    if isinstance(value, dict) and isinstance(default, dict):
        return "{" + ", ".join(f"{name}={one}" for name, one in value.items() if one != default.get(name)) + "}"
    return value


def _measure(config: ResolvedConfig, plan: TrainPlan, rows: pa.Table, steps: int) -> Rates:
    """Measures in one process for each worker, all at the same time; `steps` is of the whole run."""
    weights, teacher = train.load_weights(config), distillation.load_teacher(config)
    gpus = plan.worker_resources.get("GPU", 0)
    task = ray.remote(max_calls=1, num_cpus=plan.cpus_per_worker, num_gpus=gpus)(_measure_worker)
    started = time.time()
    with cluster.ray_errors("measuring failed: {cause}"):
        spread = [rows.slice(rows.num_rows * rank // plan.workers, _IMAGES) for rank in range(plan.workers)]
        answers = ray.get([task.remote(config, plan, part, [weights], teacher, started, steps) for part in spread])
    found: list[_Measured] = []
    for answer in answers:
        if isinstance(answer, str):
            raise CatdogError(answer)
        found.append(answer)
    # As the run decides: of what every worker can do, what its slowest does fastest.
    common = [precision for precision in found[0].train if all(precision in one.train for one in found)]
    common.sort(key=lambda precision: min(one.train[precision] for one in found), reverse=True)
    trained = [sum(one.train[precision] for one in found) for precision in common]
    return Rates(
        start=max(one.start for one in found),
        decode=sum(one.decode for one in found) / len(found),
        forward=sum(one.forward for one in found),
        train=trained[0] if common else 0.0,
        precision=common[0] if len(common) > 1 else "",
        slower=trained[1] if len(common) > 1 else 0.0,
    )


def _measure_worker(
    config: ResolvedConfig,
    plan: TrainPlan,
    rows: pa.Table,
    weights: list[ray.ObjectRef | None],
    teacher: Teacher | None,
    started: float,
    run_steps: int,
) -> _Measured | str:
    """Measures one worker's share of a batch.

    Args:
        config: of the run.
        plan: of the run.
        rows: of the catalog, at most `_IMAGES`.
        weights: the backbone's; in a list, in which Ray leaves a reference as it is.
        teacher: of the run; its part of a step is measured with the rest.
        started: time at which all were asked for, in seconds since 1970.
        run_steps: of the whole run.

    Returns:
        What was measured, or what is wrong with the options.
    """
    engines.set_up(plan.cpus_per_worker, plan.gpu)
    import tensorflow as tf

    labels, keys = rows["label"].to_numpy().astype(np.int64), rows["key"]
    images.read_batch(rows["uri"][:8].to_pylist(), [config.model.image_size])  # whatever is slow only once
    before = time.perf_counter()
    decoded = images.read_batch(rows["uri"].to_pylist(), [config.model.image_size])
    decode_seconds = time.perf_counter() - before
    readable = np.flatnonzero(np.array(decoded.statuses) != "unreadable")
    if not len(readable):
        return f"none of {rows.num_rows} training images could be read, such as {rows['uri'][0]}"
    pixels = stores.DecodedStore(
        [decoded.pixels[config.model.image_size][readable]], _places(rows.num_rows, readable), []
    )
    share = max(1, config.data.batch_size // plan.workers)
    config = config.replace("data", batch_size=share).replace("run", members=[])
    group = WorkerGroup()
    try:
        replica = build_replica(_job(config, plan, keys, labels, weights[0], teacher), group, 100)
    except CatdogError as error:
        return str(error)
    batches = ingest.Batches(config, pixels, labels, rng.key_hash(keys), np.arange(len(keys)), 0, 1)
    precisions = possible_precisions(config, replica, group, run_steps, Progress())
    steps = {precision: training_step(config, replica, group, batches.size, precision) for precision in precisions}
    predict = tf.function(replica.predict, autograph=False)
    batch = pixels.take(readable[: batches.size])
    predict(batch)
    if config.optimizer.epochs:
        first = next(batches.epoch(0))
        if len(steps) > 1:
            measure_steps(steps, replica, group, first)  # takes what it takes at the start of the run
        else:
            steps[precisions[0]](first)
    start = time.time() - started - decode_seconds
    forward = _rate(lambda: predict(batch).numpy(), len(batch))
    feed = itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())
    trained = {
        precision: _rate(lambda step=step: float(step(next(feed))), batches.size)  # type: ignore[misc]
        for precision, step in steps.items()
        if config.optimizer.epochs
    }
    return _Measured(start, rows.num_rows / decode_seconds, forward, trained)


def _places(rows: int, readable: np.ndarray) -> np.ndarray:
    """`ImageStore.where` of one block with the readable rows only."""
    where = np.full((rows, 2), -1, np.int64)
    where[readable, 0], where[readable, 1] = 0, np.arange(len(readable))
    return where


def _job(
    config: ResolvedConfig,
    plan: TrainPlan,
    keys: rng.Keys,
    labels: np.ndarray,
    weights: ray.ObjectRef | None,
    teacher: Teacher | None,
) -> WorkerJob:
    images = LoadedImages([], ray.ObjectRef.nil(), config.model.image_size, "decoded")
    split = SplitData(images, keys, labels, np.arange(len(keys)))
    nowhere = Lease("", "measuring")
    return WorkerJob(
        config, plan, split, split, weights, None, 0.5, ("", ""), "", Provenance(), nowhere, None, 0.0, teacher
    )


def _rate(work: Callable[[], object], count: int) -> float:
    """Images per second of something that takes `count` images, repeated for a few seconds."""
    started, rounds = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < _SECONDS:
        work()
        rounds += 1
    return rounds * count / spent
