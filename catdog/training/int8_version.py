"""The int8 version of a run's model, made at the end of training where that was asked for.

Whatever comes of it, the run is finished and its model stays. `int8.json` says why there is none.
"""

from __future__ import annotations

import json

from catdog import storage
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, first_line
from catdog.events import EventHandler
from catdog.inference import bundle, quantised_bundle
from catdog.run_directory import RunDirectory
from catdog.training.config import ResolvedConfig


def is_int8_due(config: ResolvedConfig) -> bool:
    """Whether a run is to have an int8 version, and none was made or refused yet.

    Args:
        config: of the run.
    """
    run = RunDirectory(config.run.uri)
    return config.validation.int8 and not (run.has_int8 or storage.exists(run.no_int8))


def make_int8(config: ResolvedConfig, data: Catalog, on_event: EventHandler) -> None:
    """Makes the int8 version of a finished run's model, or writes down why there is none.

    Args:
        config: of the run.
        data: the catalog that it was trained on.
        on_event: told of `Progress`.
    """
    run = RunDirectory(config.run.uri)
    try:
        quantised_bundle.quantise_bundle(run.uri, data, on_event=on_event)
    except Exception as error:  # the model is worth having without it
        if config.resources.debug and not isinstance(error, CatdogError):
            raise
        kind = "" if isinstance(error, CatdogError) else f"{type(error).__name__}: "
        why = kind + first_line(error).removeprefix(quantised_bundle.NOT_KEPT)
        storage.write_text(run.no_int8, json.dumps({"refused": why}, indent=2) + "\n")


def describe_int8(run: str) -> str:
    """What came of the int8 version of a run's model, in a line; "" where there is none and none was refused.

    Args:
        run: URI of the run.
    """
    place = RunDirectory(run)
    if not place.has_int8:
        why = quantised_bundle.why_refused(run)
        return f"not kept: {why}" if why else ""
    uri, info = bundle.read_info(place.int8)
    made = info.quantisation
    if made is None:
        return ""
    return (
        f"kept in {uri}: log loss {made.log_loss_change:+.5f} ({made.log_loss_change_low:+.5f} to "
        f"{made.log_loss_change_high:+.5f}) on {made.n:,} validation photos"
    )
