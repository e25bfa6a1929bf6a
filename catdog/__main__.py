"""`python -m catdog` is the same as the `catdog` command, which starts here, too."""

from typing import NoReturn

from catdog import imports, interruption


def main() -> NoReturn:
    """Runs the `catdog` command with this process's arguments."""
    interruption.guard(_main)
    raise AssertionError("the command ends the process")


def _main() -> None:
    # Only now: what the command imports takes long enough to be interrupted.
    from catdog.cli import main

    main.main()


if __name__ == "__main__":
    imports.leave_working_folder()
    main()
