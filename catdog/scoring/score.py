"""Scoring: a catalog and a bundle in, Parquet parts out, then one table; the same code for every split.

A part is a fixed range of a split, predicted by one actor call in batches of one shape and named after its range and
everything its numbers follow from. So it does not matter which actor made it, when, or how often, and whatever parts
are already there need not be made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import pydantic
import ray

from catdog import cluster, lease, resources, storage, waiting
from catdog.choices import EngineChoice, EngineName, SplitChoice
from catdog.data import catalog
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.evaluation import calibration
from catdog.evaluation.calibration import Applied
from catdog.events import EventHandler, PartDone, ScoringPlanned
from catdog.inference import bundle
from catdog.inference.bundle import BundleInfo
from catdog.inference.provenance import Provenance
from catdog.reporting import render, report, result_set, submission
from catdog.reporting.report import Report
from catdog.resources import ScorePlan
from catdog.scoring import actor
from catdog.scoring.actor import Part
from catdog.versions import package_versions

PART_ROWS = 512
# The last parts of a split are smaller, so that no actor ends long before another.
_TAIL_PARTS, _TAIL_SHARE = 4, 4
_SCORED_SPLITS = ("valid", "test")


class ScoreConfig(pydantic.BaseModel):
    """The options of `catdog score`.

    Attributes:
        model: URIs of runs or of bundles; the logits of several are averaged.
        data: URI of a prepared data set.
        split: which splits; "all" is validation and, where there is one, test.
        out: URI of the CSV; its sidecars take its stem.
        engine: what predicts; "auto" is ONNX Runtime on CPUs if the model has a verified file for it.
        batch_size: images decoded together, and then handed to the engine.
        max_unreadable: share of a split's images that may be unreadable.
        gpu: a GPU for each actor; None where there are any.
        address: of the Ray cluster.
        wait: seconds to wait for CPUs or GPUs that others hold; None is for as long as it takes.
        debug: show Ray's log and tracebacks.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    model: Annotated[
        list[str], pydantic.BeforeValidator(lambda m: [m] if isinstance(m, str) else m), pydantic.Field(min_length=1)
    ]
    data: str
    split: SplitChoice = "all"
    out: str = "submissions/results.csv"
    engine: EngineChoice = "auto"
    batch_size: Annotated[int, pydantic.Field(ge=1, le=4096)] = 64
    max_unreadable: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01
    gpu: bool | None = None
    address: str | None = None
    wait: Annotated[float, pydantic.Field(ge=0)] | None = None
    debug: bool = False


@dataclass
class ScoreResult:
    """What scoring came to.

    Attributes:
        csv: URI of the submission, or None where no test split was scored.
        report: None where no split with labels was scored.
        report_file: URI of the report as JSON.
        counts: by split, how many images are ok, recovered and unreadable.
        unreadable: URI of the CSV that names the unreadable images.
        calibration: where the probabilities' temperature and clip come from.
        seconds: by stage.
        too_many_unreadable: the splits that exceed `max_unreadable`.
    """

    csv: str | None
    report: Report | None
    report_file: str
    counts: dict[str, dict[str, int]]
    unreadable: str
    calibration: str
    seconds: dict[str, float] = field(default_factory=dict)
    too_many_unreadable: list[str] = field(default_factory=list)


def score_dataset(config: ScoreConfig, on_event: EventHandler | None = None) -> ScoreResult:
    """Scores a data set with a model and writes the submission, the report and their sidecars.

    Args:
        config: what to do.
        on_event: called with what happens: `events.ScoringEvent`, and "Waiting" as by
            `waiting.wait_for`.

    Returns:
        Where everything is. More unreadable images than allowed are told there, after all is written.

    Raises:
        UsageError: no such model or data, or an option that cannot be.
        CatdogError: scoring failed; the parts that were done stay, and the same command goes on from them.
    """
    on_event = on_event or (lambda _event: None)
    started = time.perf_counter()
    job = _Job.open(config)
    # It also shows now, and not after an hour of scoring, whether anything can be written there.
    with lease.hold(storage.join(result_set.sidecar(job.out, "parts"), "lease.json"), "scoring") as held:
        return _score(job, held, started, on_event)


def _score(job: _Job, held: lease.Lease, started: float, on_event: EventHandler) -> ScoreResult:
    config = job.config
    seconds = {"start": time.perf_counter() - started}
    missing = job.missing()
    engine = list(missing)[-1]
    if not missing[engine]:
        parts = job.parts(engine)
    else:
        with cluster.connect(config.address, config.debug) as may_grow:
            plan = resources.plan_scoring({name: len(todo) for name, todo in missing.items()}, config.gpu, may_grow)
            engine, parts, todo = plan.engine, job.parts(plan.engine), missing[plan.engine]
            for model in job.models:
                bundle.require_intact(model, engine)
            seconds["connect"] = time.perf_counter() - started - seconds["start"]
            # The first actor's is enough to begin with.
            first: list[waiting.Bundle] = [{"GPU": 1}, {"CPU": 1}] if plan.gpu else [{"CPU": plan.threads}]
            waiting.wait_for(first, on_event, config.wait)
            on_event(ScoringPlanned(plan.actors, len(todo), len(parts) - len(todo)))
            _score_parts(todo, plan, job, on_event)
        seconds["score"] = time.perf_counter() - started - sum(seconds.values())
    held.require_held()
    return _write_results(job, engine, parts, seconds)


def explain_plan(config: ScoreConfig) -> dict[str, str]:
    """Says what `score_dataset` would do on the cluster, and why, without doing it.

    Returns:
        The plan, by name.

    Raises:
        UsageError, CatdogError: as `score_dataset`.
    """
    job = _Job.open(config)
    missing = {engine: len(parts) for engine, parts in job.missing().items()}
    if not all(missing.values()):
        return {"parts": "all are there; the CSV and the report would be written from them"}
    with cluster.connect(config.address, config.debug) as may_grow:
        plan = resources.plan_scoring(missing, config.gpu, may_grow)
    count, each = len(job.parts(plan.engine)), f"in batches of {job.batch_size}"
    parts = f"{count}, of which {missing[plan.engine]} are to be made; {PART_ROWS} images each and fewer at the end"
    return plan.why | {"parts": f"{parts}, {each}"}


@dataclass(frozen=True)
class _Job:
    """What is to be scored with what: the options, read and found to fit each other."""

    config: ScoreConfig
    out: str
    models: list[str]
    info: BundleInfo
    provenance: Provenance
    data: Catalog
    splits: list[str]
    engines: tuple[EngineName, ...]

    @classmethod
    def open(cls, config: ScoreConfig) -> _Job:
        out = storage.absolute_output(config.out, "--out")
        if not storage.name(out).endswith(".csv") or storage.kind(out) == "folder":
            raise UsageError(f"--out received {config.out!r}, expected the name of a .csv file")
        found = [bundle.read_info(model) for model in config.model]
        uris, info = [uri for uri, _ in found], bundle.merge_infos([info for _, info in found])
        provenance = Provenance.union([bundle.read_provenance(*each) for each in found])
        for uri, one in found:
            if config.engine == "onnx" and "onnx" not in one.engines:
                raise UsageError(f"--engine received onnx, but {uri} has no ONNX model ({one.onnx}); use tensorflow")
        data = catalog.read_catalog(config.data)
        if data.class_names != info.class_names:
            raise UsageError(f"the model tells {info.class_names} apart, but the data set holds {data.class_names}")
        possible = info.engines if config.engine == "auto" else (config.engine,)
        if config.engine == "auto" and config.gpu is not None:
            possible = ("tensorflow",) if config.gpu else possible[:1]
        job = cls(config, out, uris, info, provenance, data, _splits(config.split, data), possible)
        _refuse_mixed_set(job)
        return job

    @property
    def others(self) -> list[str]:
        """The splits that could be scored, but are not to be now."""
        return [split for split in _SCORED_SPLITS if split not in self.splits and self.data.count(split)]

    @property
    def batch_size(self) -> int:
        """Images in a batch: no more than a part has."""
        return min(self.config.batch_size, PART_ROWS)

    def missing(self) -> dict[EngineName, list[Part]]:
        """The parts that are still to be made, by engine, up to the first engine that has none."""
        found: dict[EngineName, list[Part]] = {}
        # One listing: asking a bucket for each of thousands of parts takes minutes.
        there = set(storage.list_names(result_set.sidecar(self.out, "parts")))
        for engine in self.engines:
            found[engine] = [
                part
                for part in self.parts(engine)
                if storage.name(part.uri) not in there or not actor.is_complete(part)
            ]
            if not found[engine]:
                break
        return found

    def parts(self, engine: EngineName, splits: list[str] | None = None) -> list[Part]:
        """The parts of some splits, or of all that are to be scored, in catalog order."""
        folder = result_set.sidecar(self.out, "parts")
        versions = json.dumps(package_versions(), sort_keys=True)
        origin = [self.data.fingerprint, bundle.fingerprint_of(self.info), engine, str(self.batch_size), versions]
        parts = []
        for split in self.splits if splits is None else splits:
            rows = self.data.split(split)
            mark = hashlib.sha256("\0".join([*origin, split]).encode()).hexdigest()[:16]
            for start, stop in _cut(rows.num_rows, self.batch_size):
                name = f"{split}-{start:08d}-{stop:08d}-{mark}.parquet"
                parts.append(Part(split, start, rows.slice(start, stop - start), storage.join(folder, name)))
        return parts


def _cut(count: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Cuts a split of so many rows into the ranges of its parts, none of which is less than a batch if it can be."""
    tail = max(0, count // PART_ROWS - _TAIL_PARTS) * PART_ROWS
    start = 0
    while start < count:
        stop = min(count, start + (PART_ROWS if start < tail else max(batch_size, PART_ROWS // _TAIL_SHARE)))
        yield start, stop
        start = stop


def read_parts(out: str) -> pa.Table:
    """Reads the parts that a finished scoring run left, every split together.

    Args:
        out: URI of its CSV.

    Returns:
        The columns of `scorer.PART_SCHEMA`.
    """
    folder = result_set.sidecar(storage.absolute(out), "parts")
    names = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
    return pa.concat_tables(
        [actor.read(storage.join(folder, name)) for name in names] or [actor.PART_SCHEMA.empty_table()]
    )


def _splits(split: str, data: Catalog) -> list[str]:
    if split != "all":
        data.split(split)
        return [split]
    found = [name for name in _SCORED_SPLITS if data.count(name)]
    if not found:
        raise CatdogError(f"{data.root} has neither validation nor test images to score")
    return found


def _score_parts(missing: list[Part], plan: ScorePlan, job: _Job, on_event: EventHandler) -> None:
    from ray.data import ActorPoolStrategy
    from ray.data.read_api import from_blocks

    rows = actor.share(job.data, {part.split for part in missing})
    # One block a part. Blocks that exist need no task to read them, so actors may take every CPU; and of these Ray Data
    # reads the metadata here, where `from_arrow` would start workers for it.
    dataset = from_blocks([actor.block_of(part) for part in missing])
    if plan.gpu:
        sizes = {bundle.read_info(model)[1].image_size for model in job.models}
        read = functools.partial(actor.read_ahead, rows=rows, sizes=sorted(sizes))
        dataset = dataset.map_batches(read, batch_format="pyarrow", batch_size=None, num_cpus=1)
    done = dataset.map_batches(
        actor.PartScorer,
        fn_constructor_kwargs={
            "models": job.models,
            "rows": rows,
            "engine": plan.engine,
            "batch_size": job.batch_size,
            "threads": plan.threads,
            "gpu": plan.gpu,
        },
        batch_format="pyarrow",
        # With a GPU Ray Data wants a number, and could then cut parts in two; there a part is one row.
        batch_size=1 if plan.gpu else None,
        compute=ActorPoolStrategy(size=plan.actors),
        # The tasks that read for a GPU need the CPUs.
        num_cpus=0 if plan.gpu else plan.threads,
        num_gpus=1 if plan.gpu else 0,
    )
    try:
        for row in done.iter_rows():
            on_event(PartDone(**row))
    except ray.exceptions.RayError as error:
        raise CatdogError(
            f"scoring failed ({cluster.cause(error)}); finished parts stay, "
            "and the same command goes on from them (--debug shows why it failed)"
        ) from error


def _write_results(job: _Job, engine: EngineName, parts: list[Part], seconds: dict[str, float]) -> ScoreResult:
    """Makes the CSV, the report and their sidecars from finished parts."""
    merging = time.perf_counter()
    out, config = job.out, job.config
    splits = list(job.splits)
    # What an earlier run scored with the same model belongs to the same set of files, whichever engine it took.
    for split in job.others:
        for each in dict.fromkeys((engine, *job.info.engines)):
            others = job.parts(each, [split])
            if all(actor.is_whole(part) for part in others):
                splits.append(split)
                parts += others
                break
    by_split = {split: [part for part in parts if part.split == split] for split in splits}
    applied = _calibrate(job, by_split.get("valid"))
    refitted = applied if applied.origin == "refitted" else None
    merged = {split: actor.merge(each, job.data, refitted) for split, each in by_split.items()}
    counts = {split: each.counts for split, each in merged.items()}
    rejected, report_file = result_set.sidecar(out, "rejected.csv"), result_set.sidecar(out, "report.json")
    sections = {split: each.judged for split, each in merged.items() if each.judged is not None}
    content = (
        report.build_report(sections, counts, report.Subject(job.info, job.provenance, job.data, applied))
        if sections
        else None
    )
    # The old meta.json stays until all is written, and vouches for nothing new: it names the old files' digests. Those
    # that this run does not write are of the same model and data (`_refuse_mixed_set`).
    digests = {e: of for e, of in result_set.read_digests(out).items() if storage.exists(result_set.sidecar(out, e))}
    unreadable = {split: each.unreadable for split, each in merged.items()}
    digests["rejected.csv"] = result_set.write_rejected(out, unreadable)
    if content is not None:
        digests["report.json"] = result_set.write_sidecar(out, "report.json", render.to_json(content))
    if "test" in merged:
        digests["csv"] = submission.write_submission(out, job.data.split("test")["id"], merged["test"].probabilities)
    seconds["merge"] = time.perf_counter() - merging
    meta = {
        "model": job.models,
        "bundle_fingerprint": bundle.fingerprint_of(job.info),
        "architecture": job.info.architecture,
        "positive_class": job.info.class_names[1],
        "calibration": applied.words,
        "temperature": applied.temperature,
        "clip": applied.clip,
        "data": job.data.root,
        "catalog_fingerprint": job.data.fingerprint,
        "engine": engine,
        "options": config.model_dump(exclude={"address", "wait", "debug"}),
        "counts": counts,
        "sha256": digests,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "versions": package_versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    result_set.write_meta(out, meta)
    result_set.require_intact(out)  # another run may have been writing here
    _drop_stale_parts(job, parts)
    excess = [s for s, c in counts.items() if c["unreadable"] > config.max_unreadable * sum(c.values())]
    csv = out if "test" in merged else None
    return ScoreResult(csv, content, report_file, counts, rejected, applied.words, seconds, excess)


def _calibrate(job: _Job, valid: list[Part] | None) -> Applied:
    """Fits temperature and clip to the mean of several models' logits, where validation photos are scored to do so on.

    Each model's own were fitted to its own logits, which are less certain, or more, than their mean.
    """
    info = job.info
    if info.calibration == "none" or len(job.models) == 1:
        return Applied(info.temperature, info.clip, "none" if info.calibration == "none" else "own")
    judged = actor.merge(valid, job.data).judged if valid else None
    if judged is not None:
        unseen = pc.and_(judged["logit"].is_valid(), pa.array(~job.provenance.trained_on(judged["digest"])))
        judged = judged.filter(unseen)
        if len(judged) >= calibration.MIN_IMAGES:
            fitted = calibration.fit_calibration(judged["label"].to_numpy(), judged["logit"].to_numpy())
            return Applied(*fitted, "refitted", judged["digest"])
    return Applied(info.temperature, info.clip, "mean")


def _refuse_mixed_set(job: _Job) -> None:
    """A CSV and its sidecars speak of one model and one data set; what this run leaves in place must be of the same."""
    meta = result_set.read_meta(job.out)
    try:
        before = (meta["bundle_fingerprint"], meta["catalog_fingerprint"], meta["options"]["batch_size"])
        is_same = (before, meta["versions"]) == (
            (bundle.fingerprint_of(job.info), job.data.fingerprint, job.config.batch_size),
            package_versions(),
        )
    except (KeyError, TypeError):
        is_same = False
    kept = {
        "csv": "test" not in job.splits,
        "report.json": not any(job.data.is_labelled(split) for split in job.splits),
    }
    for ending, stays in kept.items():
        uri = result_set.sidecar(job.out, ending)
        if stays and storage.exists(uri) and not (is_same and result_set.is_intact(job.out, ending)):
            raise UsageError(
                f"{uri} is of another model, data set or --batch-size, of other versions of packages or of a run that "
                "was killed, and this run would not replace it; give another --out, or --split all"
            )


def _drop_stale_parts(job: _Job, written: list[Part]) -> None:
    """Deletes what other models or data sets left under this name; what counts is all written by now."""
    folder = result_set.sidecar(job.out, "parts")
    begun = [part for engine in job.info.engines for part in job.parts(engine, job.others)]
    current = {storage.name(part.uri) for part in [*written, *begun]}
    for name in storage.list_names(folder):
        if name.endswith(".parquet") and name not in current:
            storage.delete_file(storage.join(folder, name))
