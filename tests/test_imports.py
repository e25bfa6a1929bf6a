"""Python imports packages, never files of the user's that are named like them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=kept | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("keras", "ray", "random", "rich"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('this is not {name}')")
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "notes.txt").write_text("a folder that is no package hides none")
    return tmp_path


def test_python_m_catdog_imports_nothing_from_the_working_folder(folder: Path) -> None:
    shown = run(folder, "-m", "catdog", "models", PYTHONPATH=str(ROOT))
    assert shown.returncode == 0, shown.stderr
    assert "small_resnet" in shown.stdout


def test_python_m_catdog_in_another_checkout_keeps_it_for_workers(tmp_path: Path) -> None:
    copy = tmp_path / "catdog"
    shutil.copytree(ROOT / "catdog", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "cli" / "main.py").write_text("from catdog import imports\ndef main(): print(imports.driver_path())\n")
    shown = run(tmp_path, "-m", "catdog", PYTHONPATH=str(ROOT))
    assert shown.stdout.strip() == str([str(tmp_path), str(ROOT)]), shown.stderr


def test_a_file_that_hides_a_package_is_named(tmp_path: Path) -> None:
    script = tmp_path / "jobs" / "x.py"
    script.parent.mkdir()
    script.write_text("from catdog.cli.main import main\nmain()\n")
    (tmp_path / "keras.py").write_text("")
    refused = run(tmp_path, str(script), "models", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"catdog: {tmp_path}/keras.py hides the package keras, which catdog needs; rename")
    assert refused.stderr.count("\n") == 1
    # As a folder it is somebody's own version, to which PYTHONPATH leads; beside the script it is there by chance.
    (tmp_path / "keras.py").unlink()
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "__init__.py").write_text("")
    assert run(tmp_path, str(script), "models", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}").returncode == 0
    (tmp_path / "keras").rename(script.parent / "keras")
    assert f"{script.parent}/keras hides" in run(tmp_path, str(script), "models", PYTHONPATH=str(ROOT)).stderr
