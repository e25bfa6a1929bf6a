"""`catdog bundle`: bundles made of others."""

from __future__ import annotations

from typing import Annotated

import typer

from catdog.cli import display
from catdog.cli.completion import complete_run
from catdog.cli.options import Data, advising_same_command
from catdog.cli.progress import ProgressView


def quantise(
    model: Annotated[str, typer.Argument(help="Run or bundle, in float32.", autocompletion=complete_run)],
    data: Data,
    out_: Annotated[
        str | None,
        typer.Option(
            "--out", help="Folder or bucket to create. Default: beside the bundle, where --precision int8 finds it."
        ),
    ] = None,
    calibration: Annotated[
        int, typer.Option(min=1, max=100_000, help="Training photos that the ranges of activations are taken from.")
    ] = 512,
    weight_bits: Annotated[
        int, typer.Option(min=7, max=8, help="8 is a little more exact, but only on CPUs with VNNI or on ARM.")
    ] = 7,
    keep_float: Annotated[
        int, typer.Option(min=0, help="Convolutions that stay in float32: the most sensitive ones, by a sweep.")
    ] = 2,
) -> None:
    """Make an int8 bundle, scored faster on CPUs; kept only if the validation photos say that it is as good."""
    from catdog import storage
    from catdog.data import catalog
    from catdog.inference import quantised_bundle

    target = None if out_ is None else storage.absolute_output(out_, "--out")
    advice = advising_same_command("no bundle was written", "start again")
    with advice, ProgressView("Reading") as view:
        made = quantised_bundle.quantise_bundle(
            model, catalog.read_catalog(data), target, calibration, weight_bits, keep_float, view.event
        )
    display.show_quantised(made)
