"""Log loss of the recipes on labelled photos that had no part in training, stopping, calibration or choice.

    python benchmarks/log_loss.py --data data/kaggle --weights mobilenet_1_0_224_tf_no_top.h5 [--fold 1] [NAME …]

Cross-validates each recipe and prints a table, as Markdown, beside the figures that others published. With `--fold` one
fold of five is trained and judged; without it all five, and every labelled photo is judged. What is finished in the
folder of runs, with one fold or with all, is read and not run again, and an interrupted run goes on where it ended.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from catdog import crossval, storage
from catdog.cli import out, run
from catdog.recipes import TrainConfig

FOLDS = 5


@dataclass(frozen=True)
class Entry:
    """A line of the table: a recipe, what it is given besides, and a published figure to hold it against."""

    recipe: str
    published: str
    figure: str
    options: dict[str, Any]


def entries(weights: str, vgg16: str | None) -> list[Entry]:
    """What is compared; VGG16's recipes only where its weights are."""
    mobilenet = {"arch": "mobilenet", "weights": weights}
    found = [
        Entry("gray-cnn", "three convolutions on grey pixels, a tutorial's validation", "0.4452", {}),
        Entry("workshop-cnn", "NTUOSS workshop, basic CNN, validation", "0.4607", {}),
        Entry("blog-cnn", "a blog's CNN, validation / Kaggle", "0.261 / 0.285", {}),
        Entry("scratch", "a blog's CNN, validation / Kaggle", "0.261 / 0.285", {}),
        Entry("linear-probe", "ResNet50 + Xception + InceptionV3 features, Kaggle", "0.04141", mobilenet),
        Entry("fine-tune", "first of 1,314 teams, Kaggle", "0.03302", mobilenet),
    ]
    if vgg16 is not None:
        frozen = {"weights": vgg16}
        found.insert(3, Entry("workshop-vgg16", "NTUOSS workshop, frozen VGG16, validation", "0.2483", frozen))
    return found


def main(
    data: Annotated[str, typer.Option(help="A prepared data set.")],
    weights: Annotated[str, typer.Option(help="MobileNet 1.0's weights without the top, or imagenet.")] = "imagenet",
    vgg16: Annotated[str | None, typer.Option(help="VGG16's weights without the top; else it is left out.")] = None,
    fold: Annotated[int | None, typer.Option(help="Train this fold alone.")] = None,
    runs: Annotated[str, typer.Option(help="Folder of the runs.")] = "runs/log-loss",
    names: Annotated[list[str] | None, typer.Argument(help="Only these recipes.")] = None,
) -> None:
    """Runs the comparison."""
    lines = []
    for entry in entries(weights, vgg16):
        if names and entry.recipe not in names:
            continue
        run_ = storage.join(runs, entry.recipe)
        if storage.exists(storage.join(run_, crossval.REPORT_NAME)):
            found = crossval.read(run_)
        else:
            config = TrainConfig(data=data, recipe=entry.recipe, runs=runs, name=entry.recipe, **entry.options)
            found = crossval.cross_validate(config, FOLDS, fold)
        figures = crossval.summarise(found)
        lines.append(
            f"| {entry.recipe} | {entry.published}: {entry.figure} | **{figures['log_loss']:.4f}** "
            f"({figures['log_loss_low']:.4f} to {figures['log_loss_high']:.4f}) | {figures['log_loss_plain']:.4f} | "
            f"{figures['accuracy']:.4f} | {figures['n']} | {found.seconds / 60:.1f} |"
        )
        out.print(lines[-1], markup=False)
    out.print(f"\n{os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}\n")
    out.print("| recipe | published | log loss (95 % interval) | uncalibrated | accuracy | photos | minutes |")
    out.print("|---|---|---|---|---|---|---|")
    for line in lines:
        out.print(line, markup=False)


if __name__ == "__main__":
    run(lambda: typer.run(main))
