"""Scoring: a catalog and a bundle in, Parquet parts out, then one table; the same code for every split.

A part is a fixed range of a split, predicted by one actor call in batches of one shape and named after its range and
everything its numbers follow from. So it does not matter which actor made it, when, or how often, and whatever parts
are already there need not be made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic
import ray
import ray.data

from catdog import bundle, catalog, cluster, images, metrics, report, storage, submission
from catdog.bundle import BundleInfo, ModelBundle, TensorFlowEngine
from catdog.catalog import Catalog
from catdog.errors import CatdogError, UsageError

PART_ROWS = 512
PART_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("logit", pa.float32()),
        pa.field("probability", pa.float64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
_SCORED_SPLITS = {"all": ("valid", "test"), "valid": ("valid",), "test": ("test",)}

EventHandler = Callable[[dict[str, Any]], None]


class ScoreConfig(pydantic.BaseModel):
    """The options of `catdog score`.

    Attributes:
        model: URIs of runs or of bundles; the logits of several are averaged.
        data: URI of a prepared data set.
        split: which splits; "all" is validation and, where there is one, test.
        out: URI of the CSV; its sidecars take its stem.
        batch_size: images predicted at a time.
        max_unreadable: share of a split's images that may be unreadable.
        gpu: a GPU for each actor; None where there are any.
        address: of the Ray cluster.
        debug: show Ray's log and tracebacks.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    model: Annotated[
        list[str], pydantic.BeforeValidator(lambda m: [m] if isinstance(m, str) else m), pydantic.Field(min_length=1)
    ]
    data: str
    split: Literal["test", "valid", "all"] = "all"
    out: str = "submissions/results.csv"
    batch_size: Annotated[int, pydantic.Field(ge=1, le=4096)] = 64
    max_unreadable: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01
    gpu: bool | None = None
    address: str | None = None
    debug: bool = False


@dataclass(frozen=True)
class Part:
    """A range of a split, and the file its predictions are in."""

    split: str
    rows: pa.Table
    uri: str


@dataclass
class ScoreResult:
    """What scoring came to.

    Attributes:
        csv: URI of the submission, or None where no test split was scored.
        report: what `*.report.json` says, or None where no split with labels was scored.
        counts: by split, how many images are ok, recovered and unreadable.
        unreadable: URI of the CSV that names the unreadable images.
        seconds: by stage.
        too_many_unreadable: the splits that exceed `max_unreadable`.
    """

    csv: str | None
    report: dict[str, Any] | None
    counts: dict[str, dict[str, int]]
    unreadable: str
    seconds: dict[str, float] = field(default_factory=dict)
    too_many_unreadable: list[str] = field(default_factory=list)


def score(config: ScoreConfig, on_event: EventHandler | None = None) -> ScoreResult:
    """Scores a data set with a model and writes the submission, the report and their sidecars.

    Args:
        config: what to do.
        on_event: called with `{"kind": "plan" | "part", …}` as parts get done.

    Returns:
        Where everything is. More unreadable images than allowed are told there, after all is written.

    Raises:
        UsageError: no such model or data, or an option that cannot be.
        CatdogError: scoring failed; the parts that were done stay, and the same command goes on from them.
    """
    on_event = on_event or (lambda _event: None)
    started = time.perf_counter()
    out = storage.absolute_output(config.out, "--out")
    if not storage.name(out).endswith(".csv") or storage.kind(out) == "folder":
        raise UsageError(f"--out received {config.out!r}, expected the name of a .csv file")
    found = [bundle.read_info(model) for model in config.model]
    uris, info = [uri for uri, _ in found], bundle.merge([info for _, info in found])
    # Better to know now than after an hour of scoring that nothing can be written there.
    probe = storage.join(submission.sidecar(out, "parts"), "writable")
    storage.write_text(probe, "")
    storage.delete_file(probe)
    data = catalog.read(config.data)
    if data.class_names != info.class_names:
        raise UsageError(f"the model tells {info.class_names} apart, but the data set holds {data.class_names}")
    splits = _splits(config.split, data)
    _refuse_mixed_set(out, data, info, splits, config.batch_size)
    parts = [part for split in splits for part in _parts(split, data, info, config.batch_size, out)]
    missing = [part for part in parts if not _is_complete(part)]
    seconds = {"start": time.perf_counter() - started}
    if missing:
        _score_parts(missing, len(parts), uris, config, on_event, seconds)

    merging = time.perf_counter()
    for split in _SCORED_SPLITS["all"]:
        # What an earlier run scored with the same model belongs to the same set of files.
        if split not in splits and data.count(split):
            others = list(_parts(split, data, info, config.batch_size, out))
            if all(storage.kind(part.uri) == "file" for part in others):
                splits.append(split)
                parts += others
    tables = {split: _merge(part for part in parts if part.split == split) for split in splits}
    counts = {split: _count(table) for split, table in tables.items()}
    rejected = submission.sidecar(out, "rejected.csv")
    sections = {split: table for split, table in tables.items() if data.is_labelled(split)}
    content = report.build(sections, counts, info, data) if sections else None
    submission.write_rejected(rejected, tables)
    if content is not None:
        storage.write_text(submission.sidecar(out, "report.json"), report.to_json(content))
    if "test" in tables:
        submission.write(out, tables["test"])
    seconds["merge"] = time.perf_counter() - merging
    meta = {
        "model": uris,
        "bundle_fingerprint": bundle.fingerprint(info),
        "architecture": info.architecture,
        "data": data.root,
        "catalog_fingerprint": data.fingerprint,
        "engine": TensorFlowEngine.name,
        "options": config.model_dump(exclude={"address", "debug"}),
        "counts": counts,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "versions": bundle.package_versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    storage.write_text(submission.sidecar(out, "meta.json"), report.to_json(meta))
    _drop_stale_parts(out, data, info, config.batch_size)
    excess = [s for s, c in counts.items() if c["unreadable"] > config.max_unreadable * sum(c.values())]
    return ScoreResult(out if "test" in tables else None, content, counts, rejected, seconds, excess)


def read_parts(out: str) -> pa.Table:
    """Reads the parts that a finished scoring run left, every split together.

    Args:
        out: URI of its CSV.

    Returns:
        The columns of `PART_SCHEMA`.
    """
    folder = submission.sidecar(storage.absolute(out), "parts")
    names = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
    return pa.concat_tables([_read(storage.join(folder, name)) for name in names] or [PART_SCHEMA.empty_table()])


def _splits(split: str, data: Catalog) -> list[str]:
    if split != "all":
        data.split(split)
        return [split]
    found = [name for name in _SCORED_SPLITS[split] if data.count(name)]
    if not found:
        raise CatdogError(f"{data.root} has neither validation nor test images to score")
    return found


def _parts(split: str, data: Catalog, info: BundleInfo, batch_size: int, out: str) -> Iterator[Part]:
    rows = data.split(split)
    origin = [data.fingerprint, bundle.fingerprint(info), TensorFlowEngine.name, str(batch_size), split]
    mark = hashlib.sha256("\0".join(origin).encode()).hexdigest()[:16]
    folder = submission.sidecar(out, "parts")
    for start in range(0, rows.num_rows, PART_ROWS):
        block = rows.slice(start, PART_ROWS)
        name = f"{split}-{start:08d}-{start + block.num_rows:08d}-{mark}.parquet"
        yield Part(split, block, storage.join(folder, name))


def _is_complete(part: Part) -> bool:
    """Tells whether a part is there and whole; a damaged one is made again."""
    if storage.kind(part.uri) != "file":
        return False
    try:
        table = _read(part.uri)
        # What the storage did not give then, it may give now.
        missed = pc.any(pc.starts_with(table["detail"], images.NOT_READ)).as_py()
        return table["key"].equals(part.rows["key"]) and not missed
    except (pa.ArrowInvalid, OSError, KeyError):
        return False


def _read(uri: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri)), schema=PART_SCHEMA)


def _score_parts(
    missing: list[Part],
    total: int,
    uris: list[str],
    config: ScoreConfig,
    on_event: EventHandler,
    seconds: dict[str, float],
) -> None:
    started = time.perf_counter()
    with cluster.connect(config.address, config.debug):
        plan = cluster.plan_scoring(len(missing), config.gpu)
        on_event({"kind": "plan", "actors": plan.actors, "parts": len(missing), "kept": total - len(missing)})
        # One Arrow block a part: blocks that exist already need no task, so actors may take every CPU.
        blocks = [part.rows.select(["key", "id", "uri", "label"]).combine_chunks() for part in missing]
        blocks = [
            block.append_column("part", pa.array([part.uri] * block.num_rows))
            for block, part in zip(blocks, missing, strict=True)
        ]
        done = ray.data.from_arrow(blocks).map_batches(
            PartScorer,
            fn_constructor_kwargs={
                "models": uris,
                "batch_size": config.batch_size,
                "threads": plan.cpus_per_actor,
            },
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=plan.actors),
            num_cpus=plan.cpus_per_actor,
            num_gpus=1 if plan.gpu else 0,
        )
        seconds["connect"] = time.perf_counter() - started
        try:
            for row in done.iter_rows():
                on_event({"kind": "part", **row})
        except ray.exceptions.RayError as error:
            raise CatdogError(
                f"scoring failed ({cluster.cause(error)}); finished parts stay, "
                "and the same command goes on from them (--debug shows why it failed)"
            ) from error
    seconds["score"] = time.perf_counter() - started - seconds["connect"]


class PartScorer:
    """An actor that loads the models once and then turns ranges of the catalog into parts."""

    def __init__(self, models: list[str], batch_size: int, threads: int) -> None:
        cluster.limit_threads(threads)
        self._bundles = [ModelBundle.load(model) for model in models]
        self._info = bundle.merge([loaded.info for loaded in self._bundles])
        self._sizes = sorted({loaded.info.image_size for loaded in self._bundles})
        self._batch_size = batch_size

    def __call__(self, block: pa.Table) -> pa.Table:
        """Scores one part.

        Args:
            block: columns key, id, uri, label, and the part's own URI in `part`.

        Returns:
            One row about it: node, images, seconds.
        """
        started = time.perf_counter()
        logits: list[np.ndarray] = []
        verdicts: list[tuple[str, str]] = []
        for batch in self._batches(block["uri"].to_pylist()):
            pixels = {size: np.zeros((self._batch_size, size, size, 3), np.uint8) for size in self._sizes}
            for size, decoded in batch.items():
                for at, image in enumerate(decoded):
                    pixels[size][at] = image.pixels
            first = batch[self._sizes[0]]
            each = [loaded.logits(pixels[loaded.info.image_size]) for loaded in self._bundles]
            logits.append(np.mean(each, axis=0)[: len(first)])
            verdicts += [(image.status, image.detail) for image in first]
        unreadable = np.array([status == "unreadable" for status, _ in verdicts])
        plain = np.concatenate(logits)
        calibrated = metrics.calibrated(plain, self._info.temperature, self._info.clip)
        part = pa.Table.from_pydict(
            {
                "key": block["key"],
                "id": block["id"],
                "label": block["label"],
                "logit": pa.array(plain, pa.float32(), mask=unreadable),
                "probability": np.where(unreadable, self._info.prior, calibrated),
                "status": [status for status, _ in verdicts],
                "detail": [detail for _, detail in verdicts],
            },
            schema=PART_SCHEMA,
        )
        sink = pa.BufferOutputStream()
        pq.write_table(part, sink, compression="zstd")
        storage.write_bytes(block["part"][0].as_py(), sink.getvalue().to_pybytes())
        node = ray.get_runtime_context().get_node_id()
        seconds = time.perf_counter() - started
        return pa.table({"node": [node], "images": [block.num_rows], "seconds": [seconds]})

    def _batches(self, uris: list[str]) -> Iterator[dict[int, list[images.Decoded]]]:
        """Decodes one batch ahead of the model, in a thread, so that waiting for files costs nothing.

        Yields:
            The images of a batch, by the size they were decoded to.
        """
        groups = [uris[start : start + self._batch_size] for start in range(0, len(uris), self._batch_size)]

        def decode(group: list[str]) -> dict[int, list[images.Decoded]]:
            return {size: [images.read(uri, size) for uri in group] for size in self._sizes}

        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(decode, groups[0])
            for number in range(len(groups)):
                current = following.result()
                if number + 1 < len(groups):
                    following = ahead.submit(decode, groups[number + 1])
                yield current


def _merge(parts: Iterator[Part]) -> pa.Table:
    return pa.concat_tables([_read(part.uri) for part in parts])


def _count(table: pa.Table) -> dict[str, int]:
    statuses = table["status"].to_pylist()
    return {status: statuses.count(status) for status in ("ok", "recovered", "unreadable")}


def _refuse_mixed_set(out: str, data: Catalog, info: BundleInfo, splits: list[str], batch_size: int) -> None:
    """A CSV and its sidecars speak of one model and one data set; what this run leaves in place must be of the same."""
    try:
        meta = json.loads(storage.read_bytes(submission.sidecar(out, "meta.json")))
        before = (meta["bundle_fingerprint"], meta["catalog_fingerprint"], meta["options"]["batch_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before == (bundle.fingerprint(info), data.fingerprint, batch_size):
        return
    kept = {
        out: "test" not in splits,
        submission.sidecar(out, "report.json"): not any(data.is_labelled(split) for split in splits),
    }
    for uri, stays in kept.items():
        if stays and storage.exists(uri):
            raise UsageError(
                f"{uri} is of another model, data set or --batch-size, and this run would not replace it; give another "
                "--out, or --split all"
            )


def _drop_stale_parts(out: str, data: Catalog, info: BundleInfo, batch_size: int) -> None:
    """Deletes what other models or data sets left under this name; what counts is all written by now."""
    folder = submission.sidecar(out, "parts")
    scored = [split for split in _SCORED_SPLITS["all"] if data.count(split)]
    current = {storage.name(part.uri) for split in scored for part in _parts(split, data, info, batch_size, out)}
    for name in storage.list_names(folder):
        if name.endswith(".parquet") and name not in current:
            storage.delete_file(storage.join(folder, name))
