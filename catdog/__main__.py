"""Entry point of `python -m catdog` and of the `catdog` command."""

from typing import NoReturn

from catdog import imports, interruption


def main() -> NoReturn:
    """Runs the `catdog` command with this process's arguments."""
    interruption.guard(_main)
    raise AssertionError("the command ends the process")


def _main() -> None:
    # Imported late: these imports take long enough to be interrupted, so the guard must be in place first.
    from catdog.cli import main

    main.main()


if __name__ == "__main__":
    imports.leave_working_folder()
    main()
