"""The documentation: its commands exist, its links lead somewhere, and messages it quotes are the program's."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from catdog.cli.main import app
from catdog.data.catalog import SCHEMA
from catdog.reporting.result_set import REJECTED_COLUMNS
from catdog.scoring.parts import PART_SCHEMA

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    """The command lines of a page's indented blocks, continued ones joined, comments cut off."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    lines = [line.strip() for line in re.findall(r"(?:^|\n) {4}(?=\S)([^\n]*)", text)]
    return [re.split(r"\s+#\s", line)[0] for line in lines]


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for line in blocks(page):
            match = re.match(r"(?:.* -- python jobs/(train|score)\.py|catdog) (.*)", line)
            if match:
                found.append((page.name, f"{match[1] or ''} {match[2]}".strip()))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_has_the_options_that_it_is_given(page: str, line: str) -> None:
    words = shlex.split(line)
    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: catdog {line}"
        command, context = command.commands[words[0]], None
        words = words[1:]
    # Raises where an option is unknown, an argument is missing, or a value is of the wrong kind.
    context = command.make_context("catdog", words)
    context.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_modules_that_are_named_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"\b(catdog/[\w/]+\.py)\b", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_notebook_has_no_outputs_and_imports_what_exists() -> None:
    """That it runs is for tests/docs."""
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code), "clear the outputs before committing"
    python = ["".join(line for line in cell["source"] if not line.startswith("%")) for cell in code]
    nodes = [node for source in python for node in ast.walk(ast.parse(source))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert len(imports) > 3
    for node in imports:
        module = importlib.import_module(node.module or "")
        for each in node.names:
            assert hasattr(module, each.name) or importlib.import_module(f"{module.__name__}.{each.name}")


def test_messages_of_the_troubleshooting_page_are_the_programs_own() -> None:
    texts = []
    for path in (ROOT / "catdog").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    quoted = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 20
    missing = [words for words in quoted if not any(words in text for text in texts)]
    assert missing == []


def test_the_columns_of_the_artifacts_page_are_those_that_are_written() -> None:
    text = (ROOT / "docs" / "artifacts.md").read_text()
    for file, names in (
        ("catalog.parquet", SCHEMA.names),
        ("results.parts/*.parquet", PART_SCHEMA.names),
        ("results.rejected.csv", [",".join(REJECTED_COLUMNS)]),
    ):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{file}` |")]
        named = re.findall(r"`([^`]+)`", row)[1:]
        assert [name for name in named if name in names] == names, file
