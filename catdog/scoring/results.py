"""The results of a scoring run: finished parts put together, and the CSV, the report and their sidecars written."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catdog import storage
from catdog.choices import EngineName
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError
from catdog.evaluation import calibration, metrics
from catdog.evaluation.calibration import Applied
from catdog.inference.precision import precision_of
from catdog.lease import Lease
from catdog.prefetch import prefetch
from catdog.reporting import render, report, result_set, submission
from catdog.reporting.pictures import Scores
from catdog.reporting.report import Report
from catdog.scoring import page, parts
from catdog.scoring.parts import PART_SCHEMA, Part
from catdog.scoring.plan import ScoringJob
from catdog.versions import package_versions

_PAGE = "report.html"


@dataclass
class ScoreResult:
    """Result of a scoring run.

    Attributes:
        csv: URI of the submission, or None where no test split was scored.
        report: what `*.report.json` says, or None where no split with labels was scored.
        report_file: its URI.
        page: URI of the report for people, or None where it could not be made.
        page_error: why it could not be.
        counts: by split, how many images are ok, recovered and unreadable.
        unreadable: URI of the CSV that names the unreadable images.
        calibration: where the probabilities' temperature and clip come from.
        seconds: by stage.
        too_many_unreadable: the splits that exceed `max_unreadable`.
    """

    csv: str | None
    report: Report | None
    report_file: str
    page: str | None
    page_error: Exception | None
    counts: dict[str, dict[str, int]]
    unreadable: str
    calibration: str
    seconds: dict[str, float] = field(default_factory=dict)
    too_many_unreadable: list[str] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """Log loss and accuracy of each judged split, by name."""
        found: dict[str, float] = {}
        for section in self.report.sections if self.report else []:
            if section.judgement is not None:
                figures = section.judgement.figures
                found |= {
                    f"scored.{section.split}.log_loss": figures.log_loss,
                    f"scored.{section.split}.accuracy": figures.accuracy,
                }
        return found

    @property
    def files(self) -> list[str]:
        """URIs of the CSV, the report and all else that lies beside them, without the parts."""
        folder, stem = storage.parent(self.report_file), storage.name(self.report_file).removesuffix("report.json")
        beside = [storage.join(folder, name) for name in storage.list_names(folder) if name.startswith(stem)]
        return [uri for uri in beside if storage.kind(uri) == "file"]


@dataclass
class Merged:
    """The parts of a split, put together.

    Attributes:
        counts: images by status.
        unreadable: id, key and detail of those that could not be read.
        logits: float32, in catalog order, NaN for unreadable images; in a file, as nobody needs them all at once.
        probabilities: float64, likewise.
        judged: key, label, logit, probability, status and digest of the images of a split with labels.
        judged_rows: the rows of the split that these are: all, or `report.judged_rows` of a large one.
    """

    counts: dict[str, int]
    unreadable: pa.Table
    logits: np.ndarray
    probabilities: np.ndarray
    judged: pa.Table | None
    judged_rows: np.ndarray


def write_results(
    job: ScoringJob, engine: EngineName, seconds: dict[str, float], made: int, held: Lease
) -> ScoreResult:
    """Makes the CSV, the report and their sidecars from finished parts, and deletes parts of other models.

    Args:
        job: what was scored with what.
        engine: what predicted.
        seconds: by stage so far; those of this one are added.
        made: number of images that were scored now.
        held: the lease of the run; parts of a process that took it over must not be deleted.

    Raises:
        CatdogError: a part is gone, or another run wrote here.
    """
    started = time.perf_counter()
    out = job.out
    finished = _finished_parts(job, engine)
    applied = _calibrate(job, finished.get("valid"))
    refitted = applied if applied.origin == "refitted" else None
    merged = {split: merge_parts(each, job.catalog, refitted) for split, each in finished.items()}
    counts = {split: each.counts for split, each in merged.items()}
    sections = {split: each.judged for split, each in merged.items() if each.judged is not None}
    precision = precision_of([saved.info.quantisation for saved in job.bundles], engine)
    subject = report.Subject(job.info, job.provenance, job.catalog, applied, precision)
    rows = {split: each.judged_rows for split, each in merged.items()}
    content = report.build_report(sections, counts, subject, rows) if sections else None
    # The old meta.json stays until all is written, and vouches for nothing new: it names the old files' digests. Those
    # that this run does not write are of the same model and data (`plan.open_job` refuses others).
    digests = {e: of for e, of in result_set.read_digests(out).items() if storage.exists(result_set.sidecar(out, e))}
    unreadable = {split: each.unreadable for split, each in merged.items()}
    digests["rejected.csv"] = result_set.write_rejected(out, unreadable)
    if content is not None:
        digests["report.json"] = result_set.write_sidecar(out, "report.json", render.to_json(content))
    if "test" in merged:
        ids = job.catalog.split("test")["id"]
        digests["csv"] = submission.write_submission(out, ids, merged["test"].probabilities)
    described = _description(job, engine, applied, counts, _speed(job, seconds, made))
    page_error = _write_page(job, described, content or Report(), merged, digests)
    seconds["merge"] = time.perf_counter() - started
    times = {
        "sha256": dict(sorted(digests.items())),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    result_set.write_meta(out, described | times)
    result_set.require_intact(out)  # another run may have been writing here
    held.require_held()
    _drop_stale_parts(job, finished)
    return ScoreResult(
        csv=out if "test" in merged else None,
        report=content,
        report_file=result_set.sidecar(out, "report.json"),
        page=result_set.sidecar(out, _PAGE) if page_error is None else None,
        page_error=page_error,
        counts=counts,
        unreadable=result_set.sidecar(out, "rejected.csv"),
        calibration=applied.words,
        seconds=seconds,
        too_many_unreadable=[
            split
            for split, by_status in counts.items()
            if by_status["unreadable"] > job.config.max_unreadable * sum(by_status.values())
        ],
    )


def read_parts(out: str) -> pa.Table:
    """Reads the parts that a finished scoring run left, every split together.

    Args:
        out: URI of its CSV.

    Returns:
        The columns of `parts.PART_SCHEMA`.
    """
    folder = result_set.sidecar(storage.absolute(out), "parts")
    names = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
    tables = [parts.read_part(storage.join(folder, name)) for name in names]
    return pa.concat_tables(tables or [PART_SCHEMA.empty_table()])


def _finished_parts(job: ScoringJob, engine: EngineName) -> dict[str, list[Part]]:
    """The parts that the results are made of, by split.

    What an earlier run scored with the same model belongs to the same set of files, whichever engine it took.
    """
    finished = {split: job.parts[engine][split] for split in job.splits}
    for split in job.others:
        for each in dict.fromkeys((engine, *job.info.engines)):
            if all(prefetch(parts.is_whole, job.parts[each][split], parts.READERS)):
                finished[split] = job.parts[each][split]
                break
    return finished


def merge_parts(finished: list[Part], catalog: Catalog, refitted: Applied | None = None) -> Merged:
    """Puts the finished parts of one split together, of which only a few are in memory at a time.

    Args:
        finished: all of the split's, in catalog order.
        catalog: of the data set.
        refitted: a temperature and a clip other than those that the parts' probabilities have.

    Raises:
        CatdogError: a part is gone.
    """
    labelled = catalog.is_labelled(finished[0].split)
    statuses: Counter[str] = Counter()
    unreadable, judged = [], []
    count = sum(part.count for part in finished)
    probabilities, logits = _array_in_file(np.float64, count), _array_in_file(np.float32, count)
    judged_rows = report.judged_rows(count) if labelled else np.empty(0, np.int64)
    at = 0
    for part, table in zip(finished, prefetch(_read_finished, finished, parts.READERS), strict=True):
        if refitted is not None:
            table = _recalibrated(table, refitted)
        statuses.update({each["values"]: each["counts"] for each in table["status"].value_counts().to_pylist()})
        unreadable.append(table.filter(pc.equal(table["status"], "unreadable")).select(["id", "key", "detail"]))
        probabilities[at : at + table.num_rows] = table["probability"].to_numpy()
        logits[at : at + table.num_rows] = table["logit"].to_numpy()  # a null becomes NaN
        at += table.num_rows
        if labelled:
            first, last = np.searchsorted(judged_rows, [part.start, part.stop])
            chosen = table.select(["key", "label", "logit", "probability", "status"])
            chosen = chosen.append_column("digest", part.rows["digest"])
            judged.append(chosen.take(pa.array(judged_rows[first:last] - part.start)))
    counts = {status: statuses[status] for status in ("ok", "recovered", "unreadable")}
    known = pa.concat_tables(judged) if labelled else None
    return Merged(counts, pa.concat_tables(unreadable), logits, probabilities, known, judged_rows)


def _read_finished(part: Part) -> pa.Table:
    try:
        return parts.read_part(part.uri)
    except OSError as error:
        raise CatdogError(
            f"the part {part.uri} is not there any more; --out must be on storage that every node sees, and be of "
            "one run at a time"
        ) from error


def _array_in_file(dtype: type[np.floating], count: int) -> np.ndarray:
    """An array in a temporary file, whose space is taken now: later a full disk would end the process by a signal."""
    size = count * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, shape=(count,))
    except OSError as error:
        raise CatdogError(
            f"could not keep {size / 1e6:,.1f} MB of predictions in {tempfile.gettempdir()}: {error.strerror}; make "
            "room there, or set TMPDIR to another folder"
        ) from error


def _recalibrated(table: pa.Table, applied: Applied) -> pa.Table:
    """A part with probabilities of another temperature and clip; an unreadable image keeps the prior."""
    logits = table["logit"].fill_null(0.0).to_numpy()
    anew = pa.array(metrics.calibrated(logits, applied.temperature, applied.clip))
    at = PART_SCHEMA.get_field_index("probability")
    chosen = pc.if_else(table["logit"].is_valid(), anew, table["probability"])
    return table.set_column(at, PART_SCHEMA.field("probability"), chosen)


def _calibrate(job: ScoringJob, valid: list[Part] | None) -> Applied:
    """Fits temperature and clip to the mean of several models' logits, where validation photos are scored to do so on.

    Each model's own were fitted to its own logits, which are less certain, or more, than their mean.
    """
    info = job.info
    if info.calibration == "none" or len(job.bundles) == 1:
        return Applied(info.temperature, info.clip, "none" if info.calibration == "none" else "own")
    judged = merge_parts(valid, job.catalog).judged if valid else None
    if judged is not None:
        unseen = pc.and_(judged["logit"].is_valid(), pa.array(~job.provenance.trained_on(judged["digest"])))
        judged = judged.filter(unseen)
        if len(judged) >= calibration.MIN_IMAGES:
            fitted = calibration.fit_calibration(judged["label"].to_numpy(), judged["logit"].to_numpy())
            return Applied(*fitted, "refitted", judged["digest"])
    return Applied(info.temperature, info.clip, "mean")


def _description(
    job: ScoringJob,
    engine: EngineName,
    applied: Applied,
    counts: dict[str, dict[str, int]],
    speed: dict[str, float],
) -> dict[str, Any]:
    """What `*.meta.json` says of the model, data, options and versions that made the results, but for the time.

    The same command gives the same again.
    """
    return {
        "model": [saved.uri for saved in job.bundles],
        "bundle_fingerprint": job.fingerprint,
        "architecture": job.info.architecture,
        "positive_class": job.info.class_names[1],
        "calibration": applied.words,
        "temperature": applied.temperature,
        "clip": applied.clip,
        "data": job.catalog.root,
        "catalog_fingerprint": job.catalog.fingerprint,
        "engine": engine,
        "precision": precision_of([saved.info.quantisation for saved in job.bundles], engine),
        "options": job.config.model_dump(exclude={"address", "wait", "debug"}),
        "counts": counts,
        "speed": speed,
        "versions": package_versions(),
    }


def _speed(job: ScoringJob, seconds: dict[str, float], made: int) -> dict[str, float]:
    """How many images were scored in how many seconds, or were when the parts that are there were made."""
    if made:
        return {"images": made, "seconds": round(seconds["score"], 3)}
    before = result_set.read_meta(job.out)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        same = (before["bundle_fingerprint"], before["catalog_fingerprint"]) == (
            job.fingerprint,
            job.catalog.fingerprint,
        )
        if same and before["speed"]:
            return {"images": int(before["speed"]["images"]), "seconds": float(before["speed"]["seconds"])}
    return {}


def _write_page(
    job: ScoringJob, described: dict[str, Any], content: Report, merged: dict[str, Merged], digests: dict[str, str]
) -> Exception | None:
    """Writes the report for people; returns why it could not, since everything else is worth having without it."""
    try:
        scores = {
            split: Scores(
                split, job.catalog.split(split), each.logits, each.probabilities, each.counts["recovered"],
                each.unreadable,
            )
            for split, each in merged.items()
        }  # fmt: skip
        text = page.render_score_page(job, described, content, scores)
        digests[_PAGE] = result_set.write_sidecar(job.out, _PAGE, text)
    except Exception as error:
        # An old page would speak of other predictions.
        digests.pop(_PAGE, None)
        with contextlib.suppress(OSError):
            storage.delete_file(result_set.sidecar(job.out, _PAGE))
        return error
    return None


def _drop_stale_parts(job: ScoringJob, finished: dict[str, list[Part]]) -> None:
    """Deletes what other models or data sets left under this name; what counts is all written by now."""
    begun = [part for by_split in job.parts.values() for split in job.others for part in by_split[split]]
    current = {storage.name(part.uri) for each in [*finished.values(), begun] for part in each}
    for name in storage.list_names(job.folder):
        if name.endswith(".parquet") and name not in current:
            storage.delete_file(storage.join(job.folder, name))
