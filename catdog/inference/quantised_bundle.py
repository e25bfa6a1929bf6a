"""A bundle made anew with int8 ONNX files, kept only if the validation photos say that its log loss is the same.

The int8 version of a bundle lies beside it, in a folder of its own, unless it was written elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catdog import rng, storage
from catdog.choices import PrecisionChoice
from catdog.data import images
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.evaluation import calibration, metrics
from catdog.events import EventHandler, Progress
from catdog.inference import card, export, novelty
from catdog.inference.bundle import (
    FILE_NAME,
    IMAGES_NAME,
    VERIFIED,
    BundleInfo,
    ModelBundle,
    SavedBundle,
    fingerprint_of,
    read_info,
    read_onnx,
    read_provenance,
    statistics_name,
)
from catdog.inference.engines import Engine, OnnxEngine
from catdog.inference.novelty import KnownImages
from catdog.inference.precision import Quantisation
from catdog.inference.provenance import Provenance
from catdog.inference.quantise import Quantiser
from catdog.run_directory import INT8_SUFFIX, RunDirectory

# How much more log loss int8 may have, in nats: the high end of the interval of the change must be below.
MOST_CHANGE = 5e-4
NOT_KEPT = "int8 is not kept: "
# Photos that tell which convolutions are the most sensitive; they calibrate nothing.
_SWEEP_IMAGES = 64
_BATCH = 64


@dataclass(frozen=True)
class _Photos:
    """Readable photos of a data set: their rows of the catalog, and uint8 N×S×S×3."""

    rows: pa.Table
    pixels: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.rows["label"].to_numpy()


def quantise_bundle(
    model: str,
    data: Catalog,
    out: str | None = None,
    calibration_images: int = 512,
    weight_bits: int = 7,
    keep_float: int = 2,
    on_event: EventHandler = lambda _event: None,
) -> SavedBundle:
    """Makes an int8 bundle of a float32 one, which stays as it is.

    Args:
        model: URI of a run or of a bundle with ONNX files.
        data: its training photos calibrate, its validation photos judge; photos that the model was trained on do not.
        out: URI of the new bundle's folder, which must not hold anything; None is beside the float32 bundle, where
            `read_bundles` finds it.
        calibration_images: training photos that are run through the model.
        weight_bits: 7 for integers that are safe on CPUs without VNNI, or 8.
        keep_float: how many convolutions of each member stay in float32: those to which its logits are most sensitive,
            on other training photos.
        on_event: told of `Progress`.

    Returns:
        The new bundle.

    Raises:
        UsageError: no such bundle, it has no ONNX files or is int8 already, or `out` holds something.
        CatdogError: too few photos, or the log loss may change by `MOST_CHANGE` or more; nothing is written.
    """
    saved = read_info(model)
    uri, info = saved
    _require_fit(saved, data, out)
    out = out or _beside(uri)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    provenance = read_provenance(uri, info)
    judged = _judged_rows(data, provenance)
    # A second stretch of the same order, so that no photo does both.
    train = data.split("train")
    order = np.argsort(rng.key_hash(train["key"].to_pylist()), kind="stable")
    wanted = max(calibration_images, novelty.TRAIN_IMAGES) + _SWEEP_IMAGES
    known = _decode(train.take(order[:wanted]), info.image_size, on_event)
    count = min(calibration_images, len(known.pixels) - _SWEEP_IMAGES)
    if count < 1:
        raise CatdogError(f"{data.root} has {len(known.pixels)} training photos, expected more than {_SWEEP_IMAGES}")
    most = 64 if weight_bits == 7 else 127
    files, in_float = [], []
    for number, member in enumerate(info.members):
        on_event(Progress("quantising", number, len(info.members)))
        quantiser = Quantiser(read_onnx(uri, info, member), known.pixels[:count], threads)
        sweep = known.pixels[-_SWEEP_IMAGES:]
        kept = quantiser.by_sensitivity(sweep, most, threads)[:keep_float] if keep_float else []
        files.append(quantiser.quantise(most, frozenset(kept)))
        in_float.append(kept)

    engines: list[Engine] = [OnnxEngine(each, threads) for each in files]
    rows, before, after, sample = _predict_both(saved, ModelBundle(info, engines, uri), judged, threads, on_event)
    log_loss, change, low, high = _compare(rows, before, after, info)
    quantisation = Quantisation(
        weight_bits=weight_bits, calibration_images=count, in_float=in_float, n=len(rows), log_loss_float32=log_loss,
        log_loss_change=change, log_loss_change_low=low, log_loss_change_high=high,
        float32_fingerprint=fingerprint_of(info),
    )  # fmt: skip
    if not high < MOST_CHANGE:
        raise CatdogError(
            f"{NOT_KEPT}on {len(rows):,} validation photos it changes the log loss of {log_loss:.4f} by "
            f"{change:+.4f} ({low:+.4f} to {high:+.4f}), expected less than {MOST_CHANGE:+.4f} at the high end; "
            f"nothing was written; more validation photos make the interval narrower, and --keep-float with more than "
            f"{keep_float} convolutions the change smaller"
        )
    figures, temperature, clip = calibration.judge_and_calibrate(
        rows["label"].to_numpy(), after, rows["key"].to_pylist(), info.calibration == "validation"
    )
    if info.calibration == "none":
        temperature, clip = info.temperature, info.clip
    photos = KnownImages(list(known.pixels[: novelty.TRAIN_IMAGES]), known.labels[: novelty.TRAIN_IMAGES], sample)
    statistics = [novelty.fit_statistics(each, photos, threads) for each in files]
    written = export.replace_onnx(
        saved,
        out,
        files,
        statistics,
        Provenance.union([provenance, Provenance.of(known.rows, rows)]),
        quantisation=quantisation,
        temperature=temperature,
        clip=clip,
        validation={name: info.validation[name] for name in ("epoch",) if name in info.validation} | figures,
    )
    return SavedBundle(out, written)


def read_bundles(models: Iterable[str], precision: PrecisionChoice = "auto") -> list[SavedBundle]:
    """Finds bundles, or the int8 versions beside them that were proven to be as good.

    Args:
        models: URIs of runs or of bundles.
        precision: "auto" takes each bundle as it is; "int8" its int8 version, unless it is int8 itself; "float32" none
            that is int8.

    Raises:
        UsageError: there is no such bundle, or it has no such version.
        CatdogError: one is damaged.
    """
    return [_in_precision(read_info(model), model, precision) for model in models]


def _in_precision(saved: SavedBundle, model: str, precision: PrecisionChoice) -> SavedBundle:
    is_int8 = saved.info.quantisation is not None
    if precision == "float32" and is_int8:
        raise UsageError(
            f"--precision received float32, but {saved.uri} is int8; give the bundle that it was made of as --model"
        )
    if precision != "int8" or is_int8:
        return saved
    beside = _beside(saved.uri)
    if storage.kind(storage.join(beside, FILE_NAME)) != "file":
        refused = why_refused(storage.parent(saved.uri))
        why = f" (training did not keep it: {refused})" if refused else ""
        raise UsageError(
            f"--precision received int8, but {saved.uri} has no int8 version in {beside}{why}; make it by `catdog "
            f"bundle quantise {model} --data DATA`, or leave --precision out"
        )
    found = read_info(beside)
    if found.info.quantisation is None or not _is_made_of(found.info, saved.info):
        raise UsageError(
            f"--precision received int8, but {beside} was not made of {saved.uri}; delete it, and make it by `catdog "
            f"bundle quantise {model} --data DATA`, or leave --precision out"
        )
    return found


def _is_made_of(int8: BundleInfo, info: BundleInfo) -> bool:
    """Whether an int8 bundle has the weights and the views of a float32 one, which may have been marked since."""
    keras = {name: int8.checksums[name] for name in int8.members}
    return keras == {name: info.checksums[name] for name in info.members} and int8.views == info.views


def _beside(uri: str) -> str:
    """URI of the folder of a bundle's int8 version."""
    base, mark, query = (uri, "", "") if storage.is_local(uri) else uri.partition("?")
    return base.rstrip("/") + INT8_SUFFIX + mark + query


def why_refused(run: str) -> str:
    """Why training kept no int8 version of a run's model, in a line; "" where nothing says so."""
    try:
        return str(json.loads(storage.read_if_there(RunDirectory(run).no_int8) or b"{}").get("refused", ""))
    except (ValueError, AttributeError):
        return ""


def _require_fit(saved: SavedBundle, data: Catalog, out: str | None) -> None:
    uri, info = saved
    if info.onnx != VERIFIED:
        raise UsageError(f"--model received {uri}, which has no ONNX file to quantise: {info.onnx}")
    if info.quantisation is not None:
        raise UsageError(f"--model received {uri}, which is int8 already; give the float32 bundle that it was made of")
    if data.class_names != info.class_names:
        raise UsageError(f"the model tells {info.class_names} apart, but the data set holds {data.class_names}")
    if out is None:
        # What a killed call left there is written anew.
        place, tolerated = _beside(uri), {*info.checksums, IMAGES_NAME, card.NAME, *map(statistics_name, info.members)}
        what = f"{place}, where the int8 version goes, holds something already; delete it, or give another --out"
    else:
        place, tolerated = out, set()
        what = f"--out received {out}, which holds something already; give the name of a new folder"
    if storage.kind(place) == "file" or not tolerated.issuperset(storage.list_names(place)):
        raise UsageError(what)


def _judged_rows(data: Catalog, provenance: Provenance) -> pa.Table:
    """The validation photos with labels that the model was not trained on."""
    rows = data.split("valid")
    unseen = pc.and_(rows["label"].is_valid(), pa.array(~provenance.trained_on(rows["digest"])))
    rows = rows.filter(unseen)
    if len(rows) < calibration.MIN_IMAGES:
        raise CatdogError(
            f"{data.root} has {len(rows)} labelled validation photos that the model was not trained on, expected at "
            f"least {calibration.MIN_IMAGES} to judge it by"
        )
    return rows


def _batches(rows: pa.Table, size: int) -> Iterator[_Photos]:
    """The readable photos of catalog rows, decoded in batches."""
    for start in range(0, len(rows), _BATCH):
        part = rows.slice(start, _BATCH)
        batch = images.read_batch(part["uri"].to_pylist(), [size])
        readable = np.array([status != "unreadable" for status in batch.statuses])
        yield _Photos(part.filter(pa.array(readable)), batch.pixels[size][readable])


def _decode(rows: pa.Table, size: int, on_event: EventHandler) -> _Photos:
    on_event(Progress("decoding", 0, len(rows)))
    found = []
    for number, batch in enumerate(_batches(rows, size), 1):
        found.append(batch)
        on_event(Progress("decoding", min(number * _BATCH, len(rows)), len(rows)))
    return _Photos(pa.concat_tables(each.rows for each in found), np.concatenate([each.pixels for each in found]))


def _predict_both(
    saved: SavedBundle, quantised: ModelBundle, rows: pa.Table, threads: int, on_event: EventHandler
) -> tuple[pa.Table, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Readable rows, logits of the float32 and of the int8 bundle with all members and views, and a few photos."""
    exact = ModelBundle.load_saved(saved, "onnx", threads)
    kept, before, after = [], [], []
    sample: list[np.ndarray] = []
    on_event(Progress("judging", 0, len(rows)))
    for number, batch in enumerate(_batches(rows, saved.info.image_size), 1):
        if len(batch.pixels):
            kept.append(batch.rows)
            before.append(exact.logits(batch.pixels))
            after.append(quantised.logits(batch.pixels))
            sample += list(batch.pixels[: novelty.VALID_IMAGES - len(sample)])
        on_event(Progress("judging", min(number * _BATCH, len(rows)), len(rows)))
    if sum(map(len, kept)) < calibration.MIN_IMAGES:
        raise CatdogError(f"fewer than {calibration.MIN_IMAGES} validation photos could be read; nothing to judge by")
    return pa.concat_tables(kept), np.concatenate(before), np.concatenate(after), sample


def _compare(
    rows: pa.Table, before: np.ndarray, after: np.ndarray, info: BundleInfo
) -> tuple[float, float, float, float]:
    """The float32 log loss, by how much int8 has more, and the paired interval; each with its own temperature."""
    labels = rows["label"].to_numpy()
    halves = calibration.halves(rows["key"].to_pylist())

    def losses(logits: np.ndarray) -> np.ndarray:
        if info.calibration == "none":
            return metrics.losses(labels, metrics.calibrated(logits, info.temperature, info.clip))
        return metrics.losses(labels, calibration.cross_fitted(labels, logits, halves))

    exact = losses(before)
    difference = losses(after) - exact
    return float(exact.mean()), float(difference.mean()), *metrics.difference_interval(difference)
