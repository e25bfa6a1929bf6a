"""One model in float32, bfloat16 and int8, by each engine on one core: images a second, and what its log loss becomes.

OpenVINO is included if it is installed (`pip install openvino`); catdog does not depend on it.

    taskset -c 0 python benchmarks/precisions.py --model runs/first --data data/kaggle

Each round times one batch by every engine in turn. The log loss is of the validation photos with one view, each engine
with a temperature and a clip of its own, cross-fitted. The int8 model is what `catdog bundle quantise --weight-bits 8
--keep-float 0` makes, kept or not. Bfloat16 is only faster on CPUs that have it. Prints Markdown.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Annotated, Any

import measuring
import numpy as np
import pyarrow as pa
import typer

from catdog import rng
from catdog.data import catalog, images
from catdog.evaluation import calibration, metrics
from catdog.inference import bundle, engines
from catdog.inference.quantise import Quantiser
from catdog.models import batch_norm

_BATCH, _CHUNK = 64, 4
Predict = Callable[[np.ndarray], np.ndarray]


def openvino(data: bytes, size: int, precision: str) -> Predict:
    """A function that predicts a batch with OpenVINO, in one thread and as many images at a time as scoring takes."""
    import openvino

    core = openvino.Core()
    network = core.read_model(data)
    network.reshape([_CHUNK, size, size, 3])
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(network, "CPU", options | {"ENABLE_CPU_PINNING": False})
    request = compiled.create_infer_request()

    def predict(batch: np.ndarray) -> np.ndarray:
        padded = np.concatenate([batch, batch[: -len(batch) % _CHUNK]])
        chunks = [padded[at : at + _CHUNK] for at in range(0, len(padded), _CHUNK)]
        found = [request.infer({0: chunk})[compiled.output(0)][:, 0].copy() for chunk in chunks]
        return np.concatenate(found)[: len(batch)]

    return predict


def tensorflow(model: Any, bfloat16: bool) -> Predict:
    """A function that predicts a batch with TensorFlow as training does, with batch-norm folded."""
    import tensorflow as tf

    call = tf.function(lambda batch: batch_norm.apply_folded(model, batch, bfloat16=bfloat16, training=False))
    return lambda batch: call(tf.constant(batch)).numpy()[:, 0]


def main(
    model: Annotated[str, typer.Option(help="A float32 bundle with one member.")],
    data: Annotated[str, typer.Option(help="A prepared data set; the model knows none of its validation photos.")],
    photos: Annotated[int, typer.Option(help="Calibration photos of int8.")] = 256,
    rounds: measuring.Rounds = 9,
) -> None:
    """Measures each engine."""
    engines.set_up(1, gpu=False)
    saved = bundle.read_info(model)
    uri, info = saved
    size, member = info.image_size, info.members[0]
    found = catalog.read_catalog(data)

    def decode(rows: pa.Table) -> np.ndarray:
        return images.read_batch(rows["uri"].to_pylist(), [size]).pixels[size]

    train, valid = found.split("train"), found.split("valid")
    order = np.argsort(rng.key_hash(train["key"].to_pylist()), kind="stable")
    exact = bundle.read_onnx(uri, info, member)
    int8 = Quantiser(exact, decode(train.take(order[:photos]))).quantise(127)
    predictors: dict[str, Predict] = {
        "ONNX Runtime, float32": engines.OnnxEngine(exact, 1).logits,
        "ONNX Runtime, int8": engines.OnnxEngine(int8, 1).logits,
    }
    if importlib.util.find_spec("openvino"):
        predictors["OpenVINO, float32"] = openvino(exact, size, "f32")
        predictors["OpenVINO, bfloat16"] = openvino(exact, size, "bf16")
        predictors["OpenVINO, int8"] = openvino(int8, size, "f32")
    keras_model = bundle.load_member(uri, info, member)
    predictors["TensorFlow, float32"] = engines.TensorFlowEngine(keras_model).logits
    if batch_norm.can_fold_batch_norm(keras_model):
        predictors["TensorFlow, batch-norm folded, float32"] = tensorflow(keras_model, False)
        predictors["TensorFlow, batch-norm folded, bfloat16"] = tensorflow(keras_model, True)
    pixels = decode(valid)
    batches = [pixels[at : at + _BATCH] for at in range(0, len(pixels), _BATCH)]
    rates: dict[str, list[float]] = {name: [] for name in predictors}
    for number in range(rounds + 1):
        for name, predict in predictors.items():
            started = time.perf_counter()
            predict(batches[0])
            if number:  # the first one warms up
                rates[name].append(len(batches[0]) / (time.perf_counter() - started))
    labels, halves = valid["label"].to_numpy(), calibration.halves(valid["key"].to_pylist())
    logits = {name: np.concatenate([*map(predict, batches)]) for name, predict in predictors.items()}
    losses = {
        name: metrics.losses(labels, calibration.cross_fitted(labels, values, halves))
        for name, values in logits.items()
    }
    first = next(iter(predictors))
    typer.echo(f"{info.architecture} at {size} px, {valid.num_rows} validation photos, log loss of the first engine "
               f"{losses[first].mean():.4f}\n")  # fmt: skip
    typer.echo("| | images/s | times as fast | logits off (rms) | log loss |\n|---|---|---|---|---|")
    for name in predictors:
        fast = np.median(rates[name]) / np.median(rates[first])
        off = np.sqrt(np.square(logits[name] - logits[first]).mean())
        change = losses[name] - losses[first]
        low, high = metrics.difference_interval(change)
        typer.echo(
            f"| {name} | {measuring.spread(rates[name], 0)} | {fast:.2f} | {off:.2g} | "
            f"{change.mean():+.4f} ({low:+.4f} to {high:+.4f}) |"
        )


if __name__ == "__main__":
    typer.run(main)
