"""A package's public face: names that are imported from their modules when they are first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazy(package: str, names: dict[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """Makes a package's `__getattr__` and `__all__` (PEP 562), so that importing the package loads no module of it.

    Args:
        package: its full name.
        names: by public name, the module of the package that has it.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{names[name]}"), name)

    return find, sorted(names)
