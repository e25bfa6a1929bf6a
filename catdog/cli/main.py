"""The `catdog` command: its list of commands, and how a failure ends it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import pydantic
import typer
import typer.exceptions

from catdog import __version__, buckets, imports, interruption
from catdog.cli import bundle, data, doctor, kaggle, predict, score, serve, train
from catdog.cli.display import err, out
from catdog.cli.options import add_command
from catdog.errors import CatdogError, UsageError

app = typer.Typer(
    help="Train a cat/dog classifier on Ray, score images with it, and write a submission for Kaggle.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Download, prepare, draw, pack and audit data sets.", no_args_is_help=True)
bundle_app = typer.Typer(help="Make bundles of others.", no_args_is_help=True)
submission_app = typer.Typer(help="Check submissions.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(bundle_app, name="bundle")
app.add_typer(submission_app, name="submission")

add_command(data_app, "download", kaggle.download)
add_command(data_app, "prepare", data.prepare)
add_command(data_app, "synthesize", data.synthesize)
add_command(data_app, "pack", data.pack)
add_command(data_app, "audit", data.audit)
add_command(data_app, "review", serve.review)
add_command(bundle_app, "quantise", bundle.quantise)
add_command(app, "train", train.train)
add_command(app, "score", score.score)
add_command(submission_app, "check", score.check)
add_command(app, "submit", kaggle.submit)
add_command(app, "kaggle", kaggle.kaggle)
add_command(app, "predict", predict.predict)
add_command(app, "serve", serve.serve)
add_command(app, "explain", predict.explain)
add_command(app, "models", train.models)
add_command(app, "tune", train.tune)
add_command(app, "oof", train.oof)
add_command(app, "runs", train.list_runs)
add_command(app, "recipes", train.recipes)
add_command(app, "doctor", doctor.doctor)


def main() -> NoReturn:
    """Runs the `catdog` command with this process's arguments."""
    run(lambda: app(standalone_mode=False))


def run(command: Callable[[], object]) -> NoReturn:
    """Runs a command and ends the process; a failure is one line on standard error, and with --debug a traceback.

    After Ctrl-C or SIGTERM nothing is added to what `interruption.guard` has written.

    Args:
        command: returns the exit code; anything but an int counts as 0.
    """
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the command
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")

    def checked() -> object:
        imports.require_unhidden()
        return command()

    try:
        code = interruption.guard(checked)
    except typer.exceptions.TyperException as error:
        # Of an option that is mistyped; of a command Typer itself says which one may be meant.
        near = getattr(error, "possibilities", None)
        message = f"{error.message} Did you mean '{near[0]}'?" if near else error.format_message()
        _complain(f"catdog: {message} (see --help)")
        sys.exit(error.exit_code)
    except CatdogError as error:
        if debug:
            raise
        _complain(f"catdog: {error}")
        sys.exit(error.exit_code)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        _complain(f"catdog: {option} received {first['input']!r}: {first['msg']}")
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # without a signal, such as Ctrl-D at a prompt
        err.print("catdog: interrupted")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        text = (str(error).strip() or "no message").splitlines()[0]
        _complain(f"catdog: {type(error).__name__}: {text} (--debug shows where)")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> None:
    """Prints an error without the credentials that a URI may have."""
    err.print(buckets.without_secrets(message))


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"catdog {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `catdog` itself."""
