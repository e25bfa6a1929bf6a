"""The feature cache: outputs of a frozen backbone, computed once per image by a Ray Data job, and heads fitted to them.

Features lie in Parquet files in a folder whose name is a fingerprint of everything they follow from, so another data
set, backbone, size or decoder never finds them. Within it rows are found by key, and only those that are missing are
computed: the folds of a cross-validation share one folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from catdog import cluster, resources, restarts, rng, stall, storage, tables, waiting
from catdog.data import isolation
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError
from catdog.events import EventHandler, FeaturesStarted, Progress
from catdog.inference import engines
from catdog.inference.views import apply_view
from catdog.models import batch_norm, registry, surgery
from catdog.versions import DECODERS, package_versions

_BLOCK_ROWS = 256
_BATCH = 32
# Inverse L2 penalties. The least penalty that cross-validates well gives weights so large that fine-tuning starts with
# wild steps: over its first 120 the training loss was 0.3 with 1.0, and 0.1 with 0.02.
_STRENGTHS, _GENTLE_STRENGTH = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), 0.02


def cache_folder(root: str, data: Catalog, spec: registry.ModelSpec, weights: ray.ObjectRef | None, seed: int) -> str:
    """The folder for the features of one data set, backbone and decoder.

    Args:
        root: URI of the folder of all caches.
        data: the catalog; its files' digest counts, not its split.
        spec: the backbone's.
        weights: the backbone's weights, or None for random ones drawn from `seed`.
        seed: the run's.
    """
    versions = package_versions()
    origin = [
        data.options.get("content_sha256", data.fingerprint),
        spec.arch,
        spec.alpha,
        spec.image_size,
        hashlib.sha256(ray.get(weights)).hexdigest() if weights is not None else f"seed {seed}",
        *(versions[name] for name in ("keras", "tensorflow", *DECODERS)),
    ]
    return storage.join(root, hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16])


def compute_features(
    rows: pa.Table,
    spec: registry.ModelSpec,
    weights: ray.ObjectRef | None,
    seed: int,
    views: list[str],
    folder: str,
    on_event: EventHandler,
    gpu: bool | None = None,
    may_grow: bool = False,
    wait: float | None = None,
    gpus_per_actor: float = 1.0,
) -> None:
    """Computes the features that are not in the cache yet.

    Args:
        rows: columns key and uri.
        spec: the backbone's.
        weights: the backbone's weights.
        seed: of random ones.
        views: how each image is shown.
        folder: URI, from `cache_folder`.
        on_event: told of `FeaturesStarted`, `Progress` and `Waiting`.
        gpu: a GPU for each actor; None where there are any.
        may_grow: an autoscaler may bring a GPU that is not there yet.
        wait: seconds to wait for a CPU or GPU, or None.
        gpus_per_actor: how much of a GPU each actor takes, in (0, 1].

    Raises:
        CatdogError: a task failed.
    """
    there = {view: set[str]() for view in views}
    for part in _parts(folder, ["key", "view"]):
        for view, keys in there.items():
            keys.update(part.filter(pc.equal(part["view"], view))["key"].to_pylist())
    missing = [at for at, key in enumerate(rows["key"].to_pylist()) if any(key not in keys for keys in there.values())]
    on_event(FeaturesStarted(len(missing), rows.num_rows - len(missing)))
    if not missing:
        return
    wanted = rows.take(missing).select(["key", "uri"]).combine_chunks()
    blocks = [wanted.slice(start, _BLOCK_ROWS) for start in range(0, wanted.num_rows, _BLOCK_ROWS)]
    plan = resources.plan_scoring({"tensorflow": len(blocks)}, gpu, may_grow, gpus_per_actor)
    waiting.wait_for([plan.actor_resources], on_event, wait)
    done = ray.data.from_arrow(blocks).map_batches(
        _Extractor,
        fn_constructor_args=(spec, weights, seed, views, folder, plan.threads, plan.gpu),
        batch_format="pyarrow",
        batch_size=_BLOCK_ROWS,
        # In the thread of the call, which is the only one that Ray tells about the call.
        compute=ray.data.ActorPoolStrategy(size=plan.actors, enable_true_multi_threading=True),
        num_cpus=plan.actor_resources.get("CPU", 0),
        num_gpus=plan.actor_resources.get("GPU", 0),
    )
    with cluster.ray_errors("computing features failed ({cause}); those that were done stay, and --resume goes on"):
        computed = 0
        for row in done.iter_rows():
            computed += row["images"]
            on_event(Progress("features", computed, len(missing)))


def _load_backbone(
    spec: registry.ModelSpec, weights: bytes | None, seed: int, threads: int, gpu: bool
) -> Callable[[np.ndarray], Any]:
    """The function from uint8 N×S×S×3 to the features, float32 N×D, a tensor."""
    engines.set_up(threads, gpu)
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    model = surgery.feature_extractor(registry.build_model(spec, weights))
    if not gpu and batch_norm.can_fold_batch_norm(model):  # half as fast again
        return tf.function(
            lambda batch: batch_norm.apply_folded(model, batch, bfloat16=False, training=False), autograph=False
        )
    return tf.function(lambda batch: model(batch, training=False), autograph=False)


class _Extractor:
    """An actor that loads the backbone once and turns ranges of the catalog into files of features."""

    def __init__(
        self,
        spec: registry.ModelSpec,
        weights: ray.ObjectRef | None,
        seed: int,
        views: list[str],
        folder: str,
        threads: int,
        gpu: bool,
    ) -> None:
        bytes_ = ray.get(weights) if weights is not None else None
        self._features = restarts.load_in_actor("the backbone", _load_backbone, spec, bytes_, seed, threads, gpu)
        self._size, self._views, self._folder = spec.image_size, views, folder

    def __call__(self, block: pa.Table) -> pa.Table:
        pixels, statuses, _ = isolation.read_batch(block["uri"].to_pylist(), [self._size], "features")
        readable = [at for at, status in enumerate(statuses) if status != "unreadable"]
        if not readable:
            return pa.table({"images": [block.num_rows]})
        keys = block["key"].take(readable)
        by_view = []
        for view in self._views:
            found: list[np.ndarray] = []
            for start in range(0, len(readable), _BATCH):
                stall.beat()
                batch = pixels[self._size][readable[start : start + _BATCH]]
                padded = np.pad(batch, ((0, _BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
                found.append(self._features(apply_view(padded, view)).numpy()[: len(batch)])
            values = pa.array(list(np.concatenate(found)), pa.list_(pa.float32()))
            by_view.append(pa.table({"key": keys, "view": [view] * len(readable), "features": values}))
        mark = hashlib.sha256("\0".join([*block["key"].to_pylist(), *self._views]).encode()).hexdigest()[:24]
        tables.write_table(storage.join(self._folder, f"{mark}.parquet"), pa.concat_tables(by_view))
        return pa.table({"images": [block.num_rows]})


def read_features(folder: str, keys: list[str], view: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads features from a cache.

    Args:
        folder: URI, from `cache_folder`.
        keys: N catalog keys.
        view: how the images were shown.

    Returns:
        float32, M×D, and int, M: which of the keys they are of. An unreadable image has none.
    """
    place = {key: at for at, key in enumerate(keys)}
    found: dict[int, np.ndarray] = {}
    for part in _parts(folder, ["key", "view", "features"]):
        part = part.filter(pc.equal(part["view"], view))
        if not part.num_rows:
            continue
        values = part["features"].combine_chunks().flatten().to_numpy().reshape(part.num_rows, -1)
        for key, row in zip(part["key"].to_pylist(), values, strict=True):
            if key in place:
                found[place[key]] = row
    at = np.array(sorted(found), np.int64)
    return np.stack([found[row] for row in at]) if len(at) else np.empty((0, 0), np.float32), at


def _parts(folder: str, columns: list[str]) -> Iterator[pa.Table]:
    """The files of a cache, but for damaged ones, which are made again under the same names."""
    for name in storage.list_names(folder):
        if name.endswith(".parquet"):
            uri = storage.join(folder, name)
            try:
                data = storage.read_bytes(uri)
            except FileNotFoundError:
                continue
            except OSError as error:  # without these features a head would be fitted to fewer images
                raise CatdogError(
                    f"could not read {uri}: {error.strerror or error}; run the same command again"
                ) from error
            try:
                table = tables.table_from_bytes(data, columns)
            except (pa.ArrowException, OSError):
                continue
            yield table


def fit_head(
    folder: str, rows: pa.Table, spec: registry.ModelSpec, seed: int, views: list[str], gentle: bool = False
) -> list[np.ndarray]:
    """Fits a model's head to cached features, in one task on the cluster.

    Args:
        folder: URI, from `cache_folder`.
        rows: columns key and label.
        spec: the model's.
        seed: of a dense head's initial weights and order.
        views: those to fit to, all of one image on the same side of every split.
        gentle: keep a logistic head's weights small, because the backbone is to be trained with it.

    Returns:
        The values of the head's variables, in order.

    Raises:
        CatdogError: no image could be read, or the task failed.
    """
    return _on_cluster(_fit_head, folder, rows, spec, seed, views, gentle)


def out_of_fold(
    folder: str,
    rows: pa.Table,
    folds: np.ndarray,
    fitted: np.ndarray,
    spec: registry.ModelSpec,
    seed: int,
    views: list[str],
) -> np.ndarray:
    """Fits a head for each fold, to the features of all the others, and predicts the fold with it.

    Args:
        folder: URI, from `cache_folder`.
        rows: columns key and label, N.
        folds: int, N.
        fitted: bool, N: which a head may be fitted to.
        spec: the model's.
        seed: as for `fit_head`.
        views: those to fit to, whose logits are averaged.

    Returns:
        Logits, float64, N; not a number for an image that could not be read.

    Raises:
        CatdogError: as `fit_head`.
    """
    # Arrays from Ray's shared memory are read-only.
    return np.array(_on_cluster(_out_of_fold, folder, rows, spec, seed, views, folds, fitted))


def _on_cluster(work: Callable[..., Any], folder: str, rows: pa.Table, spec: registry.ModelSpec, *more: Any) -> Any:
    keys, labels = rows["key"].to_pylist(), rows["label"].to_numpy().astype(np.int64)
    try:
        # In a process of its own, because TensorFlow's number of threads can be set only once.
        values = ray.get(ray.remote(max_calls=1)(work).remote(folder, keys, labels, spec, *more))
    except ray.exceptions.RayError as error:
        raise CatdogError(f"fitting the head failed: {cluster.cause(error)}") from error
    if values is None:
        raise CatdogError(f"none of the {len(keys)} training images could be read; is the data set on every node?")
    return values


def _read_views(folder: str, keys: list[str], views: list[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """The features of each view, M×D, and int, M: which of the keys they are of, those that every view has."""
    seen = [read_features(folder, keys, view) for view in views]
    common = functools.reduce(np.intersect1d, [at for _, at in seen])
    return [features[np.isin(at, common)] for features, at in seen], common


def _fit_head(
    folder: str,
    keys: list[str],
    labels: np.ndarray,
    spec: registry.ModelSpec,
    seed: int,
    views: list[str],
    gentle: bool,
) -> list[np.ndarray] | None:
    engines.set_up(1, gpu=False)
    features, at = _read_views(folder, keys, views)
    return _fit(features, labels[at], [keys[row] for row in at], spec, seed, gentle) if len(at) else None


def _out_of_fold(
    folder: str,
    keys: list[str],
    labels: np.ndarray,
    spec: registry.ModelSpec,
    seed: int,
    views: list[str],
    folds: np.ndarray,
    may_fit: np.ndarray,
) -> np.ndarray | None:
    engines.set_up(1, gpu=False)
    features, at = _read_views(folder, keys, views)
    if not len(at):
        return None
    logits = np.full(len(keys), np.nan)
    for fold in np.unique(folds):
        rest, held_out = (folds[at] != fold) & may_fit[at], folds[at] == fold
        head = _build_head(features[0].shape[1], spec)
        fitted = [keys[row] for row in at[rest]]
        head.set_weights(_fit([view[rest] for view in features], labels[at][rest], fitted, spec, seed))
        seen = [np.asarray(head(view[held_out], training=False))[:, 0] for view in features]
        logits[at[held_out]] = np.mean(seen, axis=0)
    return logits


def _build_head(width: int, spec: registry.ModelSpec) -> Any:
    import keras

    inputs = x = keras.Input((width,))
    for layer in surgery.head_layers(registry.build_model(spec)):
        x = layer(x)
    return keras.Model(inputs, x)


def _fit(
    features: list[np.ndarray],
    labels: np.ndarray,
    keys: list[str],
    spec: registry.ModelSpec,
    seed: int,
    gentle: bool = False,
) -> list[np.ndarray]:
    """Fits a head to the features of every view together."""
    import keras

    keras.utils.set_random_seed(seed)
    head = _build_head(features[0].shape[1], spec)
    if len(head.weights) == 2:
        return fit_logistic(features, labels, (_GENTLE_STRENGTH,) if gentle else _STRENGTHS)
    held_out = rng.uniform(rng.Stream.HEAD_HELD_OUT, seed, rng.key_hash(keys), 1)[:, 0] < 0.1
    head.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    alive = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: stall.beat())
    stop = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    head.fit(
        np.concatenate([view[~held_out] for view in features]),
        np.tile(labels[~held_out], len(features))[:, None],
        batch_size=64,
        epochs=30,
        verbose=0,
        validation_data=(features[0][held_out], labels[held_out][:, None]) if held_out.any() else None,
        callbacks=[alive, stop] if held_out.any() else [alive],
    )
    return head.get_weights()


def fit_logistic(
    features: list[np.ndarray], labels: np.ndarray, strengths: tuple[float, ...] = _STRENGTHS
) -> list[np.ndarray]:
    """Logistic regression with the L2 penalty that cross-validates best on the first view, for each view alike.

    Args:
        features: float, N×D, of each view.
        labels: 0 or 1, N.
        strengths: inverse penalties to choose from.

    Returns:
        Weights, float32, D×1, and bias, float32, 1.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    def score(strength: float) -> float:
        stall.beat()
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        model = LogisticRegression(C=strength, max_iter=1000)
        return float(cross_val_score(model, features[0], labels, cv=folds, scoring="neg_log_loss").mean())

    enough = np.bincount(labels, minlength=2).min() >= 3
    strength = max(strengths, key=score) if enough and len(strengths) > 1 else strengths[0]
    # The losses are summed, so that an image with four views would count four times against the penalty.
    model = LogisticRegression(C=strength / len(features), max_iter=2000)
    model.fit(np.concatenate(features), np.tile(labels, len(features)))
    return [model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)]
