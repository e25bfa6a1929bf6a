"""The versions of the packages that decide what a model computes; whatever is kept for later is named after them."""

from __future__ import annotations

import functools
import importlib.metadata
import platform

from catdog import __version__

# What makes pixels of files: another version of one may make others.
DECODERS = ("simplejpeg", "opencv-python-headless", "pillow", "pillow-heif")


@functools.cache
def package_versions() -> dict[str, str]:
    """The versions of Python, of this package and of those that decide what a model computes, by name."""
    names = ("ray", "tensorflow", "keras", "onnxruntime", "numpy", *DECODERS)
    own = {"python": platform.python_version(), "catdog": __version__}
    return own | {name: importlib.metadata.version(name) for name in names}
