"""Shell completion of names: recipes, architectures, searches, training options, and runs that are there.

It runs at each press of Tab, so it imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

import typer

from catdog.training.request import TrainConfig


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Recipes and what they are."""
    from catdog.training.recipes import RECIPES

    return [(name, recipe.summary) for name, recipe in RECIPES.items() if name.startswith(incomplete)]


def complete_arch(incomplete: str) -> list[tuple[str, str]]:
    """Architectures and what they are."""
    from catdog.models import registry

    found = registry.get_architectures().items()
    return [(name, arch.summary) for name, arch in found if name.startswith(incomplete)]


def complete_search(incomplete: str) -> list[tuple[str, str]]:
    """Searches and what they are."""
    from catdog.experiments.searches import SEARCHES

    return [(name, search.summary) for name, search in SEARCHES.items() if name.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """Training options, as `--set` takes them."""
    return sorted(f"{name}=" for name in TrainConfig.model_fields if name.startswith(incomplete))


def complete_name(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the runs in --runs, if that is a local folder."""
    return [path.name for path in _runs_in(Path(ctx.params.get("runs") or "runs")) if path.name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Local folders of runs: those in `runs`, and those in the folder that is typed already."""
    folder = Path(incomplete.rpartition("/")[0] or "/") if "/" in incomplete else Path("runs")
    return [str(path) for path in _runs_in(folder.expanduser()) if str(path).startswith(incomplete)]


def _runs_in(folder: Path) -> list[Path]:
    """Folders of runs, cross-validations and searches in a folder."""
    marks = ("config.json", "oof.json", "search.json")
    try:
        return [path for path in sorted(folder.iterdir()) if any((path / mark).is_file() for mark in marks)]
    except OSError:
        return []
