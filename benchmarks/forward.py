"""Inference speed on one core: ONNX Runtime by batch size; TensorFlow plain, with folded batch-norm, and in bfloat16.

OpenVINO is included if it is installed; catdog does not depend on it.

    python benchmarks/forward.py --model runs/first/model --data data/kaggle

For large models the forward pass dominates scoring, so this is an upper bound. Prints Markdown.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import precisions
import typer

from catdog.data import catalog, images
from catdog.inference import engines

_BATCH, _ROUNDS = 64, 5


def seconds(call: Callable[[], Any], rounds: int = _ROUNDS) -> float:
    """Median seconds of the rounds, after a warm-up round."""
    found = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def main(
    model: Annotated[Path, typer.Option(help="A bundle's folder, with one member, of mobilenet.")],
    data: Annotated[str, typer.Option(help="A prepared data set with a test split.")],
) -> None:
    """Measures the prediction of one batch of photos in one thread."""
    engines.set_up(1, gpu=False)
    import keras

    loaded = keras.saving.load_model(model / "model.keras")
    onnx, plain = engines.OnnxEngine((model / "model.onnx").read_bytes(), 1), engines.TensorFlowEngine(loaded)
    size = loaded.input_shape[1]
    batch = images.read_batch(catalog.read_catalog(data).split("test")["uri"][:_BATCH].to_pylist(), [size]).pixels[size]
    expected = plain.logits(batch)

    def show(name: str, predict: Callable[[], np.ndarray]) -> None:
        off = np.abs(predict() - expected).max()
        typer.echo(f"| {name} | {_BATCH / seconds(predict):.0f} | {off:.1g} |")

    typer.echo("| | images/s | a logit is off by up to |\n|---|---|---|")
    for chunk in (1, 2, 4, 8, 16, 64):
        engines.CHUNK = chunk
        show(f"ONNX Runtime, {chunk} at a time", lambda: onnx.logits(batch))
    if importlib.util.find_spec("openvino"):
        by_openvino = precisions.openvino((model / "model.onnx").read_bytes(), size, "f32")
        show("OpenVINO, 4 at a time", lambda: by_openvino(batch))
    show("TensorFlow", lambda: plain.logits(batch))
    for precision in ("float32", "bfloat16"):
        folded = precisions.tensorflow(loaded, precision == "bfloat16")
        show(f"TensorFlow, batch-norm folded, {precision}", lambda folded=folded: folded(batch))


if __name__ == "__main__":
    typer.run(main)
