"""The page of a training run: what it shows, taken from the files of the finished run."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catdog import storage, tables
from catdog.data import catalog
from catdog.data.catalog import Catalog
from catdog.evaluation import metrics
from catdog.evaluation.calibration import Applied
from catdog.inference import bundle
from catdog.inference.bundle import BundleInfo, SavedBundle
from catdog.reporting import page, report
from catdog.reporting.page import Source
from catdog.reporting.pictures import Scores
from catdog.reporting.report import Report, Subject
from catdog.run_directory import RunDirectory
from catdog.training.int8_version import describe_int8


def write_train_page(run: str, data: str) -> str:
    """Writes `report.html` of a finished run: training curves, and what validation says of the kept weights.

    Args:
        run: URI of the run.
        data: URI of the data set that it was trained on.

    Returns:
        URI of the page.

    Raises:
        UsageError: there is no such data set, or the run is not finished.
        CatdogError: a file of either is damaged, or the page could not be written.
    """
    place, saved, prepared = RunDirectory(run), bundle.read_info(run), catalog.read_catalog(data)
    content, scores = _judge(place, saved, prepared)
    info = saved.info
    facts = [
        ("data", prepared.root),
        ("catalog fingerprint", info.catalog_fingerprint),
        ("bundle fingerprint", bundle.fingerprint_of(info)),
        ("seed", str(info.seed)),
        ("calibrated on", info.calibration),
        ("temperature", str(info.temperature)),
        ("clip", str(info.clip)),
        ("ONNX model", info.onnx),
        *[("int8 version", said) for said in [describe_int8(run)] if said],
    ]
    text = page.render_page(
        Source(
            title=storage.name(run),
            command="",
            report=content,
            scores=scores,
            info=info,
            models=[saved],
            facts=facts,
            versions=info.versions,
            is_drawn=prepared.is_drawn,
        )
    )
    storage.write_text(place.page, text)
    return place.page


def _judge(run: RunDirectory, saved: SavedBundle, prepared: Catalog) -> tuple[Report, dict[str, Scores]]:
    """The report on the validation logits that the run kept, and these; nothing where it kept none of these rows."""
    rows = prepared.split("valid")
    if not storage.exists(run.valid):
        return Report(), {}
    kept = tables.read_table(run.valid)
    if not kept["key"].equals(rows["key"]):
        return Report(), {}
    info = saved.info
    details = kept["detail"] if "detail" in kept.column_names else pa.chunked_array([[""] * len(kept)])
    unreadable = pc.not_equal(details, "").to_numpy()
    logits, probabilities = _predictions(info, kept["logit"].to_numpy(), unreadable)
    table = pa.table(
        {
            "key": rows["key"],
            "label": rows["label"],
            "logit": pa.array(logits, mask=unreadable),
            "probability": probabilities,
            "status": np.where(unreadable, "unreadable", "ok"),
            "digest": rows["digest"],
        }
    )
    count = int(unreadable.sum())
    # Training does not tell images that are damaged from those that are whole.
    counts = {"ok": len(kept) - count, "recovered": 0, "unreadable": count}
    applied = Applied(info.temperature, info.clip, "none" if info.calibration == "none" else "own")
    subject = Subject(info, bundle.read_provenance(*saved), prepared, applied)
    listed = rows.select(["id", "key"]).append_column("detail", details).filter(pa.array(unreadable))
    scores = Scores("valid", rows, logits, probabilities, 0, listed)
    return report.build_report({"valid": table}, {"valid": counts}, subject), {"valid": scores}


def _predictions(info: BundleInfo, logits: np.ndarray, unreadable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits, NaN for unreadable images, and probabilities, the prior for those."""
    probabilities = metrics.calibrated(logits, info.temperature, info.clip)
    return np.where(unreadable, np.nan, logits), np.where(unreadable, info.prior, probabilities)
