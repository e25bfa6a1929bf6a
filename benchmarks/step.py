"""Speed of a training step, with Keras's batch-norm and with the fused one, and of augmentation.

    python benchmarks/step.py

Steps of MobileNet 0.25 from scratch at 128 px, without Ray and without exchanging gradients: in one process on all
cores, or in one process per core with a share of the batch. The ratio is an upper bound for several workers. Prints
Markdown.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
from multiprocessing.synchronize import Barrier
from typing import Any

import measuring
import numpy as np
import typer
from forward import seconds

from catdog.inference import engines
from catdog.models import batch_norm, registry
from catdog.training import augmentation
from catdog.training.request import Augmentation

_SIZE, _BATCH, _ROUNDS = 128, 64, 30
_SETTINGS = Augmentation(mirror=True, rotation=12, zoom=0.12, shift=0.08)


def pixels(count: int) -> np.ndarray:
    """Noise, uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, _SIZE, _SIZE, 3), dtype=np.uint8)


def step(fuse: bool, threads: int, count: int, together: Barrier) -> float:
    """Seconds of a training step of `count` images with `threads` threads, while other processes run theirs."""
    engines.set_up(threads, gpu=False)
    import keras
    import tensorflow as tf

    model = registry.build_model(registry.ModelSpec("mobilenet", _SIZE, 0.25))
    model = batch_norm.fuse_batch_norm(model) if fuse else model
    optimizer = keras.optimizers.AdamW(1e-3)
    optimizer.build(model.trainable_variables)
    batch, labels = tf.constant(pixels(count)), tf.constant(np.arange(count) % 2, tf.float32)

    @tf.function
    def train() -> Any:
        with tf.GradientTape() as tape:
            logits = model(batch, training=True)[:, 0]
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    float(train())
    together.wait()
    return seconds(lambda: float(train()), _ROUNDS)


def change() -> tuple[float, float]:
    """Seconds to augment an image in one thread, by TensorFlow's transform and by catdog."""
    engines.set_up(1, gpu=False)
    import tensorflow as tf

    random = np.random.default_rng(0).random((_BATCH, augmentation.DRAWS))
    parameters = augmentation.draw_changes(random, _SETTINGS, _SIZE, _SIZE)
    images, out = pixels(_BATCH), np.empty((_BATCH, _SIZE, _SIZE, 3), np.uint8)
    transforms = tf.constant(np.pad(parameters[:, :6], ((0, 0), (0, 2))))
    floats = tf.constant(images, tf.float32)

    def theirs() -> None:
        tf.raw_ops.ImageProjectiveTransformV3(
            images=floats, transforms=transforms, output_shape=[_SIZE, _SIZE], interpolation="BILINEAR",
            fill_mode="REFLECT", fill_value=0.0,
        ).numpy()  # fmt: skip

    def ours() -> None:
        for image, row, place in zip(images, parameters, out, strict=True):
            augmentation.apply_change(image, row, _SETTINGS, place)

    return seconds(theirs, _ROUNDS) / _BATCH, seconds(ours, _ROUNDS) / _BATCH


def main() -> None:
    """Measures everything in turn, in five rounds."""
    spawn, cores = multiprocessing.get_context("spawn"), os.cpu_count() or 1
    kinds = [(fuse, processes) for fuse in (False, True) for processes in (cores, 1)]
    rates: dict[tuple[bool, int], list[float]] = {kind: [] for kind in kinds}
    with spawn.Manager() as manager, spawn.Pool(cores, maxtasksperchild=1) as pool:
        for _ in range(5):
            for fuse, processes in kinds:
                job = (fuse, cores // processes, _BATCH // processes, manager.Barrier(processes))
                rates[fuse, processes].append(_BATCH / max(pool.starmap(step, [job] * processes, chunksize=1)))
        theirs, ours = pool.apply(change)
    typer.echo(f"| images/s, batch-norm | {cores} processes | {cores} threads | ratio |\n|---|---|---|---|")
    for name, fuse in (("Keras's", False), ("one operation", True)):
        many, one = rates[fuse, cores], rates[fuse, 1]
        ratio = statistics.median(many) / statistics.median(one)
        typer.echo(f"| {name} | {measuring.spread(many, 0)} | {measuring.spread(one, 0)} | {ratio:.2f} |")
    typer.echo(f"\nTo augment an image: TensorFlow's transform {theirs * 1e6:.0f} µs, catdog {ours * 1e6:.0f} µs")


if __name__ == "__main__":
    typer.run(main)
