"""The Python path of this process and of Ray's workers, so that files in the working folder hide no package."""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

import catdog
from catdog.errors import UsageError

# Packages that catdog imports, here and in Ray's workers.
PACKAGES = (
    "cleanlab", "cv2", "fastapi", "h5py", "imagehash", "jinja2", "keras", "matplotlib", "numpy", "onnx", "onnxruntime",
    "pandas", "PIL", "prometheus_client", "psutil", "pyarrow", "pydantic", "ray", "rich", "scipy", "sklearn",
    "starlette", "tensorboardX", "tensorflow", "tf2onnx", "typer",
)  # fmt: skip


def leave_working_folder() -> None:
    """Removes the working folder, which `python -m` puts first on the path, unless catdog is nowhere else.

    `python -m catdog` then imports the same packages as the `catdog` command.
    In a checkout that is not installed, or where another one is, the folder stays: workers would not find this catdog
    without it.
    """
    if sys.flags.safe_path:
        return
    folder = sys.path.pop(0)
    specs = (finder.find_spec("catdog", None) for finder in sys.meta_path)
    elsewhere = next((spec.origin for spec in specs if spec is not None), None)
    if elsewhere is None or not Path(elsewhere).samefile(catdog.__file__):
        sys.path.insert(0, folder)


def driver_path() -> list[str]:
    """Entries of this process's path before Python's own folders: the script's folder, PYTHONPATH, and so on.

    Returns:
        Absolute folders, in order. The other entries belong to the interpreter, and each node has its own.
    """
    zipped = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    packages = Path(sysconfig.get_path("purelib"))
    found: list[str] = []
    for entry in sys.path:
        if entry == sysconfig.get_path("stdlib") or Path(entry).name == zipped:
            break
        path = Path(entry).absolute()
        if not path.is_relative_to(packages):  # Ray adds folders of the packages that it vendors
            found.append(str(path))
    return found


def require_unhidden() -> None:
    """Checks that no file of the user hides an installed package.

    A single file always counts, since none of the packages is one. A folder in an entry of PYTHONPATH does not count,
    because it is meant to replace the package.

    Raises:
        UsageError: a package is hidden; the message names the file.
    """
    given = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for folder in driver_path():
        for name in PACKAGES:
            spec = PathFinder.find_spec(name, [folder])
            origin = Path(spec.origin) if spec is not None and spec.origin else None
            if origin is None or origin.suffix != ".py" or (origin.name == "__init__.py" and folder in given):
                continue
            hides = origin.parent if origin.name == "__init__.py" else origin
            raise UsageError(
                f"{hides} hides the package {name}, which catdog needs; rename it, or run in another folder"
            )
