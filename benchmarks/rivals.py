"""Programs that catdog's speed is compared with, written as in their documentation; run by `benchmarks/speed.py`.

    python benchmarks/rivals.py keras-predict MODEL.keras IMAGES OUT.csv
    python benchmarks/rivals.py ray-recipe MODEL.keras IMAGES OUT.csv SIZE
    python benchmarks/rivals.py tf-data MODEL.keras IMAGES OUT.csv SIZE
    python benchmarks/rivals.py daft MODEL.keras IMAGES OUT.csv SIZE
    python benchmarks/rivals.py floor MODEL.onnx IMAGES
    python benchmarks/rivals.py keras-fit DATA --size 128 --epochs 3 [--cache]

IMAGES is a folder of numbered JPEG files, DATA a prepared data set. The last two print images per second as JSON.
The package `daft` is not one of catdog's: `pip install daft` beside it.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import typer

app = typer.Typer(pretty_exceptions_enable=False)
BATCH = 64


def write(out: Path, names: list[str], logits: np.ndarray) -> None:
    """Writes `id,label` in the order of the ids."""
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    rows = sorted((int(Path(name).stem), probability) for name, probability in zip(names, probabilities, strict=True))
    with open(out, "w", newline="") as stream:
        csv.writer(stream).writerows([("id", "label"), *rows])


@app.command()
def keras_predict(model: Path, folder: Path, out: Path) -> None:
    """Plain Keras: `image_dataset_from_directory` and `predict`."""
    import keras
    import tensorflow as tf

    loaded = keras.saving.load_model(model)
    size = loaded.input_shape[1:3]
    dataset = keras.utils.image_dataset_from_directory(
        folder, labels=None, shuffle=False, image_size=size, batch_size=BATCH, verbose=False
    )
    names = dataset.file_paths
    cast = dataset.map(lambda images: tf.cast(images, tf.uint8)).prefetch(tf.data.AUTOTUNE)
    write(out, names, loaded.predict(cast, verbose=0)[:, 0])


class Predictor:
    """The actor of Ray's documentation on batch inference."""

    def __init__(self, model: str) -> None:
        import keras

        self.model = keras.saving.load_model(model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Predicts a batch: columns path and image in, path and logit out."""
        return {"path": batch["path"], "logit": self.model.predict_on_batch(batch["image"])[:, 0]}


@app.command()
def ray_recipe(model: Path, folder: Path, out: Path, size: int) -> None:
    """Ray's documentation: `read_images(size=…)`, then `map_batches` of an actor."""
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    images = ray.data.read_images(str(folder), size=(size, size), mode="RGB", include_paths=True)
    # Half of the CPUs: TensorFlow in one actor uses two cores, and reading needs CPUs, too.
    done = images.map_batches(
        Predictor,
        fn_constructor_args=(str(model),),
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=max(1, (os.cpu_count() or 1) // 2)),
    ).to_pandas()
    write(out, list(done["path"]), done["logit"].to_numpy())


@app.command()
def tf_data(model: Path, folder: Path, out: Path, size: int) -> None:
    """tf.data's performance guide: parallel decoding in any order, batches prefetched, a traced function."""
    import keras
    import tensorflow as tf

    loaded = keras.saving.load_model(model)
    names = [str(path) for path in sorted(folder.iterdir())]

    def decode(number: Any, path: Any) -> tuple[Any, Any]:
        pixels = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return number, tf.cast(tf.round(tf.image.resize(pixels, (size, size))), tf.uint8)

    dataset = (
        tf.data.Dataset.from_tensor_slices((tf.range(len(names)), names))
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
        .batch(BATCH, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    predict = tf.function(lambda pixels: loaded(pixels, training=False), reduce_retracing=True)
    logits = np.zeros(len(names), np.float32)
    for numbers, pixels in dataset:
        logits[numbers.numpy()] = predict(pixels).numpy()[:, 0]
    write(out, names, logits)


@app.command("daft")
def daft_recipe(model: Path, folder: Path, out: Path, size: int) -> None:
    """Daft's documentation: download, decode and resize as expressions, then a class with a batch method."""
    import daft

    @daft.cls
    class Classifier:
        def __init__(self, path: str) -> None:
            import keras

            self.model = keras.saving.load_model(path)

        @daft.method.batch(return_dtype=daft.DataType.float32(), batch_size=BATCH)
        def logit(self, images: daft.Series) -> Any:
            return self.model.predict_on_batch(np.stack(images.to_pylist()))[:, 0]

    images = daft.col("path").download().decode_image(mode="RGB").resize(size, size)
    done = (
        daft.from_glob_path(f"{folder}/*.jpg")
        .with_column("logit", Classifier(str(model)).logit(images))
        .select("path", "logit")
        .to_pydict()
    )
    write(out, done["path"], np.array(done["logit"]))


def _decode(paths: list[str], size: int) -> float:
    from catdog.data import images

    images.use_one_thread()
    started = time.perf_counter()
    for path in paths:
        images.read_image(path, size)
    return time.perf_counter() - started


def _forward(model: bytes, size: int, batches: int) -> float:
    from catdog.inference.engines import OnnxEngine

    engine = OnnxEngine(model, threads=1)
    batch = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    engine.logits(batch)
    started = time.perf_counter()
    for _ in range(batches):
        engine.logits(batch)
    return time.perf_counter() - started


@app.command()
def floor(model: Path, folder: Path) -> None:
    """Decoding alone and the forward pass alone, on all cores without Ray: an upper bound for scoring."""
    import onnx

    data, cores = model.read_bytes(), os.cpu_count() or 1
    size = onnx.load_from_string(data).graph.input[0].type.tensor_type.shape.dim[1].dim_value
    paths = [str(path) for path in sorted(folder.iterdir())]
    batches = max(4, len(paths) // BATCH // cores // 2)
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.starmap(_forward, [(data, size, 1)] * cores)  # waits until every process has started
        seconds = max(pool.starmap(_decode, [(paths[core::cores], size) for core in range(cores)], chunksize=1))
        decode = len(paths) / seconds
        forward = cores * batches * BATCH / max(pool.starmap(_forward, [(data, size, batches)] * cores, chunksize=1))
    print(json.dumps({"decode": decode, "forward": forward, "both": 1 / (1 / decode + 1 / forward)}))


@app.command()
def keras_fit(data: str, size: int = 128, epochs: int = 3, cache: bool = False) -> None:
    """Plain Keras: `fit` in one process, decoding and augmenting in tf.data and Keras layers."""
    import keras
    import tensorflow as tf

    from catdog.data import catalog
    from catdog.models import registry

    rows = catalog.read_catalog(data).split("train")
    model = registry.build_model(registry.ModelSpec("mobilenet", size, 0.25))
    model.compile(keras.optimizers.AdamW(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    augmentation = keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomRotation(12 / 360),
            keras.layers.RandomZoom(0.12),
            keras.layers.RandomTranslation(0.08, 0.08),
        ]
    )

    def decode(path: Any, label: Any) -> tuple[Any, Any]:
        pixels = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.cast(tf.image.resize(pixels, (size, size)), tf.uint8), label

    def change(pixels: Any, labels: Any) -> tuple[Any, Any]:
        return tf.cast(augmentation(tf.cast(pixels, tf.float32), training=True), tf.uint8), labels

    labels = rows["label"].to_numpy().astype(np.float32)[:, None]
    dataset = tf.data.Dataset.from_tensor_slices((rows["uri"].to_pylist(), labels))
    if cache:
        dataset = dataset.map(decode, tf.data.AUTOTUNE).cache().shuffle(2048)
    else:  # shuffles names, because filling a buffer of 2,048 images would delay each epoch
        dataset = dataset.shuffle(len(labels)).map(decode, tf.data.AUTOTUNE)
    dataset = dataset.batch(BATCH, drop_remainder=True).map(change, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        model.fit(dataset, verbose=0)
        seconds.append(time.perf_counter() - started)
    images = len(labels) // BATCH * BATCH
    print(json.dumps({"images_per_second": [images / each for each in seconds[1:]]}))


if __name__ == "__main__":
    app()
