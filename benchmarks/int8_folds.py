"""What int8 changes in the log loss of all labelled photos: each fold's model quantised, and judged on its fold.

    python benchmarks/int8_folds.py runs/fine-tune [--keep-float N …]

RUN is a finished cross-validation of one network per fold (`catdog train --folds 5 --name fine-tune`). A model is
calibrated on its own training photos. Each side has temperatures and clips of its own, each fold's fitted to the
others, as in `catdog oof`. Every photo must be readable. Prints Markdown.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer

from catdog import rng, storage
from catdog.data import catalog, images
from catdog.evaluation import metrics
from catdog.experiments import cross_validation
from catdog.inference import bundle, engines
from catdog.inference.quantise import Quantiser
from catdog.inference.views import apply_view

_BATCH = 256
_CPUS = os.cpu_count() or 1
# Photos that calibrate 7 bits, and those that choose what stays in float32, as `catdog bundle quantise` takes them.
_PHOTOS, _SWEEP = 512, 64


def int8_models(data: bytes, known: np.ndarray, keep_float: list[int]) -> dict[str, bytes]:
    """Int8 models by their settings, with so many convolutions in float32; `known` photos calibrate and choose."""
    quantiser = Quantiser(data, known[:_PHOTOS], _CPUS)
    worst = quantiser.by_sensitivity(known[_PHOTOS:], threads=_CPUS)
    models = {
        f"7 bits, {_PHOTOS} photos, {count} in float32": quantiser.quantise(in_float=frozenset(worst[:count]))
        for count in keep_float
    }
    models["8 bits, 256 photos"] = Quantiser(data, known[:256], _CPUS).quantise(127)
    return models


def main(
    run: Annotated[str, typer.Argument(help="A finished cross-validation.")],
    keep_float: Annotated[list[int] | None, typer.Option(help="Of 7 bits; once for each. Default: 2.")] = None,
) -> None:
    """Quantises and judges fold after fold."""
    os.environ[catalog.ALLOW_OUTSIDE] = "1"
    before = cross_validation.read_out_of_fold(run)
    after: dict[str, np.ndarray] = defaultdict(lambda: np.full(len(before.keys), np.nan))
    for fold in map(int, np.unique(before.folds)):
        uri, info = bundle.read_info(storage.join(run, f"fold-{fold}"))
        if len(info.members) != 1:
            raise typer.BadParameter(f"{uri} has {len(info.members)} members, expected one")
        data = catalog.read_catalog(storage.join(run, "data", f"fold-{fold}"))

        def decode(rows: pa.Table, size: int = info.image_size) -> np.ndarray:
            return images.read_batch(rows["uri"].to_pylist(), [size]).pixels[size]

        train = data.split("train")
        order = np.argsort(rng.key_hash(train["key"].to_pylist()), kind="stable")
        known = decode(train.take(order[: _PHOTOS + _SWEEP]))
        models = int8_models(bundle.read_onnx(uri, info, info.members[0]), known, keep_float or [2])
        loaded = {name: engines.OnnxEngine(model, _CPUS) for name, model in models.items()}
        (places,) = np.nonzero(before.folds == fold)
        keys = pa.array([before.keys[place] for place in places])
        rows = data.table.take(pc.index_in(keys, data.table["key"].combine_chunks()))
        for start in range(0, len(places), _BATCH):
            pixels = decode(rows.slice(start, _BATCH))
            for name, engine in loaded.items():
                views = [engine.logits(apply_view(pixels, view)) for view in info.views]
                after[name][places[start : start + _BATCH]] = np.mean(views, axis=0)
        typer.echo(f"fold {fold}", err=True)
    exact_losses = before.losses
    typer.echo(f"float32: log loss {exact_losses.mean():.4f} of {len(before.keys):,} photos\n")
    typer.echo("| int8 | log loss | change | logits off (rms) |\n|---|---|---|---|")
    for name, logits in after.items():
        losses = dataclasses.replace(before, logits=logits).losses
        low, high = metrics.difference_interval(losses - exact_losses)
        off = np.sqrt(np.square(logits - before.logits).mean())
        change = (losses - exact_losses).mean()
        typer.echo(f"| {name} | {losses.mean():.4f} | {change:+.5f} ({low:+.5f} to {high:+.5f}) | {off:.3f} |")


if __name__ == "__main__":
    typer.run(main)
