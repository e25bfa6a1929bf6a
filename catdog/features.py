"""The feature cache: what a frozen backbone makes of each image, computed once by a Ray Data job, and heads for it.

Features lie in Parquet files in a folder whose name is a fingerprint of everything they follow from, so another data
set, backbone, size or decoder never finds them. Within it rows are found by key, and only those that are missing are
computed: the folds of a cross-validation share one folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from catdog import augment, bundle, cluster, images, models, storage
from catdog.catalog import Catalog
from catdog.errors import CatdogError

_BLOCK_ROWS = 256
_BATCH = 32
_REGULARISATION = (0.003, 0.01, 0.03, 0.1, 0.3)
_HELD_OUT_STREAM = 2


def cache(root: str, data: Catalog, spec: models.Spec, weights: ray.ObjectRef | None, seed: int) -> str:
    """The folder for the features of one data set, backbone and decoder.

    Args:
        root: URI of the folder of all caches.
        data: the catalog; its files' digest counts, not its split.
        spec: the backbone's.
        weights: the backbone's weights, or None for random ones drawn from `seed`.
        seed: the run's.
    """
    versions = bundle.package_versions()
    origin = [
        data.options.get("content_sha256", data.fingerprint),
        spec.arch,
        spec.alpha,
        spec.image_size,
        hashlib.sha256(ray.get(weights)).hexdigest() if weights is not None else f"seed {seed}",
        *(versions[name] for name in ("keras", "tensorflow", "opencv-python-headless", "pillow")),
    ]
    return storage.join(root, hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16])


def compute(
    rows: pa.Table,
    spec: models.Spec,
    weights: ray.ObjectRef | None,
    seed: int,
    views: list[str],
    folder: str,
    on_event: Callable[[dict[str, Any]], None],
) -> None:
    """Computes the features that are not in the cache yet.

    Args:
        rows: columns key and uri.
        spec: the backbone's.
        weights: the backbone's weights.
        seed: of random ones.
        views: how each image is shown.
        folder: URI, from `cache`.
        on_event: told `{"kind": "features", "images", "kept"}`.

    Raises:
        CatdogError: a task failed.
    """
    there = {(key, view) for part in _parts(folder) for key, view in zip(part["key"], part["view"], strict=True)}
    missing = [at for at, key in enumerate(rows["key"].to_pylist()) if any((key, v) not in there for v in views)]
    on_event({"kind": "features", "images": len(missing), "kept": rows.num_rows - len(missing)})
    if not missing:
        return
    wanted = rows.take(missing).select(["key", "uri"]).combine_chunks()
    blocks = [wanted.slice(start, _BLOCK_ROWS) for start in range(0, wanted.num_rows, _BLOCK_ROWS)]
    plan = cluster.plan_scoring(len(blocks))
    done = ray.data.from_arrow(blocks).map_batches(
        _Extractor,
        fn_constructor_args=(spec, weights, seed, views, folder, plan.cpus_per_actor),
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=plan.actors),
        num_cpus=plan.cpus_per_actor,
        num_gpus=1 if plan.gpu else 0,
    )
    try:
        for _ in done.iter_rows():
            pass
    except ray.exceptions.RayError as error:
        raise CatdogError(
            f"computing features failed ({cluster.cause(error)}); those that were done stay, and --resume goes on"
        ) from error


class _Extractor:
    """An actor that loads the backbone once and turns ranges of the catalog into files of features."""

    def __init__(
        self, spec: models.Spec, weights: ray.ObjectRef | None, seed: int, views: list[str], folder: str, threads: int
    ) -> None:
        import keras
        import tensorflow as tf

        cluster.limit_threads(threads)
        keras.utils.set_random_seed(seed)
        model = models.feature_extractor(models.build(spec, ray.get(weights) if weights is not None else None))
        self._features = tf.function(lambda batch: model(batch, training=False))
        self._size, self._views, self._folder = spec.image_size, views, folder

    def __call__(self, block: pa.Table) -> pa.Table:
        decoded = [images.read(uri, self._size) for uri in block["uri"].to_pylist()]
        readable = [at for at, image in enumerate(decoded) if image.status != "unreadable"]
        keys = block["key"].take(readable)
        tables = []
        for view in self._views:
            found: list[np.ndarray] = []
            for start in range(0, len(readable), _BATCH):
                batch = np.stack([decoded[at].pixels for at in readable[start : start + _BATCH]])
                padded = np.pad(batch, ((0, _BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
                found.append(self._features(images.show(padded, view)).numpy()[: len(batch)])
            values = pa.array(list(np.concatenate(found)) if found else [], pa.list_(pa.float32()))
            tables.append(pa.table({"key": keys, "view": [view] * len(readable), "features": values}))
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
        mark = hashlib.sha256("\0".join([*block["key"].to_pylist(), *self._views]).encode()).hexdigest()[:24]
        storage.write_bytes(storage.join(self._folder, f"{mark}.parquet"), sink.getvalue().to_pybytes())
        return pa.table({"images": [block.num_rows]})


def read(folder: str, keys: list[str], view: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads features from a cache.

    Args:
        folder: URI, from `cache`.
        keys: N catalog keys.
        view: how the images were shown.

    Returns:
        float32, M×D, and int, M: which of the keys they are of. An unreadable image has none.
    """
    place = {key: at for at, key in enumerate(keys)}
    found: dict[int, np.ndarray] = {}
    for part in _parts(folder, with_features=True):
        for key, seen, values in zip(part["key"], part["view"], part["features"], strict=True):
            if seen == view and key in place:
                found[place[key]] = values
    at = np.array(sorted(found), np.int64)
    return np.stack([found[row] for row in at]) if len(at) else np.empty((0, 0), np.float32), at


def _parts(folder: str, with_features: bool = False) -> list[dict[str, Any]]:
    columns = ["key", "view"] + ["features"] * with_features
    parts = []
    for name in storage.list_names(folder) if storage.exists(folder) else []:
        try:
            table = pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(folder, name))), columns=columns)
        except pa.ArrowInvalid:
            continue  # damaged, and so computed again under the same name
        part: dict[str, Any] = {column: table[column].to_pylist() for column in ("key", "view")}
        if with_features:
            values = table["features"].combine_chunks()
            part["features"] = values.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
        parts.append(part)
    return parts


def fit_head(folder: str, rows: pa.Table, spec: models.Spec, seed: int, views: list[str]) -> list[np.ndarray]:
    """Fits a model's head to cached features, in one task on the cluster.

    Args:
        folder: URI, from `cache`.
        rows: columns key and label.
        spec: the model's.
        seed: of a dense head's initial weights and order.
        views: those to fit to, all of one image on the same side of every split.

    Returns:
        The values of the head's variables, in order.

    Raises:
        CatdogError: no image could be read, or the task failed.
    """
    keys, labels = rows["key"].to_pylist(), rows["label"].to_numpy().astype(np.int64)
    try:
        values = ray.get(ray.remote(_fit_head).remote(folder, keys, labels, spec, seed, views))
    except ray.exceptions.RayError as error:
        raise CatdogError(f"fitting the head failed: {cluster.cause(error)}") from error
    if values is None:
        raise CatdogError(f"none of the {len(keys)} training images could be read; is the data set on every node?")
    return values


def _fit_head(
    folder: str, keys: list[str], labels: np.ndarray, spec: models.Spec, seed: int, views: list[str]
) -> list[np.ndarray] | None:
    import keras

    cluster.limit_threads(1)
    seen = [read(folder, keys, view) for view in views]
    features, at = (np.concatenate(part) for part in zip(*seen, strict=True)) if len(seen) > 1 else seen[0]
    if not len(at):
        return None
    keras.utils.set_random_seed(seed)
    layers = models.head(models.build(spec))
    if sum(bool(layer.weights) for layer in layers) == 1:
        return _fit_logistic(*seen[0], features, at, labels)
    held_out = augment.uniform(_HELD_OUT_STREAM, seed, augment.key_hash(keys), 1)[:, 0] < 0.1
    inputs = x = keras.Input(features.shape[1:])
    for layer in layers:
        x = layer(x)
    head = keras.Model(inputs, x)
    head.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    train, valid = ~held_out[at], held_out[at]
    head.fit(
        features[train],
        labels[at][train, None],
        batch_size=64,
        epochs=30,
        verbose=0,
        validation_data=(features[valid], labels[at][valid, None]) if valid.any() else None,
        callbacks=[keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)] if valid.any() else [],
    )
    return head.get_weights()


def _fit_logistic(
    plain: np.ndarray, plain_at: np.ndarray, features: np.ndarray, at: np.ndarray, labels: np.ndarray
) -> list[np.ndarray]:
    """Logistic regression with the L2 penalty that cross-validates best on the images as they are."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    def score(strength: float) -> float:
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        model = LogisticRegression(C=strength, max_iter=1000)
        return float(cross_val_score(model, plain, labels[plain_at], cv=folds, scoring="neg_log_loss").mean())

    least = np.bincount(labels[plain_at], minlength=2).min()
    strength = max(_REGULARISATION, key=score) if least >= 3 else _REGULARISATION[1]
    model = LogisticRegression(C=strength, max_iter=2000).fit(features, labels[at])
    return [model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)]
