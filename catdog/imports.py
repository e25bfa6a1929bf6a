"""What `import` finds, here and in Ray's workers: the same packages, whatever lies in the working folder."""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

import catdog
from catdog.errors import UsageError

# What this process and its workers import from site-packages.
PACKAGES = (
    "cleanlab", "cv2", "h5py", "imagehash", "keras", "numpy", "onnx", "onnxruntime", "pandas", "PIL", "psutil",
    "pyarrow", "pydantic", "ray", "rich", "scipy", "sklearn", "tensorboardX", "tensorflow", "tf2onnx", "typer",
)  # fmt: skip


def leave_working_folder() -> None:
    """Takes off the path what `python -m` put first on it, the working folder, unless this very catdog is there only.

    So `python -m catdog` imports what the command `catdog` does. In a checkout that is not installed, or where another
    one is, the folder stays: workers would not find this catdog without it.
    """
    if sys.flags.safe_path:
        return
    folder = sys.path.pop(0)
    specs = (finder.find_spec("catdog", None) for finder in sys.meta_path)
    elsewhere = next((spec.origin for spec in specs if spec is not None), None)
    if elsewhere is None or not Path(elsewhere).samefile(catdog.__file__):
        sys.path.insert(0, folder)


def driver_path() -> list[str]:
    """What stands on this process's path before Python's own folders: a script's folder, PYTHONPATH, and the like.

    Returns:
        Absolute folders, in order. The rest is the interpreter's, and every node has its own.
    """
    zipped = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    packages = Path(sysconfig.get_path("purelib"))
    found: list[str] = []
    for entry in sys.path:
        if entry == sysconfig.get_path("stdlib") or Path(entry).name == zipped:
            break
        path = Path(entry).absolute()
        if not path.is_relative_to(packages):  # where Ray has packages of its own
            found.append(str(path))
    return found


def require_unhidden() -> None:
    """Makes sure that no file of the user's is imported in place of a package.

    A single file is none of these packages. A folder is meant to replace one if PYTHONPATH leads to it.

    Raises:
        UsageError: a package is hidden; says by which file.
    """
    given = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for folder in driver_path():
        for name in PACKAGES:
            spec = PathFinder.find_spec(name, [folder])
            origin = Path(spec.origin) if spec is not None and spec.origin else None
            if origin is None or origin.suffix != ".py" or (origin.name == "__init__.py" and folder in given):
                continue
            hides = origin.parent if origin.name == "__init__.py" else origin
            raise UsageError(f"{hides} hides the package {name}, which catdog needs; rename it, or work elsewhere")
