"""The photos with the greatest loss out of fold, as a list and a contact sheet for eyes.

    python benchmarks/log_loss.py worst --data data/kaggle --sheet worst.png RUN …

RUN is a finished cross-validation; of several, the logits are averaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from catdog import storage
from catdog.cli.display import out
from catdog.data import catalog, images, thumbnails
from catdog.experiments import cross_validation
from catdog.reporting import contact_sheet

_SIDE, _COLUMNS = 200, 10


def main(
    runs: Annotated[list[str], typer.Argument(help="Finished cross-validations.")],
    data: Annotated[str, typer.Option(help="The data set.")],
    sheet: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
    count: Annotated[int, typer.Option(help="Number of photos.")] = 50,
) -> None:
    """Lists the photos with the greatest loss, and their share of the whole."""
    found = cross_validation.average_out_of_fold([cross_validation.read_out_of_fold(run) for run in runs])
    losses, probabilities = found.losses, found.probabilities
    worst = np.argsort(-losses)[:count]
    table = catalog.read_catalog(storage.absolute(data)).table
    places = dict(zip(table["key"].to_pylist(), table["uri"].to_pylist(), strict=True))
    tiles = []
    for number, row in enumerate(worst, 1):
        key = found.keys[row]
        out.print(f"{number:3}  {losses[row]:.3f}  p(dog) {probabilities[row]:.3f}  {key}", markup=False)
        read = images.fetch(places[key])
        pixels = None if isinstance(read, str) else thumbnails.thumbnail(read, _SIDE)
        tiles.append(contact_sheet.Tile(pixels, [f"{number}: p(dog) {probabilities[row]:.3f}", Path(key).name]))
    whole, share = losses.mean(), losses[worst].sum() / losses.sum()
    out.print(
        f"{found.name}: log loss {whole:.4f} of {len(losses):,} photos; {share:.0%} of it is in these {count}, and "
        f"without them it is {np.delete(losses, worst).sum() / len(losses):.4f}",
        markup=False,
    )
    if sheet is not None:
        sheet.write_bytes(contact_sheet.draw_sheet(contact_sheet.in_rows(tiles, _COLUMNS), _SIDE))
        out.print(f"Contact sheet: {sheet}", markup=False)
