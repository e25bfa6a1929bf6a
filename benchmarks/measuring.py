"""What the speed comparisons share: options, data sets made by repeating photos, models, and timing."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from catdog import storage
from catdog.data import datasets, images, layouts
from catdog.data.catalog import Catalog
from catdog.inference import bundle, export
from catdog.models import registry

SIZE = 192

Data = Annotated[str, typer.Option(help="A prepared data set with a test split.")]
Weights = Annotated[str, typer.Option(help="MobileNet 0.25's weights without the top, or none.")]
Rounds = Annotated[int, typer.Option(help="How often each is run, in turn.")]
Folder = Annotated[Path | None, typer.Option(help="Where to work; else a temporary folder.")]


def say(text: str) -> None:
    """Prints a line and flushes it."""
    print(text, flush=True)


def workplace(folder: Path | None) -> Path:
    """The working folder as an absolute path, because URIs in catalogs are relative to their data set."""
    return (folder or Path(tempfile.mkdtemp(prefix="catdog-speed-"))).absolute()


def sample_of(data: Catalog) -> np.ndarray:
    """Real images for the comparison of ONNX with Keras: uint8, 32×S×S×3."""
    return np.stack([images.read_image(uri, SIZE).pixels for uri in data.split("test")["uri"][:32].to_pylist()])


def timed(command: list[str]) -> tuple[float, str]:
    """Runs a process; returns its seconds and output."""
    started = time.perf_counter()
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return time.perf_counter() - started, done.stdout


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def repeat(data: Catalog, count: int, root: Path, split: str = "test") -> Catalog:
    """A data set of `count` links to the files of a split, repeated; in one folder, for programs that read folders."""
    files = data.split(split)["uri"].to_pylist()
    shutil.rmtree(root, ignore_errors=True)
    (root / "images").mkdir(parents=True)
    for number in range(count):
        (root / "images" / f"{number + 1}.jpg").symlink_to(files[number % len(files)])
    rows = [layouts.Row(f"{number + 1}.jpg", "test", None) for number in range(count)]
    made = datasets.build_catalog(str(root), rows, data.class_names, {}, folder="images")
    made.write()
    return made


def save(folder: Path, alpha: float, weights: str, sample: np.ndarray) -> str:
    """Saves a bundle of MobileNet with an untrained head; returns its folder."""
    spec = registry.ModelSpec("mobilenet", sample.shape[1], alpha, pretrained=weights != "none")
    model = registry.build_model(spec, storage.read_bytes(weights) if weights != "none" else None)
    info = export.save_bundle(
        str(folder), [model], sample, architecture="mobilenet", image_size=sample.shape[1],
        **PLAIN | {"training": {"options": {"alpha": alpha}}},
    )  # fmt: skip
    if info.onnx != bundle.VERIFIED:
        sys.exit(f"no ONNX: {info.onnx}")
    return str(folder)


PLAIN: dict[str, Any] = {
    "class_names": ("cat", "dog"), "views": ["identity"], "calibration": "none", "temperature": 1.0, "clip": 1e-6,
    "prior": 0.5, "validation": {}, "chosen_on": "none", "catalog_fingerprint": "", "seed": 0, "training": {},
}  # fmt: skip
