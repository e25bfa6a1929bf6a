"""The `catdog` command: options in, the library called, what happened shown; nothing is computed here."""

__all__: list[str] = []
