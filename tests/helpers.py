"""Helpers for tests: files and models as inputs, subprocesses, and access to results."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from PIL import Image

from catdog.data.catalog import Catalog
from catdog.evaluation import calibration
from catdog.inference import bundle, export
from catdog.inference.provenance import Provenance
from catdog.models import registry

# Labelled images for each class; enough that with 10 % for validation both splits get some.
COUNT = 40
SHARED = Path(__file__).parents[2] / "shared"

# A user who owns nothing; it may read what is needed to start Python, wherever that is.
NOBODY = (
    "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
)
# Root without what makes it more than another user.
POWERLESS = "setpriv --bounding-set=-all --inh-caps=-all"


class Outcome(NamedTuple):
    """Result of a command: exit code and output."""

    code: int
    out: str
    err: str


def in_process(script: str, *, timeout: float, cwd: Path | None = None, **environment: str) -> str:
    """Runs Python code in a subprocess with a timeout; returns its output."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def as_user(prefix: str, *words: object, **environment: str) -> Outcome:
    """Runs the `catdog` command as another user, `NOBODY` or `POWERLESS`, without a home; skips where root may not."""
    command = [*prefix.split(), sys.executable, "-m", "catdog", *map(str, words)]
    inherited = {name: value for name, value in os.environ.items() if name != "HOME"}
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=inherited | {"PYTHONPATH": path} | environment
    )
    if done.returncode in (126, 127) or "setpriv:" in done.stderr:
        pytest.skip(f"this machine cannot run it as another user: {done.stderr}")
    return Outcome(done.returncode, done.stdout, done.stderr)


def weights(run: str) -> list[np.ndarray]:
    """The trained variables of a run's model."""
    return [np.asarray(v) for v in keras.saving.load_model(Path(run) / "model" / "model.keras").weights]


def bundle_json(run: str) -> dict[str, Any]:
    """Content of the `bundle.json` of a run."""
    return json.loads((Path(run) / "model" / "bundle.json").read_text())


def wait_for_checkpoint(runs: str, name: str) -> None:
    """Waits until Ray Train has recorded the first checkpoint of a run, shortly after it was reported."""
    note = Path(runs) / name / "checkpoints" / "checkpoint_manager_snapshot.json"
    end = time.monotonic() + 30
    while not note.exists():
        assert time.monotonic() < end, f"no {note}"
        time.sleep(0.05)


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    """A small JPEG file, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
    return out.getvalue()


def kaggle_files(train: int = COUNT, test: int = 3) -> dict[str, bytes]:
    """Files in Kaggle's layout, unpacked."""
    files = {f"train/{name}.{n}.jpg": jpeg(n + 1000 * (name == "dog")) for name in ("cat", "dog") for n in range(train)}
    return files | {f"test/{n}.jpg": jpeg(n + 5000) for n in range(1, test + 1)}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Writes files below a folder, and returns it."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip of files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def kaggle_zip(test_name: str = "test") -> bytes:
    """A zip of zips, as Kaggle publishes it."""
    files = kaggle_files()
    train = {name: data for name, data in files.items() if name.startswith("train/")}
    test = {name.replace("test/", f"{test_name}/"): data for name, data in files.items() if name.startswith("test/")}
    inner = {"train.zip": zipped(train), f"{test_name}.zip": zipped(test), "sampleSubmission.csv": b"id,label\n"}
    return zipped(inner)


def class_folders(cat: str, dog: str, under: str = "") -> dict[str, bytes]:
    """A folder for each class."""
    return {
        f"{under}{folder}/{n}.jpg": jpeg(n + 1000 * label)
        for label, folder in enumerate((cat, dog))
        for n in range(COUNT)
    }


def save_untrained(uri: str, data: Catalog, size: int = 32, members: int = 1, **fields: object) -> bundle.BundleInfo:
    """Saves a bundle of small_resnet with random weights, with ONNX files, as training does."""
    built = []
    for seed in range(members):
        keras.utils.set_random_seed(seed)
        built.append(registry.build_model(registry.ModelSpec("small_resnet", size)))
    sample = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    return export.save_bundle(uri, built, sample, **(_fields(data, size) | fields))


def save_like(other: str, uri: str, provenance: Provenance | None = None, **fields: object) -> str:
    """Copies a bundle, with other content of `bundle.json`, and perhaps other images that made it; returns its URI."""
    folder = Path(shutil.copytree(other, uri))
    content = json.loads((folder / "bundle.json").read_text()) | fields
    if provenance is not None:
        images = provenance.to_bytes()
        (folder / bundle.IMAGES_NAME).write_bytes(images)
        content["checksums"][bundle.IMAGES_NAME] = hashlib.sha256(images).hexdigest()
        content["images_known"] = provenance.known
    (folder / "bundle.json").write_text(json.dumps(content))
    return str(folder)


def saved_info(data: Catalog, **fields: object) -> bundle.BundleInfo:
    """The description of such a bundle, without a bundle."""
    rest = {
        "members": ["model.keras"],
        "onnx": "none",
        "images_known": True,
        "versions": {},
        "checksums": {"model.keras": "0" * 64},
    }
    return bundle.BundleInfo.model_validate(_fields(data, 32) | rest | fields)


def _fields(data: Catalog, size: int) -> dict[str, object]:
    return {
        "architecture": "small_resnet",
        "image_size": size,
        "class_names": data.class_names,
        "views": ["identity"],
        "calibration": "none",
        "temperature": 1.0,
        "clip": calibration.DEFAULT_CLIP,
        "prior": 0.5,
        "validation": {"log_loss": 0.7},
        "chosen_on": "none",
        "catalog_fingerprint": data.fingerprint,
        "seed": 0,
        "training": {},
    }
