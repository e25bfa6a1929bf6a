"""Options that several commands share, and how a command gets those that every command takes."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer

from catdog import interruption
from catdog.errors import UsageError, did_you_mean
from catdog.training.request import Augmentation, TrainConfig


def field_option(field: str, *flags: str, complete: Callable[[str], list[str]] | None = None) -> Any:
    """Makes a command's option of a field of `TrainConfig`, whose description is the option's help.

    Args:
        field: its name.
        flags: the option's spelling, where it does not follow from the field's name.
        complete: completes a value in the shell.
    """
    return typer.Option(*flags, help=TrainConfig.model_fields[field].description, autocompletion=complete)


Address = Annotated[str | None, field_option("address")]
Debug = Annotated[bool, field_option("debug", "--debug")]
StallTimeout = Annotated[float | None, field_option("stall_timeout")]
Wait = Annotated[float | None, field_option("wait")]
Data = Annotated[str, typer.Option("--data", help="Folder or bucket of a prepared data set.")]
Dest = Annotated[str, typer.Argument(help="Folder or bucket to create.")]
Gpu = Annotated[
    bool | None, typer.Option("--gpu/--cpu", help="Run on GPUs or CPUs. Default: GPUs where there are any.")
]
OpenPage = Annotated[bool, typer.Option("--open", help="Open the report in a browser at the end.")]
Runs = Annotated[str, field_option("runs")]
Track = Annotated[
    str | None,
    typer.Option(help="Track the run: mlflow, wandb or trackio, and perhaps a place, as mlflow:http://HOST:5000."),
]

_EVERYWHERE = {"address": (Address, None), "debug": (Debug, False)}


def add_command(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Adds a command to an app; it takes --address and --debug, also where the function has no use for them.

    Args:
        app: the app or group.
        name: of the command.
        function: its parameters are the options, and its docstring is the help.
    """
    signature = inspect.signature(function, eval_str=True)
    own = signature.parameters
    added = [
        inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for option, (annotation, default) in _EVERYWHERE.items()
        if option not in own
    ]

    @functools.wraps(function)
    def call(**values: Any) -> None:
        function(**{option: value for option, value in values.items() if option in own})

    call.__signature__ = signature.replace(parameters=[*own.values(), *added])  # type: ignore[attr-defined]
    app.command(name)(call)


def advising_same_command(kept: str, purpose: str) -> AbstractContextManager[None]:
    """While the block runs, an interruption says what is kept and shows the same command again.

    Args:
        kept: such as "finished parts are kept".
        purpose: of running the command again, such as "go on".
    """
    return interruption.advising(lambda: f"{kept}; to {purpose}:\n  {interruption.same_command()}")


def parse_settings(texts: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """Parses NAME=VALUE options, which reach every field of `TrainConfig`.

    Args:
        texts: each a field's name, or `augmentation.` and a field of `Augmentation`, then "=" and its value, in JSON or
            else as plain text.
        option: that they were given to.

    Returns:
        Options for `TrainConfig`.

    Raises:
        UsageError: not NAME=VALUE, or no field has that name.
    """
    found: dict[str, Any] = {}
    for text in texts or []:
        name, separator, raw = text.partition("=")
        try:
            value = json.loads(raw)
        except ValueError:
            value = raw
        outer, _, inner = name.partition(".")
        known = [*TrainConfig.model_fields, *(f"augmentation.{field}" for field in Augmentation.model_fields)]
        if not separator or name not in known:
            raise UsageError(
                f"{option} received {text!r}, expected NAME=VALUE with a training option, such as ema=0.99"
                f"{did_you_mean(name, known)}"
            )
        if inner:
            found.setdefault(outer, {})[inner] = value
        else:
            found[name] = value
    return found
