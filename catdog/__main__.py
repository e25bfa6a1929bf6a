"""`python -m catdog` is the same as the `catdog` command."""

from catdog import imports

if __name__ == "__main__":
    imports.leave_working_folder()
    from catdog.cli import main

    main()
