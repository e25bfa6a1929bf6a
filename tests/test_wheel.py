"""What `pip install` of a wheel brings: all packages, and a command that works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from catdog import __version__

ROOT = Path(__file__).parents[1]


def run(*command: object, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_wheel_in_a_fresh_environment(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "wheels", ROOT, folder=tmp_path)
    (wheel,) = (tmp_path / "wheels").glob("catdog-*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", wheel, folder=tmp_path)
    # Its dependencies are this environment's, without the editable install that lies among them.
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip()
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import catdog; print(catdog.__file__)", folder=tmp_path)
    assert where.startswith(str(tmp_path))
    assert _files(Path(purelib)) == _files(ROOT)
    command = tmp_path / "env" / "bin" / "catdog"
    assert run(command, "--version", folder=tmp_path).strip() == f"catdog {__version__}"
    assert "mobilenet" in run(command, "models", folder=tmp_path)


def _files(root: Path) -> set[Path]:
    """Everything of the package, also what is not Python."""
    return {
        path.relative_to(root)
        for path in (root / "catdog").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
