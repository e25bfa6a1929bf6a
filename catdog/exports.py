"""Lazy exports: a package's public names, imported from their modules on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazy(package: str, names: dict[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """Creates a package's `__getattr__` and `__all__` (PEP 562); importing the package then loads none of its modules.

    Args:
        package: full name of the package.
        names: the module that defines each public name.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{names[name]}"), name)

    return find, sorted(names)
