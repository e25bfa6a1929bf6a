"""`catdog serve`, the page and the API; and `data review`, a page to mend labels."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from catdog import interruption
from catdog.choices import EngineChoice
from catdog.cli import display
from catdog.cli.display import err, out
from catdog.cli.options import Address, Data, Debug, Gpu, Wait


def serve(
    model: Annotated[list[str], typer.Option(help="Run or bundle. Repeat it to average the logits of several.")],
    pictures: Annotated[
        str | None,
        typer.Option(
            help="Folder of images, or prepared data set, that Random takes from. "
            "Default: Flickr, if FLICKR_API_KEY is set."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Others than the default let other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    engine: Annotated[EngineChoice, typer.Option(help="As for `catdog score`.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Images that the engine gets together. Default: 4 for ONNX, 64 for TensorFlow.")
    ] = None,
    min_replicas: Annotated[int, typer.Option(help="Copies of the model that are always there.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(help="Most copies of the model. Default: one for each CPU or GPU.")
    ] = None,
    max_upload: Annotated[float, typer.Option(help="Most megabytes of a request.")] = 20,
    max_files: Annotated[int, typer.Option(help="Most pictures of a request.")] = 16,
    max_pixels: Annotated[float, typer.Option(help="Most megapixels of a picture.")] = 64,
    timeout: Annotated[float, typer.Option(help="Most seconds for a request.")] = 30,
    max_requests: Annotated[
        int, typer.Option(help="Requests that are answered at the same time; others are told to try again.")
    ] = 32,
    gpu: Gpu = None,
    address: Address = None,
    wait: Wait = None,
    debug: Debug = False,
) -> None:
    """Serve a model as a web page and an API, until Ctrl-C."""
    from catdog.serving.config import ServeConfig
    from catdog.serving.server import LOOPBACK, running

    config = ServeConfig(
        model=model, pictures=pictures, host=host, port=port, engine=engine, batch_size=batch_size,
        min_replicas=min_replicas, max_replicas=max_replicas, max_upload=max_upload, max_files=max_files,
        max_pixels=max_pixels, timeout=timeout, max_requests=max_requests, gpu=gpu, address=address, wait=wait,
        debug=debug,
    )  # fmt: skip
    if host not in LOOPBACK:
        err.print(f"Warning: there is no authentication; whoever reaches port {port} of {host} can use the model.")

    with (
        interruption.advising(lambda: "the server ends"),
        out.status("Starting…") as status,
        running(config, display.show_event) as url,
    ):
        status.stop()
        out.print(f"Page: {url}\nAPI:  {url}docs\nCtrl-C ends the server.")
        threading.Event().wait()


def review(
    audit: Annotated[str, typer.Option(help="CSV that `catdog data audit` wrote.")],
    data: Data,
    out_: Annotated[
        str | None,
        typer.Option("--out", help="CSV of decisions to write, or to go on with. Default: AUDIT.reviewed.csv."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of this machine to listen on.")] = 8001,
) -> None:
    """Go through an audit's findings on a page, and keep, flip or leave out each, until Ctrl-C."""
    from catdog import storage
    from catdog.data import catalog
    from catdog.serving import review as reviews

    target = storage.absolute_output(out_ or f"{audit.removesuffix('.csv')}.reviewed.csv", "--out")
    rows = catalog.read_catalog(data)
    decided = reviews.Review(rows, storage.absolute(audit), target)
    app = reviews.build_review_app(decided, rows.class_names, target)
    again = f"what was decided is in {target}, and the same command goes on from there"
    with interruption.advising(lambda: again), reviews.reviewing(app, port) as url:
        out.print(
            f"Page: {url}\n{len(decided.items)} training photos to review. Ctrl-C ends it; then\n"
            f"  catdog train … --leave-out {target}"
        )
        threading.Event().wait()
