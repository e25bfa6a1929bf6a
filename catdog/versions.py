"""Versions of the packages that affect a model's output; cached files and scored parts are named after them."""

from __future__ import annotations

import functools
import importlib.metadata
import platform

from catdog import __version__

# Packages that decode images; another version may decode different pixels.
DECODERS = ("simplejpeg", "opencv-python-headless", "pillow", "pillow-heif")


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of Python, catdog and the packages that affect a model's output, by name."""
    names = ("ray", "tensorflow", "keras", "onnxruntime", "numpy", *DECODERS)
    own = {"python": platform.python_version(), "catdog": __version__}
    return own | {name: importlib.metadata.version(name) for name in names}
