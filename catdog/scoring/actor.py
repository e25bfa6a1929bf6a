"""The Ray Data job that makes parts: actors load the models once, then each part is one call of one of them."""

from __future__ import annotations

import functools
import pickle
import threading
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import psutil
import pyarrow as pa
import ray

from catdog import cluster, restarts, storage
from catdog.choices import EngineName
from catdog.data import images, isolation
from catdog.data.catalog import Catalog
from catdog.events import EventHandler, PartDone
from catdog.inference import engines
from catdog.inference.bundle import SavedBundle
from catdog.inference.predictor import Predictor
from catdog.resources import ScorePlan
from catdog.scoring import parts
from catdog.scoring.parts import Part
from catdog.scoring.plan import ScoringJob

_MEASURED_SECONDS = 3.0
# Of a call.
_MOST_RETRIES = 50
# Rows that are put together: an actor fetches those of its parts, and never the whole catalog.
_SHARED_ROWS = 65_536
# By split, what `share_rows` put.
Rows = dict[str, list[ray.ObjectRef]]


def make_parts(missing: list[Part], plan: ScorePlan, job: ScoringJob, on_event: EventHandler) -> None:
    """Makes parts on the cluster.

    Args:
        missing: the parts.
        plan: how the cluster is used.
        job: what is scored with what.
        on_event: told of each part that is done.

    Raises:
        CatdogError: an actor failed, or a part killed several.
    """
    from ray.data import ActorPoolStrategy
    from ray.data.read_api import from_blocks
    from ray.util.annotations import RayDeprecationWarning

    rows = share_rows(job.catalog, {part.split for part in missing})
    # One block a part. Blocks that exist need no task to read them, so actors may take every CPU; and of these Ray Data
    # reads the metadata here, where `from_arrow` would start workers for it.
    dataset = from_blocks([part_block(part) for part in missing])
    if plan.gpu:
        sizes = sorted({saved.info.image_size for saved in job.bundles})
        read = functools.partial(read_ahead, rows=rows, sizes=sizes)
        dataset = dataset.map_batches(read, batch_format="pyarrow", batch_size=None, num_cpus=1)
    with warnings.catch_warnings():
        # Ray Data deprecates `max_task_retries` without having anything else that limits restarts.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        done = dataset.map_batches(
            PartScorer,
            fn_constructor_kwargs={
                "bundles": job.bundles,
                "rows": rows,
                "engine": plan.engine,
                "batch_size": job.batch_size,
                "threads": plan.threads,
                "gpu": plan.gpu,
            },
            batch_format="pyarrow",
            # With a GPU Ray Data wants a number, and could then cut parts in two; there a part is one row.
            batch_size=1 if plan.gpu else None,
            # In the thread of the call, which is the only one that Ray tells about the call.
            compute=ActorPoolStrategy(size=plan.actors, enable_true_multi_threading=True),
            # Two calls at once read the first batch of a part from a bucket while the part before it is predicted.
            max_concurrency=1 if storage.is_local(missing[0].rows["uri"][0].as_py()) else 2,
            # The tasks that read for a GPU need the CPUs.
            num_cpus=plan.actor_resources.get("CPU", 0),
            num_gpus=plan.actor_resources.get("GPU", 0),
            # By default the call of an actor that dies is repeated for ever. `surviving_decoder` ends that sooner; Ray
            # also counts how often a call was sent to an actor that was lost, before it ran anywhere.
            max_task_retries=_MOST_RETRIES,
        )
    with cluster.ray_errors(
        "scoring failed ({cause}); finished parts stay, and the same command goes on from them "
        "(--debug shows why it failed)"
    ):
        for row in done.iter_rows():
            on_event(PartDone(**row))


def share_rows(catalog: Catalog, splits: Iterable[str]) -> Rows:
    """Puts the columns of each split that actors need into Ray's shared memory, in pieces."""
    shared = {}
    for split in splits:
        rows = catalog.split(split).select(["key", "id", "uri", "label"])
        shared[split] = [ray.put(rows.slice(at, _SHARED_ROWS)) for at in range(0, rows.num_rows, _SHARED_ROWS)]
    return shared


def shared_range(rows: Rows, split: str, start: int, stop: int) -> pa.Table:
    """A range of a split, from what `share_rows` put."""
    first, last = start // _SHARED_ROWS, (stop - 1) // _SHARED_ROWS
    pieces = pa.concat_tables(ray.get(rows[split][first : last + 1]))
    return pieces.slice(start - first * _SHARED_ROWS, stop - start)


def _name_part(split: str, start: int, stop: int) -> str:
    return f"part {start}-{stop} of {split}"


def part_block(part: Part) -> pa.Table:
    """The block that an actor gets for a part: one row that names it."""
    return pa.table({"split": [part.split], "start": [part.start], "stop": [part.stop], "uri": [part.uri]})


def read_ahead(block: pa.Table, rows: Rows, sizes: list[int]) -> pa.Table:
    """Decodes a part on behalf of an actor elsewhere, which then gets it as one row."""
    (row,) = block.to_pylist()
    uris = shared_range(rows, row["split"], row["start"], row["stop"])["uri"].to_pylist()
    pixels = {size: np.empty((len(uris), size, size, 3), np.uint8) for size in sizes}
    with isolation.surviving_decoder(_name_part(row["split"], row["start"], row["stop"]), sizes) as decode:
        decoded = pickle.dumps(decode(images.fetch_all(uris), pixels), protocol=5)
    return block.append_column("decoded", pa.array([decoded], pa.large_binary()))


@dataclass(frozen=True)
class Measured:
    """What a short trial of scoring showed.

    Attributes:
        start: seconds until an actor has loaded the models.
        rate: images per second of all actors.
        memory: bytes of an actor.
    """

    start: float
    rate: float
    memory: int


def measure(missing: list[Part], plan: ScorePlan, job: ScoringJob) -> Measured:
    """Scores up to a few hundred images in as many processes as there would be actors, and keeps nothing of it.

    Args:
        missing: the parts to be made.
        plan: how the cluster is used.
        job: what is scored with what.

    Raises:
        CatdogError: a process failed.
    """
    needed = plan.actor_resources
    task = ray.remote(max_calls=1, num_cpus=needed.get("CPU", 0), num_gpus=needed.get("GPU", 0))(_measure)
    started = time.time()
    uris = [missing[at * len(missing) // plan.actors].rows["uri"].to_pylist() for at in range(plan.actors)]
    with cluster.ray_errors("measuring failed: {cause}"):
        found = ray.get([task.remote(job.bundles, plan, job.batch_size, one, started) for one in uris])
    starts, rates, memory = zip(*found, strict=True)
    return Measured(max(starts), sum(rates), max(memory))


def _measure(
    bundles: list[SavedBundle], plan: ScorePlan, batch_size: int, uris: list[str], started: float
) -> tuple[float, float, int]:
    """Seconds until the models are loaded, images per second after that, and bytes of this process."""
    predictor = _load(bundles, plan.engine, plan.threads, batch_size, plan.gpu)
    start = time.time() - started
    predictor.predict_uris(uris[:batch_size])  # traces the model
    before = time.perf_counter()
    predictor.predict_uris(uris[:batch_size])
    # As many as take some seconds, in one call, because files are read ahead of the model.
    count = round(_MEASURED_SECONDS * min(len(uris), batch_size) / (time.perf_counter() - before))
    chosen = uris[: max(batch_size, count)]
    before = time.perf_counter()
    predictor.predict_uris(chosen)
    rate = len(chosen) / (time.perf_counter() - before)
    return start, rate, psutil.Process().memory_info().rss


def _load(bundles: list[SavedBundle], engine: EngineName, threads: int, batch_size: int, gpu: bool) -> Predictor:
    """Loads the models in a process that does nothing else."""
    if engine == "tensorflow":
        engines.set_up(threads, gpu)
    images.use_one_thread()
    return Predictor.load(bundles, engine, threads, batch_size)


class PartScorer:
    """An actor that loads the models once and then turns ranges of the catalog into parts."""

    def __init__(
        self, bundles: list[SavedBundle], rows: Rows, engine: EngineName, batch_size: int, threads: int, gpu: bool
    ) -> None:
        self._predictor = restarts.load_in_actor("the model", _load, bundles, engine, threads, batch_size, gpu)
        self._turn = threading.Lock()
        self._rows = rows

    def __call__(self, block: pa.Table) -> pa.Table:
        """Scores one part.

        Args:
            block: what `part_block` or `read_ahead` made.

        Returns:
            One row about it, with the fields of `PartDone`.
        """
        started = time.perf_counter()
        split, start, stop, uri = (block[name][0].as_py() for name in ("split", "start", "stop", "uri"))
        rows = shared_range(self._rows, split, start, stop)
        if "decoded" in block.column_names:
            decoded = pickle.loads(block["decoded"][0].as_buffer())
            with self._turn:
                predictions = self._predictor.predict_decoded(decoded)
        else:
            with isolation.surviving_decoder(_name_part(split, start, stop), self._predictor.sizes) as decode:
                predictions = self._predictor.predict_uris(rows["uri"].to_pylist(), decode, self._turn)
        parts.write_part(uri, rows, predictions)
        node = ray.get_runtime_context().get_node_id()
        seconds = time.perf_counter() - started
        return pa.table({"node": [node], "images": [rows.num_rows], "seconds": [seconds], "ended": [time.time()]})
