"""Log loss by the number of training photos: the learning curve of a recipe.

    python benchmarks/log_loss.py learning-curve --data data/kaggle [--picture docs/images/learning-curve.png] [NAME …]

The photos of one fold of five judge every model; the training photos of the other four are left out but for the first
so many of each class, in an order drawn once, so that every set holds the smaller ones.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from catdog import storage
from catdog.cli.display import out
from catdog.data import catalog, key_list
from catdog.experiments import cross_validation
from catdog.training.request import TrainConfig

if TYPE_CHECKING:
    from catdog.data.catalog import Catalog

_FOLDS, _FOLD = 5, 1
SIZES = (100, 300, 1_000, 3_000, 8_000)
RECIPES = ("linear-probe", "fine-tune")


def choose_photos(data: Catalog, count: int) -> tuple[int, dict[str, str]]:
    """Chooses training photos of the fold, half of each class.

    Args:
        data: the catalog.
        count: how many at most.

    Returns:
        How many there are, and the other training photos, as `key_list.format_actions` takes them.
    """
    fold_of = cross_validation.assign_folds(data, _FOLDS, int(data.options.get("split_seed", 0)))  # type: ignore[call-overload]
    keys, labels = data.table["key"].to_pylist(), np.array(data.table["label"].to_pylist(), object)
    chosen, left_out = 0, {}
    for label in (0, 1):
        rows = np.flatnonzero((labels == label) & (fold_of >= 0) & (fold_of != _FOLD - 1))
        drawn = np.random.default_rng(label).permutation(rows)
        chosen += len(drawn[: count // 2])
        left_out |= {keys[row]: key_list.LEAVE_OUT for row in drawn[count // 2 :]}
    return chosen, left_out


def main(
    data: Annotated[str, typer.Option(help="A prepared data set.")],
    arch: Annotated[str | None, typer.Option(help="Architecture. Default: what `catdog train` takes.")] = None,
    weights: Annotated[str | None, typer.Option(help="As of `catdog train`.")] = None,
    runs: Annotated[str, typer.Option(help="Folder of the runs.")] = "runs/learning-curve",
    picture: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
    names: Annotated[list[str] | None, typer.Argument(help="Recipes. Default: linear-probe and fine-tune.")] = None,
) -> None:
    """Trains on more and more photos, prints the table, and draws the curve."""
    read = catalog.read_catalog(storage.absolute(data))
    chosen = names or list(RECIPES)
    rows: dict[str, list[tuple[int, float, float, float]]] = {name: [] for name in chosen}
    out.print("| recipe | training photos | log loss (95 % interval) | accuracy | minutes |", markup=False)
    out.print("|---|---|---|---|---|")
    for name in chosen:
        for count in SIZES:
            left, others = choose_photos(read, count)
            listed = storage.join(storage.absolute(runs), f"{count}.csv")
            storage.write_text(listed, key_list.format_actions(others))
            config = TrainConfig(
                data=data,
                recipe=name,
                arch=arch,
                weights=weights,
                runs=runs,
                name=f"{name}-{count}",
                leave_out=listed if others else None,
            )
            found = cross_validation.cross_validate(config, _FOLDS, _FOLD)
            figures = found.figures
            rows[name].append((left, figures.log_loss, figures.log_loss_low, figures.log_loss_high))
            out.print(
                f"| {name} | {left} | **{figures.log_loss:.4f}** ({figures.log_loss_low:.4f} to "
                f"{figures.log_loss_high:.4f}) | {figures.accuracy:.4f} | {found.seconds / 60:.1f} |",
                markup=False,
            )
    out.print(f"\n{os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}, fold {_FOLD} of {_FOLDS}")
    if picture is not None:
        draw(rows, picture)
        out.print(f"Picture: {picture}", markup=False)


def draw(rows: dict[str, list[tuple[int, float, float, float]]], picture: Path) -> None:
    """Draws the curves.

    Args:
        rows: by recipe: number of photos, log loss, and the ends of its interval.
        picture: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, found in rows.items():
        counts, losses, low, high = map(np.array, zip(*found, strict=True))
        (line,) = axes.plot(counts, losses, marker="o", label=name)
        axes.fill_between(counts, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(counts)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks([0.02, 0.03, 0.05, 0.1])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training photos")
    axes.set_ylabel("log loss of 2,000 other photos")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture)
