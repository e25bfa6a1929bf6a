"""`catdog data`: make data sets, and look for faults in them."""

from __future__ import annotations

from typing import Annotated

import typer

from catdog.choices import Duplicates
from catdog.cli import display
from catdog.cli.display import out
from catdog.cli.options import Address, Data, Debug, Dest, StallTimeout, advising_same_command
from catdog.cli.progress import ProgressView
from catdog.errors import UsageError


def prepare(
    source: Annotated[
        str, typer.Argument(help="Kaggle's zip, or a folder, zip, tar or Parquet file of images in any usual layout.")
    ],
    dest: Dest,
    valid_fraction: Annotated[float, typer.Option(help="Share of each class held out for validation.")] = 0.1,
    split_seed: Annotated[int, typer.Option(help="Seed of the split into training and validation.")] = 0,
    positive: Annotated[
        str | None,
        typer.Option(help="Class whose probability is predicted. Default: dog, else the second class by name."),
    ] = None,
    duplicates: Annotated[
        Duplicates | None,
        typer.Option(
            help="What to do with byte-equal images. Default: drop copies of labelled images, keep and report "
            "copies of test images."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Pattern of files or folders to leave out, such as 'sample'. Repeatable.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="CSV with the labels. Default: one in SOURCE, unless folders or names tell the classes."),
    ] = None,
) -> None:
    """Unpack and check images, and store their ids, labels and splits."""
    from catdog import storage
    from catdog.data import datasets

    advice = advising_same_command("no data set was written", "start again")
    with advice, ProgressView(f"Reading {source}") as view:
        catalog = datasets.prepare_dataset(
            source, storage.absolute_output(dest, "DEST"), valid_fraction, split_seed, positive=positive,
            duplicates=duplicates, ignore=ignore, labels=labels, on_remark=view.remark, on_event=view.event,
        )  # fmt: skip
    display.show_catalog(catalog)


def synthesize(
    dest: Dest,
    train: Annotated[int, typer.Option(help="Number of labelled images, half cats and half dogs.")] = 2400,
    test: Annotated[int, typer.Option(help="Number of unlabelled images.")] = 600,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Draw cats and dogs as a data set that is ready to train on."""
    from catdog import storage
    from catdog.data import synthetic

    with advising_same_command("no data set was written", "start again"), ProgressView("Drawing"):
        catalog = synthetic.synthesize(storage.absolute_output(dest, "DEST"), train, test, seed)
    display.show_catalog(catalog)


def pack(
    data: Annotated[str, typer.Argument(help="Folder or bucket of a prepared data set.")],
    dest: Dest,
) -> None:
    """Copy a data set's images into a few Parquet files, which are faster to read from network disks and buckets."""
    from catdog import storage
    from catdog.data import packing

    with advising_same_command("no data set was written", "start again"), ProgressView("Packing") as view:
        catalog, absent = packing.pack_dataset(data, storage.absolute_output(dest, "DEST"), view.event)
    display.show_catalog(catalog)
    if absent:
        out.print(f"{absent} files are missing; they count as unreadable images until the data set is packed again")


def audit(
    data: Data,
    oof: Annotated[str, typer.Option(help="Cross-validation of the data set: the run folder of `train --folds`.")],
    out_: Annotated[str, typer.Option("--out", help="CSV of the findings; the pictures get the same name.")] = (
        "audit.csv"
    ),
    distance: Annotated[
        int, typer.Option(min=0, max=16, help="Bits of a 64-bit image hash by which near-duplicates may differ.")
    ] = 4,
    address: Address = None,
    stall_timeout: StallTimeout = None,
    debug: Debug = False,
) -> None:
    """List probably wrong labels, ambiguous images, outliers and near-duplicates, and draw the most suspect ones."""
    from catdog import cluster, lease, stall, storage, waiting
    from catdog.data import catalog
    from catdog.experiments import audit, cross_validation
    from catdog.reporting import result_set
    from catdog.training import feature_cache

    target = storage.absolute_output(out_, "--out")
    if not storage.name(target).endswith(".csv"):
        raise UsageError(f"--out received {out_!r}, expected the name of a .csv file")
    pictures = result_set.sidecar(target, "png")
    rows, found = catalog.read_catalog(data), cross_validation.read_out_of_fold(oof)
    advice = advising_same_command("nothing was written", "start again")
    if stall_timeout is not None and not stall_timeout >= 0:
        raise UsageError(f"--stall-timeout received {stall_timeout}, expected seconds, or 0 for no limit")
    limit = stall.DEFAULT_SECONDS if stall_timeout is None else stall_timeout
    with (
        advice,
        ProgressView("Auditing", debug) as view,
        lease.hold(result_set.sidecar(target, "lease.json"), "an audit") as held,
        cluster.connect(address, debug),
        stall.watching(view.event, limit, "nothing was written; start it again") as watch,
    ):
        waiting.wait_for([{"CPU": 1}], watch.event)
        known = None
        if found.features:
            values, at = feature_cache.read_features(found.features, found.keys, "identity")
            known = (values, [found.keys[row] for row in at])
        findings = audit.audit_labels(rows, found, known, distance)
        held.require_held()
        audit.write_findings(findings, target)
        audit.draw_findings(findings, rows, pictures)
    display.show_findings(findings)
    out.print(f"Audit: {target}   Pictures: {pictures}")
