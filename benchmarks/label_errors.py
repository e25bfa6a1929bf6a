"""Labels flipped on purpose: how many of them the audit finds first, and what mending them gains.

    python benchmarks/label_errors.py --data data/kaggle --arch mobilenet --weights W

Flips 2 % of the labels, cross-validates a linear probe, ranks the images as `catdog data audit` does, and lets a
reviewer who knows the true labels look at as many of the likeliest errors as there are flips. Then it trains again
with these decisions. Every log loss is of the true labels, calibrated to them likewise. Prints Markdown.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from catdog import cluster, storage
from catdog.data import catalog, key_list
from catdog.data.catalog import Catalog
from catdog.evaluation import calibration, metrics
from catdog.experiments import audit, cross_validation
from catdog.training.request import TrainConfig

FOLDS = 5


def flip_labels(data: Catalog, share: float, seed: int, root: str) -> tuple[Catalog, set[str]]:
    """Writes the catalog of a data set with some labels flipped; returns it and the keys of the flipped images."""
    labels = data.table["label"].to_pylist()
    rows = [row for row, label in enumerate(labels) if label is not None]
    chosen = np.random.default_rng(seed).choice(rows, round(share * len(rows)), replace=False)
    for row in chosen:
        labels[row] = 1 - labels[row]
    at = data.table.column_names.index("label")
    table = data.table.set_column(at, catalog.SCHEMA.field("label"), pa.array(labels, pa.int8()))
    made = Catalog(table, data.class_names, root, data.options | {"flipped": seed})
    made.write()
    keys = data.table["key"].to_pylist()
    return made, {keys[row] for row in chosen}


def main(
    data: Annotated[str, typer.Option(help="A prepared data set.")],
    weights: Annotated[str, typer.Option(help="The backbone's weights file.")],
    arch: Annotated[str, typer.Option(help="The backbone.")] = "mobilenet",
    share: Annotated[float, typer.Option(help="Share of the labels that is flipped.")] = 0.02,
    seed: int = 0,
    folder: Annotated[Path | None, typer.Option(help="Where to work; else a temporary folder.")] = None,
) -> None:
    """Prints how many flips the audit finds, and the log loss with and without them."""
    os.environ[catalog.ALLOW_OUTSIDE] = "1"  # its catalogs name the images of the data set
    root = (folder or Path(tempfile.mkdtemp(prefix="catdog-labels-"))).absolute()
    clean = catalog.read_catalog(data)
    noisy, flipped = flip_labels(clean, share, seed, str(root / "noisy"))
    truth = dict(zip(clean.table["key"].to_pylist(), clean.table["label"].to_pylist(), strict=True))
    reviewed = root / "reviewed.csv"
    logits = {}
    with cluster.connect():
        for name, judged, listed in (("true", clean, None), ("flipped", noisy, None), ("mended", noisy, reviewed)):
            config = TrainConfig(
                data=judged.root, recipe="linear-probe", arch=arch, weights=weights, runs=str(root / "runs"), name=name,
                leave_out=None if listed is None else str(listed),
            )  # fmt: skip
            found = cross_validation.cross_validate(config, FOLDS)
            logits[name] = found.logits
            if name == "flipped":
                findings = [one.key for one in audit.audit_labels(noisy, found) if one.issue == "label"]
                first = findings[: len(flipped)]
                # The reviewer sees the photo, and so knows the class: right decisions for the images looked at.
                actions = {key: key_list.FLIP if key in flipped else key_list.KEEP for key in first}
                storage.write_text(str(reviewed), key_list.format_actions(actions))
    labels = np.array([truth[key] for key in found.keys])
    caught = sum(key in flipped for key in first)
    print(f"\n{len(labels):,} photos, {FOLDS} folds, {len(flipped)} labels flipped, {time.strftime('%Y-%m-%d')}\n")
    print(
        f"Of the first {len(first)} images of the list ({len(first) / len(labels):.1%} of all), {caught} are flips: "
        f"{caught / len(flipped):.1%} of the flips. The list has {len(findings)} images and "
        f"{sum(key in flipped for key in findings)} flips.\n"
    )
    print(
        "| labels in training | log loss (95 % interval) | better than with the flips (95 % interval) |\n|---|---|---|"
    )
    halves = calibration.halves(found.keys)
    losses = {}
    for name, each in logits.items():
        probabilities = calibration.cross_fitted(labels, each, halves)
        losses[name] = metrics.losses(labels, probabilities)
    for name, each in losses.items():
        low, high = metrics.loss_interval(labels, calibration.cross_fitted(labels, logits[name], halves))
        gain = losses["flipped"] - each
        less, more = metrics.difference_interval(gain) if name != "flipped" else (0.0, 0.0)
        words = "" if name == "flipped" else f"{gain.mean():.4f} ({less:.4f} to {more:.4f})"
        print(f"| {name} | {each.mean():.4f} ({low:.4f} to {high:.4f}) | {words} |")


if __name__ == "__main__":
    typer.run(main)
