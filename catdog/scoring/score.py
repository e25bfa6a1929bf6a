"""Scoring: a catalog and a bundle in, Parquet parts out, then one table; the same code for every split."""

from __future__ import annotations

import time

from catdog import cluster, lease, resources, stall, storage, waiting
from catdog.choices import EngineName
from catdog.data.catalog import Catalog
from catdog.events import EventHandler, ScoringPlanned
from catdog.inference import bundle
from catdog.inference.precision import precision_of
from catdog.scoring import actor, results
from catdog.scoring.config import ScoreConfig
from catdog.scoring.parts import Part
from catdog.scoring.plan import ScoringJob, open_job
from catdog.scoring.results import ScoreResult


def score_dataset(
    config: ScoreConfig, on_event: EventHandler | None = None, data: Catalog | None = None
) -> ScoreResult:
    """Scores a data set with a model and writes the submission, the report and their sidecars.

    Args:
        config: what to do.
        on_event: told of `ScoringPlanned`, `PartDone` and `Waiting`.
        data: the catalog, if it was read or made already.

    Returns:
        Where everything is. More unreadable images than allowed are told there, after all is written.

    Raises:
        UsageError: no such model or data, or an option that cannot be.
        CatdogError: scoring failed; the parts that were done stay, and the same command goes on from them.
    """
    started = time.perf_counter()
    job = open_job(config, data)
    # It also shows now, and not after an hour of scoring, whether anything can be written there.
    with lease.hold(storage.join(job.folder, "lease.json"), "scoring") as held:
        seconds = {"start": time.perf_counter() - started}
        missing = job.find_missing()
        # `find_missing` ends with the first engine that has made every part.
        engine = list(missing)[-1]
        made = 0
        if missing[engine]:
            engine = _make_missing(job, missing, started, seconds, on_event or (lambda _event: None))
            made = sum(part.count for part in missing[engine])
        held.require_held()
        return results.write_results(job, engine, seconds, made, held)


def _make_missing(
    job: ScoringJob,
    missing: dict[EngineName, list[Part]],
    started: float,
    seconds: dict[str, float],
    on_event: EventHandler,
) -> EngineName:
    """Makes the parts that are missing on the cluster, and returns what predicted."""
    config = job.config
    advice = "finished parts stay, and the same command goes on from them"
    with (
        cluster.connect(config.address, config.debug) as may_grow,
        stall.watching(on_event, config.stall_timeout, advice) as watch,
    ):
        on_event = watch.event
        plan = _plan(config, missing, may_grow)
        todo = missing[plan.engine]
        for saved in job.bundles:
            bundle.require_intact(saved, plan.engine)
        seconds["connect"] = time.perf_counter() - started - seconds["start"]
        # The first actor's is enough to begin with.
        first: list[waiting.Bundle] = [plan.actor_resources, *([{"CPU": 1}] if plan.gpu else [])]
        waiting.wait_for(first, on_event, config.wait)
        kept = len(job.parts_to_score(plan.engine)) - len(todo)
        on_event(ScoringPlanned(plan.actors, len(todo), kept, sum(part.count for part in todo)))
        actor.make_parts(todo, plan, job, on_event)
    seconds["score"] = time.perf_counter() - started - sum(seconds.values())
    return plan.engine


def _plan(config: ScoreConfig, missing: dict[EngineName, list[Part]], may_grow: bool) -> resources.ScorePlan:
    counts = {engine: len(todo) for engine, todo in missing.items()}
    return resources.plan_scoring(counts, config.gpu, may_grow, config.gpus_per_actor)


def explain_plan(config: ScoreConfig, on_event: EventHandler | None = None) -> tuple[dict[str, str], dict[str, float]]:
    """Says what `score_dataset` would do on the cluster, and why, and measures how long it would take.

    Args:
        config: as for `score_dataset`.
        on_event: told of `Waiting`.

    Returns:
        The plan, by name; and an estimate of the seconds of each stage. Putting the parts together is not in it.

    Raises:
        UsageError, CatdogError: as `score_dataset`.
    """
    started = time.perf_counter()
    job = open_job(config)
    what = {
        "model": ", ".join(saved.uri for saved in job.bundles),
        "data": ", ".join(f"{job.catalog.count(split):,} {split} images" for split in job.splits)
        + f" in {job.catalog.root}",
        "outputs": f"{job.out if 'test' in job.splits else 'no CSV'}, its report and {job.folder}",
    }
    missing = job.find_missing()
    if not all(missing.values()):
        return what | {"parts": "all are there; the CSV and the report would be written from them"}, {}
    with cluster.connect(config.address, config.debug) as may_grow:
        plan = _plan(config, missing, may_grow)
        seconds = {"starting Ray": time.perf_counter() - started}
        waiting.wait_for([plan.actor_resources] * plan.actors, on_event or (lambda _event: None), config.wait)
        measured = actor.measure(missing[plan.engine], plan, job)
    todo = sum(part.count for part in missing[plan.engine])
    count, each = len(job.parts_to_score(plan.engine)), f"in batches of {job.batch_size}"
    most = max(part.count for part in job.parts_to_score(plan.engine))
    to_make = f"{count}, of which {len(missing[plan.engine])} are to be made"
    precision = precision_of([saved.info.quantisation for saved in job.bundles], plan.engine)
    what |= plan.why | {
        "precision": precision,
        "parts": f"{to_make}; {most} images each and fewer at the end, {each}",
        "memory": f"{measured.memory / 1e9:.1f} GB an actor",
        "measured": f"{measured.rate:,.0f} images/s read, decoded and predicted in {len(job.info.views)} views",
    }
    return what, seconds | {"loading the model": measured.start, f"{todo:,} images": todo / measured.rate}
