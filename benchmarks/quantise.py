"""Int8 by several settings against float32, as `catdog bundle quantise` makes it: log loss, logits, speed of a thread.

    python benchmarks/quantise.py --model runs/first --data data/kaggle

The first row is ONNX Runtime's own `quantize_static`, per channel, its weights rounded one by one. Logits are compared
on training photos that calibrate nothing, which is what settings are chosen by; log loss on the validation photos.
Speed is processor time, the programs in turn, so that other programs disturb it less. Prints Markdown.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime.quantization as ort_quantization
import pyarrow as pa
import typer

from catdog import rng
from catdog.data import catalog, images
from catdog.evaluation import calibration, metrics
from catdog.inference import bundle, engines
from catdog.inference.quantise import MOST_PORTABLE, Quantiser, fold
from catdog.inference.views import apply_view

_CHECKED, _TIMED, _ROUNDS = 128, 8, 15


class _Reader(ort_quantization.CalibrationDataReader):
    """Calibration photos, as ONNX Runtime wants them."""

    def __init__(self, name: str, photos: np.ndarray) -> None:
        self._each = iter([{name: photos[at : at + 1]} for at in range(len(photos))])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._each, None)


def plain(data: bytes, photos: np.ndarray) -> bytes:
    """The int8 model of ONNX Runtime's own tool."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        model = fold(data)
        ort_quantization.quantize_static(
            model, path, _Reader(model.graph.input[0].name, photos), per_channel=True,
            activation_type=ort_quantization.QuantType.QUInt8, weight_type=ort_quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Clip", "Relu", "Add"],
        )  # fmt: skip
        return path.read_bytes()


def main(
    model: Annotated[str, typer.Option(help="A float32 bundle with one member.")],
    data: Annotated[str, typer.Option(help="A prepared data set.")],
    photos: Annotated[int, typer.Option(help="Calibration photos.")] = 512,
    plain_photos: Annotated[int, typer.Option(help="Of them, for ONNX Runtime's own tool.")] = 128,
) -> None:
    """Measures each setting."""
    saved = bundle.read_info(model)
    uri, info = saved
    found = catalog.read_catalog(data)

    def decode(rows: pa.Table) -> np.ndarray:
        return images.read_batch(rows["uri"].to_pylist(), [info.image_size]).pixels[info.image_size]

    train, valid = found.split("train"), found.split("valid")
    order = np.argsort(rng.key_hash(train["key"].to_pylist()), kind="stable")
    known, checked = decode(train.take(order[:photos])), decode(train.take(order[photos : photos + _CHECKED]))
    pixels, labels = decode(valid), valid["label"].to_numpy()
    halves = calibration.halves(valid["key"].to_pylist())

    def losses(logits: np.ndarray) -> np.ndarray:
        return metrics.losses(labels, calibration.cross_fitted(labels, logits, halves))

    data_ = bundle.read_onnx(uri, info, info.members[0])
    exact = engines.OnnxEngine(data_, 1)
    expected = exact.logits(checked)
    before = np.stack([exact.logits(apply_view(pixels, view)) for view in info.views])
    base = losses(before.mean(axis=0))
    typer.echo(f"float32: log loss {base.mean():.4f} of {len(labels)} validation photos, {len(info.views)} views\n")
    typer.echo(
        "| int8 | times as fast | logits off (rms) | log loss, all views | log loss, one view |\n|---|---|---|---|---|"
    )

    def show(name: str, int8: bytes) -> None:
        engine = engines.OnnxEngine(int8, 1)
        off = np.sqrt(np.square(engine.logits(checked) - expected).mean())
        after = np.stack([engine.logits(apply_view(pixels, view)) for view in info.views])
        cells = []
        for first, second in ((before.mean(axis=0), after.mean(axis=0)), (before[0], after[0])):
            change = losses(second) - losses(first)
            low, high = metrics.difference_interval(change)
            cells.append(f"{change.mean():+.5f} ({low:+.5f} to {high:+.5f})")
        ratios = [spent(exact, pixels[:_TIMED]) / spent(engine, pixels[:_TIMED]) for _ in range(_ROUNDS)]
        typer.echo(f"| {name} | {statistics.median(ratios):.2f} | {off:.3f} | {' | '.join(cells)} |")

    show("ONNX Runtime's own tool", plain(data_, known[:plain_photos]))
    quantiser = Quantiser(data_, known)
    show("7 bits", quantiser.quantise())
    show("8 bits", quantiser.quantise(127))
    sensitive = quantiser.by_sensitivity(checked[: _CHECKED // 2])
    for count in (2, 4, 8):
        if count < len(sensitive):
            show(
                f"7 bits, {count} convolutions in float32",
                quantiser.quantise(MOST_PORTABLE, frozenset(sensitive[:count])),
            )


def spent(engine: engines.OnnxEngine, batch: np.ndarray) -> float:
    """Processor time of one prediction, in seconds."""
    started = time.process_time()
    engine.logits(batch)
    return time.process_time() - started


if __name__ == "__main__":
    typer.run(main)
