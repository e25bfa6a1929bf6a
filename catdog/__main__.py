"""`python -m catdog` is the same as the `catdog` command."""

from catdog.cli import main

if __name__ == "__main__":
    main()
