"""Benchmark of JPEG decoding at reduced scale, for models whose image size is at most half of the photo's.

    python benchmarks/decode.py --data original-size --model runs/RUN [--model runs/RUN …]

libjpeg can decode a photo at a half, a quarter or an eighth of its size with less work. The project does not use that.
This measures the time that it would save on one core, and the effect on log loss for labelled photos that the models
were not trained on. Prints Markdown.
"""

from __future__ import annotations

import time
from typing import Annotated

import cv2
import numpy as np
import typer

from catdog import storage
from catdog.cli.main import run
from catdog.data import catalog, images, resize
from catdog.errors import UsageError
from catdog.evaluation import metrics
from catdog.inference.bundle import ModelBundle

_SCALES = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_ROUNDS = 5

app = typer.Typer()


def decode_reduced(data: bytes, size: int, scale: int) -> np.ndarray:
    """Decodes a photo at a reduced scale, then resizes it as `decode_image` resizes the full image."""
    small = cv2.imdecode(np.frombuffer(data, np.uint8), _SCALES[scale])
    return cv2.cvtColor(resize.squash(small, size), cv2.COLOR_BGR2RGB)


def shortest_side(data: bytes) -> int:
    """The smaller of width and height, in pixels."""
    return min(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2])


@app.command()
def main(
    data: Annotated[str, typer.Option(help="A prepared data set of labelled photos at their original sizes.")],
    model: Annotated[list[str], typer.Option(help="A run or bundle that did not train on them.")],
) -> None:
    """Prints the table."""
    images.use_one_thread()
    rows = catalog.read_catalog(data).table
    if rows["label"].null_count:
        raise UsageError(f"--data received {data}, which has photos without labels; expected labels for all")
    labels = rows["label"].to_numpy()
    files = [storage.read_bytes(uri) for uri in rows["uri"].to_pylist()]
    sides = [shortest_side(each) for each in files]
    print("| size | photos at least twice that | whole µs | reduced µs | log loss whole | reduced | better by |")
    print("|---|---|---|---|---|---|---|")
    for uri in model:
        loaded = ModelBundle.load(uri, "onnx")
        size = loaded.info.image_size
        scales = [max((scale for scale in _SCALES if side >= scale * size), default=1) for side in sides]
        seconds: list[list[float]] = []
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            whole = [images.decode_image(each, size).pixels for each in files]
            between = time.perf_counter()
            reduced = [
                decode_reduced(each, size, scale) if scale > 1 else images.decode_image(each, size).pixels
                for each, scale in zip(files, scales, strict=True)
            ]
            seconds.append([between - started, time.perf_counter() - between])
        took = 1e6 * np.min(seconds, axis=0) / len(files)
        before, after = (metrics.losses_from_logits(labels, loaded.logits(np.stack(each))) for each in (whole, reduced))
        low, high = metrics.difference_interval(before - after)
        print(
            f"| {size} | {sum(scale > 1 for scale in scales)} of {len(files)} | {took[0]:.0f} | {took[1]:.0f} | "
            f"{before.mean():.4f} | {after.mean():.4f} | {(before - after).mean():+.4f} ({low:+.4f} to {high:+.4f}) |"
        )


if __name__ == "__main__":
    run(lambda: app(standalone_mode=False))
