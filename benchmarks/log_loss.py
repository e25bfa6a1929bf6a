"""Log loss of the recipes on labelled photos that were not used for training, stopping, calibration or selection.

    python benchmarks/log_loss.py recipes --data data/kaggle --weights WEIGHTS [--fold 1] [NAME …]
    python benchmarks/log_loss.py variants --data data/kaggle --weights WEIGHTS [NAME …]
    python benchmarks/log_loss.py mle-bench --source KAGGLE_ZIP
    python benchmarks/log_loss.py learning-curve --data data/kaggle [NAME …]
    python benchmarks/log_loss.py worst --data data/kaggle [--sheet PNG] RUN …
    python benchmarks/log_loss.py joined RUN …
    python benchmarks/log_loss.py calibration RUN …

WEIGHTS is a weights file of MobileNet 1.0 without the top, or imagenet. The first command cross-validates each recipe
and prints a Markdown table with published figures for comparison. With `--fold` it trains and evaluates one fold of
five; without it all five, so that every labelled photo is evaluated. Finished runs in the folder, of one fold or all,
are read and not repeated; interrupted runs continue. The second command is an ablation: it compares single ingredients
of fine-tuning with a baseline, photo by photo, on short runs of one fold. The third one is MLE-bench's split of the
competition and its rule (`mle_bench.py`), the fourth one trains on more and more photos (`learning_curve.py`).
`worst` lists the photos with the greatest loss out of fold (`worst.py`), `joined` fits a head to the features of
several networks (`joined.py`), and `calibration` asks what few validation photos are worth (`few_photos.py`).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Annotated, Any

import few_photos
import joined
import learning_curve
import mle_bench
import typer
import worst

from catdog import storage
from catdog.cli.display import out
from catdog.cli.main import run
from catdog.errors import UsageError
from catdog.evaluation import metrics
from catdog.experiments import cross_validation
from catdog.training.request import TrainConfig

FOLDS = 5


@dataclass(frozen=True)
class Entry:
    """A line of the table: a recipe, its options, and published figures for comparison."""

    recipe: str
    published: str
    figure: str
    options: dict[str, Any]


def entries(weights: str, vgg16: str | None) -> list[Entry]:
    """Lines of the table; recipes with VGG16 only if its weights are given."""
    mobilenet = {"arch": "mobilenet", "weights": weights}
    found = [
        Entry("gray-cnn", "three convolutions on grey pixels, a tutorial's validation", "0.4452", {}),
        Entry("workshop-cnn", "NTUOSS workshop, basic CNN, validation", "0.4607", {}),
        Entry("blog-cnn", "a blog's CNN, validation / Kaggle", "0.261 / 0.285", {}),
        Entry("scratch", "a blog's CNN, validation / Kaggle", "0.261 / 0.285", {}),
        Entry(
            "linear-probe",
            "NTUOSS workshop, frozen VGG16 / fast.ai, VGG16's last layer / ResNet50 + Xception + InceptionV3 features",
            "0.2483 / 0.0528 to 0.0581 / 0.04141",
            mobilenet,
        ),
        Entry("fine-tune", "gold line of a benchmark of agents / first of 1,314 teams", "0.03882 / 0.03302", mobilenet),
    ]
    if vgg16 is not None:
        frozen = {"weights": vgg16}
        found.insert(3, Entry("workshop-vgg16", "NTUOSS workshop, frozen VGG16, validation", "0.2483", frozen))
    return found


app = typer.Typer()
app.command("mle-bench")(mle_bench.main)
app.command("learning-curve")(learning_curve.main)
app.command("worst")(worst.main)
app.command("joined")(joined.main)
app.command("calibration")(few_photos.main)

# Short runs on small images, so that many can be compared. Figures are worse than fine-tune's; only differences matter.
SHORT: dict[str, Any] = {
    "arch": "mobilenet", "image_size": 160, "train_scale": 0.8, "trainable_from": "conv_dw_6", "epochs": 5,
    "learning_rate": 3e-4,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "none of them": {},
    "EMA 0.99": {"ema": 0.99},
    "label smoothing 0.05": {"label_smoothing": 0.05},
    "MixUp 0.2": {"mixup": 0.2},
    "random erasing 0.25": {"augmentation": {"erase": 0.25}},
    "layer-wise rates 0.9": {"layer_decay": 0.9},
}


@app.command()
def variants(
    data: Annotated[str, typer.Option(help="A prepared data set.")],
    weights: Annotated[str, typer.Option(help="MobileNet 1.0's weights without the top, or imagenet.")] = "imagenet",
    fold: Annotated[int, typer.Option(help="Train this fold of five.")] = 1,
    runs: Annotated[str, typer.Option(help="Folder of the runs.")] = "runs/variants",
    names: Annotated[list[str] | None, typer.Argument(help="Only these ingredients.")] = None,
) -> None:
    """Compares single ingredients of fine-tuning with none of them."""
    if unknown := set(names or []) - set(VARIANTS):
        raise UsageError(f"received {sorted(unknown)}, expected some of {', '.join(VARIANTS)}")
    found = {}
    for name, options in VARIANTS.items():
        if names and options and name not in names:
            continue
        run_ = "".join(letter if letter.isalnum() else "-" for letter in name)
        config = TrainConfig(data=data, recipe="fine-tune", weights=weights, runs=runs, name=run_, **(SHORT | options))
        found[name] = cross_validation.cross_validate(config, FOLDS, fold)
        out.print(f"{name}: {found[name].figures.log_loss:.4f}", markup=False)
    out.print(f"\n{os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}, fold {fold} of {FOLDS}\n")
    out.print("| with | log loss | uncalibrated | better than with none (95 % interval) | | minutes |")
    out.print("|---|---|---|---|---|---|")
    base = found["none of them"]
    for name, each in found.items():
        figures, gain = each.figures, base.losses - each.losses
        low, high = metrics.difference_interval(gain)
        verdict = "" if each is base else "noise" if low <= 0 <= high else "helps" if low > 0 else "hurts"
        out.print(
            f"| {name} | {figures.log_loss:.4f} | {each.log_loss_plain:.4f} | "
            f"{gain.mean():+.4f} ({low:+.4f} to {high:+.4f}) | {verdict} | {each.seconds / 60:.1f} |"
        )


@app.command("recipes")
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
        if storage.exists(storage.join(run_, cross_validation.REPORT_NAME)):
            found = cross_validation.read_out_of_fold(run_)
        else:
            config = TrainConfig(data=data, recipe=entry.recipe, runs=runs, name=entry.recipe, **entry.options)
            found = cross_validation.cross_validate(config, FOLDS, fold)
        figures = found.figures
        lines.append(
            f"| {entry.recipe} | {entry.published}: {entry.figure} | **{figures.log_loss:.4f}** "
            f"({figures.log_loss_low:.4f} to {figures.log_loss_high:.4f}) | {found.log_loss_plain:.4f} | "
            f"{figures.accuracy:.4f} | {figures.n} | {found.seconds / 60:.1f} |"
        )
        out.print(lines[-1], markup=False)
    out.print(f"\n{os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}\n")
    out.print("| recipe | published | log loss (95 % interval) | uncalibrated | accuracy | photos | minutes |")
    out.print("|---|---|---|---|---|---|---|")
    for line in lines:
        out.print(line, markup=False)


if __name__ == "__main__":
    run(lambda: app(standalone_mode=False))
