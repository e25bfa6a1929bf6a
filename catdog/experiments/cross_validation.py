"""Stratified K-fold cross-validation: K models, and a prediction for every labelled image by one that never saw it.

Each fold is a separate data set, a catalog that names the same files, so training and scoring need no code for folds.
Early stopping and the choice of the best epoch use a tenth of the training part, never the fold that is evaluated; a
model that keeps its last epoch needs no such choice and trains on the whole training part.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catdog import cluster, rng, stall, storage, tables, waiting
from catdog.data import catalog, key_list
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError, did_you_mean
from catdog.evaluation import calibration, metrics
from catdog.evaluation.metrics import Figures
from catdog.events import EventHandler, FoldStarted, Progress
from catdog.run_directory import RunDirectory
from catdog.scoring import results, score
from catdog.scoring.config import ScoreConfig
from catdog.training import corrections, distillation, feature_cache, train
from catdog.training.config import ResolvedConfig, resolve
from catdog.training.request import TrainConfig

OOF_NAME, REPORT_NAME = "oof.parquet", "oof.json"
_CHOICE_SHARE = 0.1


@dataclass(frozen=True)
class OutOfFold:
    """Predictions for images by models that were not trained on them.

    Attributes:
        name: name of the run, or of the averaged runs.
        keys: N.
        labels: 0 or 1, N.
        folds: int, N.
        logits: float64, N, before calibration.
        seconds: time for training and scoring all folds.
        features: URI of the feature cache of a linear probe, or "".
        catalog_fingerprint: fingerprint of the data set.
    """

    name: str
    keys: list[str]
    labels: np.ndarray
    folds: np.ndarray
    logits: np.ndarray
    seconds: float
    features: str = ""
    catalog_fingerprint: str = ""

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities, each fold calibrated on the others; a single fold is calibrated by halves."""
        groups = self.folds if len(np.unique(self.folds)) > 1 else calibration.halves(self.keys)
        return calibration.cross_fitted(self.labels, self.logits, groups)

    @property
    def losses(self) -> np.ndarray:
        """Log loss of each calibrated prediction, in nats: float64, N."""
        return metrics.losses(self.labels, self.probabilities)

    @property
    def figures(self) -> Figures:
        """Figures of the calibrated predictions."""
        return metrics.summarise(self.labels, self.probabilities)

    @property
    def log_loss_plain(self) -> float:
        """Mean log loss before calibration, in nats."""
        return float(metrics.losses_from_logits(self.labels, self.logits).mean())


def assign_folds(data: Catalog, folds: int, seed: int) -> np.ndarray:
    """Assigns the labelled training and validation images of each class to folds, by a hash of their keys.

    Byte-equal copies are in the same fold, even with different labels, so no model is evaluated on its training images.

    Args:
        data: the catalog.
        folds: K, at least 2.
        seed: seed of the hash.

    Returns:
        int, one for each row of the catalog: 0 to K-1, or -1 for rows that are in no fold.

    Raises:
        UsageError: a class has fewer different images than there are folds.
    """
    labels = data.table["label"].to_pylist()
    splits = data.table["split"].to_pylist()
    drawn = rng.uniform(seed, rng.Stream.FOLD, rng.key_hash(data.table["key"].to_pylist()), 1)[:, 0]
    first = _first_copies(data)
    taking_part = [row for row, name in enumerate(splits) if name in ("train", "valid") and labels[row] is not None]
    copies: dict[int, list[int]] = {}
    for row in taking_part:
        copies.setdefault(int(first[row]), []).append(row)
    fold = np.full(len(labels), -1, np.int64)
    sizes = [[0] * folds, [0] * folds]
    for label in (0, 1):
        mine = np.array([row for row in taking_part if labels[row] == label], np.int64)
        different = len(np.unique(first[mine]))
        if different < folds:
            raise UsageError(
                f"--folds received {folds}, but {data.root} has {different} different {data.class_names[label]} images"
            )
        for row in mine[np.argsort(drawn[mine], kind="stable")]:
            if fold[row] < 0:
                # The first of the smallest folds; without copies this is a round robin.
                smallest = sizes[label].index(min(sizes[label]))
                for copy in copies[int(first[row])]:
                    fold[copy] = smallest
                    sizes[labels[copy]][smallest] += 1
    return fold


def _first_copies(data: Catalog) -> np.ndarray:
    """For each labelled row of training and validation, the first row with the same bytes, which may be itself.

    Returns:
        int, one for each row of the catalog.
    """
    digests = data.table["digest"].to_pylist()
    splits = data.table["split"].to_pylist()
    seen: dict[int, int] = {}
    return np.array(
        [
            row if digest is None or splits[row] == "test" else seen.setdefault(digest, row)
            for row, digest in enumerate(digests)
        ],
        np.int64,
    )


def cross_validate(
    asked: TrainConfig, folds: int, only: int | None = None, on_event: EventHandler | None = None
) -> OutOfFold:
    """Trains and evaluates a model for each fold; the same call again continues an interrupted cross-validation.

    Args:
        asked: configuration of the training runs; `name` is the folder of the folds' runs.
        folds: K, at least 2.
        only: train only this fold, counted from 1.
        on_event: called with the events of training, of scoring, and `FoldStarted`.

    Returns:
        The out-of-fold predictions. They are also written to `RUNS/NAME/oof.parquet`, unless those are of a single fold
        and the file has all of them.

    Raises:
        UsageError, CatdogError: as training and scoring do; or another process works on the run.
    """
    if folds < 2 or (only is not None and not 1 <= only <= folds):
        raise UsageError(f"--folds received {folds}, --fold {only}; expected at least 2 folds, and one of them")
    config = resolve(asked)
    with RunDirectory(config.run.uri).hold("cross-validation"):
        return _cross_validate(config, folds, only, on_event or (lambda _event: None))


def deal_folds(config: ResolvedConfig, folds: int, only: int | None = None) -> tuple[Catalog, np.ndarray, list[int]]:
    """Deals a run's images into folds, and makes sure that no fold is judged by images that its teacher knows.

    Args:
        config: resolved.
        folds: as for `cross_validate`.
        only: as for `cross_validate`.

    Returns:
        The catalog, the fold of each of its rows as of `assign_folds`, and the folds to train, counted from 0.

    Raises:
        UsageError: the teacher was trained on images of these folds; or as `assign_folds`.
    """
    data = catalog.read_catalog(config.data.uri)
    fold_of = assign_folds(data, folds, int(data.options.get("split_seed", 0)))  # type: ignore[call-overload]
    chosen = list(range(folds)) if only is None else [only - 1]
    held_out = data.table.filter(pa.array(np.isin(fold_of, chosen)))
    distillation.require_unseen(distillation.find_teacher(config, data), held_out, must_know=True)
    return data, fold_of, chosen


def _cross_validate(config: ResolvedConfig, folds: int, only: int | None, on_event: EventHandler) -> OutOfFold:
    data, fold_of, chosen = deal_folds(config, folds, only)
    config, folder = config.replace("data", leave_out=_list_for_folds(config, data)), ""
    with cluster.connect(config.resources.address, config.resources.debug) as may_grow:
        if config.optimizer.head_first and not config.optimizer.epochs and not config.run.members:
            advice = "finished features are kept, and the same command goes on"
            with stall.watching(on_event, config.resources.stall_timeout, advice) as watch:
                merged, seconds, folder = _probe(config, data, fold_of, watch.event, may_grow)
            merged = merged.filter(pc.is_in(merged["fold"], pa.array([fold + 1 for fold in chosen])))
        else:
            done = []
            for fold in chosen:
                on_event(FoldStarted(fold + 1, folds))
                done.append(_run_fold(config, data, fold_of, fold, on_event))
            merged, seconds = pa.concat_tables([table for table, _ in done]), sum(spent for _, spent in done)
    merged = merged.sort_by("key")  # the order of `read_out_of_fold`
    labels, logits = merged["label"].to_numpy(), merged["logit"].to_numpy()
    found = OutOfFold(
        config.run.name,
        merged["key"].to_pylist(),
        labels,
        merged["fold"].to_numpy(),
        logits,
        seconds,
        folder,
        data.fingerprint,
    )
    merged = merged.append_column("probability", pa.array(found.probabilities))
    if only is not None and _holds_more(config.run.uri, folds):
        return found
    tables.write_table(storage.join(config.run.uri, OOF_NAME), merged)
    content = {
        "catalog_fingerprint": data.fingerprint,
        "folds": folds,
        "fold": only,
        "seconds": seconds,
        "features": folder,
        **found.figures.as_dict(),
        "log_loss_plain": found.log_loss_plain,
    }
    storage.write_text(storage.join(config.run.uri, REPORT_NAME), json.dumps(content, indent=2) + "\n")
    return found


def _holds_more(run: str, folds: int) -> bool:
    """Returns whether a run has out-of-fold predictions of all folds, which those of one fold must not replace."""
    path = storage.join(run, REPORT_NAME)
    if not storage.exists(path):
        return False
    report = json.loads(storage.read_bytes(path))
    return report["folds"] == folds and report["fold"] is None


def read_out_of_fold(run: str) -> OutOfFold:
    """Reads the out-of-fold predictions of a finished cross-validation.

    Args:
        run: URI of its folder.

    Raises:
        UsageError: the run has none.
        CatdogError: a process works on it.
    """
    run = storage.absolute(run)
    path = storage.join(run, OOF_NAME)
    RunDirectory(run).require_idle()
    if storage.kind(path) != "file":
        near = did_you_mean(storage.name(run), storage.names_beside(run))
        raise UsageError(
            f"received {run}, which has no {OOF_NAME}; create it with `catdog train --folds K --name …`{near}"
        )
    table = tables.read_table(path).sort_by("key")
    report = json.loads(storage.read_bytes(storage.join(run, REPORT_NAME)))
    labels, folds, logits = (table[name].to_numpy() for name in ("label", "fold", "logit"))
    keys = table["key"].to_pylist()
    origin = report["features"], report["catalog_fingerprint"]
    return OutOfFold(storage.name(run), keys, labels, folds, logits, report["seconds"], *origin)


def average_out_of_fold(found: list[OutOfFold]) -> OutOfFold:
    """Averages the logits of several runs, image by image, as a bundle of all their models would.

    Raises:
        UsageError: the runs have different images or folds.
    """
    first = found[0]
    for other in found[1:]:
        same = other.catalog_fingerprint == first.catalog_fingerprint and other.keys == first.keys
        if not same or not np.array_equal(other.folds, first.folds):
            raise UsageError(f"{first.name} and {other.name} are not of the same images and folds; expected the same")
    name = " + ".join(one.name for one in found)
    logits = np.mean([one.logits for one in found], axis=0)
    return OutOfFold(name, first.keys, first.labels, first.folds, logits, sum(one.seconds for one in found))


def _list_for_folds(config: ResolvedConfig, data: Catalog) -> str | None:
    """Writes the `leave_out` list without keys of the test split, which no fold has; returns its URI."""
    if config.data.leave_out is None:
        return None
    labelled = set(data.table.filter(pc.not_equal(data.table["split"], "test"))["key"].to_pylist())
    found = corrections.read_corrections(config.data.leave_out, data)
    named = zip((key_list.LEAVE_OUT, key_list.FLIP), (found.left_out, found.flipped), strict=True)
    text = key_list.format_actions({key: action for action, keys in named for key in sorted(keys & labelled)})
    uri = storage.join(config.run.uri, "data", "left-out.csv")
    storage.write_text(uri, text)
    return uri


def _probe(
    config: ResolvedConfig, data: Catalog, fold_of: np.ndarray, on_event: EventHandler, may_grow: bool
) -> tuple[pa.Table, float, str]:
    """Cross-validates a head on cached features: features are computed once, and no bundles are written.

    Returns:
        As `_run_fold`, and the folder of the feature cache.
    """
    started = time.perf_counter()
    rows = data.table.filter(pa.array(fold_of >= 0))
    folds = fold_of[fold_of >= 0]
    waiting.wait_for([{"CPU": 1}], on_event, config.resources.wait)
    weights = train.load_weights(config)
    folder = train.cache_features(config, data, rows, weights, config.validation.views, on_event, may_grow)
    on_event(Progress("fitting", 0, rows.num_rows))
    changes = corrections.read_corrections(config.data.leave_out, data)
    fitted = ~np.isin(rows["key"].to_pylist(), list(changes.left_out))
    # Fitted to the corrected labels; judged by those of the data set, so that runs can be compared.
    corrected = corrections.correct_rows(rows, changes._replace(left_out=set()))
    logits = feature_cache.out_of_fold(
        folder, corrected, folds, fitted, config.model.spec, config.run.seed, config.validation.views
    )
    labels = rows["label"].to_numpy().astype(np.int64)
    for fold in np.unique(folds):
        prior = labels[folds != fold].mean()
        logits[np.isnan(logits) & (folds == fold)] = metrics.logit(prior)
    columns = {"key": rows["key"], "label": rows["label"], "logit": logits, "fold": folds + 1}
    return pa.table(columns), time.perf_counter() - started, folder


def _run_fold(
    config: ResolvedConfig, data: Catalog, fold_of: np.ndarray, fold: int, on_event: EventHandler
) -> tuple[pa.Table, float]:
    """Trains the model of a fold and scores the fold.

    Returns:
        Columns key, label, logit and fold; and the seconds for both.
    """
    run = RunDirectory(config.run.uri).part("fold", fold + 1).uri
    out = storage.join(run, "oof.csv")
    clock = storage.join(run, "seconds.json")
    judged = _fold_catalog(config, data, fold_of, fold, storage.join(config.run.uri, "data", f"fold-{fold + 1}"))
    split: Literal["valid", "test"] = "valid" if config.validation.keep == "last" else "test"
    started = time.perf_counter()
    resume = RunDirectory(run).exists
    train.train_model(
        config.replace("data", uri=judged.root).replace(
            "run", runs=config.run.uri, name=storage.name(run), resume=resume
        ),
        on_event,
        data=judged,
    )
    request = ScoreConfig(
        model=[run],
        data=judged.root,
        split=split,
        out=out,
        max_unreadable=1,
        gpu=config.resources.gpu,
        gpus_per_actor=config.resources.gpus_per_worker,
        wait=config.resources.wait,
        stall_timeout=config.resources.stall_timeout,
    )
    score.score_dataset(request, on_event, judged)
    if storage.exists(clock):
        spent = json.loads(storage.read_bytes(clock))
    else:
        spent = time.perf_counter() - started
        storage.write_text(clock, json.dumps(spent))
    parts = results.read_parts(out)
    prior = judged.table.filter(pc.equal(judged.table["split"], "train"))["label"].to_numpy().mean()
    logits = parts["logit"].fill_null(metrics.logit(prior)).cast(pa.float64())
    columns = {"key": parts["key"], "label": parts["label"], "logit": logits, "fold": [fold + 1] * len(parts)}
    return pa.table(columns), spent


def _fold_catalog(config: ResolvedConfig, data: Catalog, fold_of: np.ndarray, fold: int, root: str) -> Catalog:
    """Writes the data set of a fold: the same labelled files, which are not in its folder, with other splits."""
    keys = data.table["key"].to_pylist()
    drawn = rng.uniform(fold, rng.Stream.CHOICE, rng.key_hash(keys), 1)[:, 0]
    chosen = drawn[_first_copies(data)] < _CHOICE_SHARE
    last = config.validation.keep == "last"
    split = np.where(fold_of == fold, "valid" if last else "test", np.where(chosen & (not last), "valid", "train"))
    table = data.table.set_column(4, catalog.SCHEMA.field("split"), pa.array(split, pa.string()))
    table = table.filter(pa.array(fold_of >= 0))
    made = Catalog(table, data.class_names, root, data.options | {"fold": fold})
    for name in catalog.SPLITS[:2]:
        if not made.count(name):
            raise CatdogError(f"fold {fold + 1} has no {name} images; give more images or fewer folds")
    made.write()
    return made
