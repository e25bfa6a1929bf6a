"""The registry of architectures: name → Keras model that takes uint8 N×S×S×3 (RGB) and outputs one logit.

`architectures.py` has the functions, `spec.py` the decorator that registers them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from catdog.errors import CatdogError, first_line, unknown
from catdog.models import architectures, efficientnet_lite, pretrained
from catdog.models.spec import BACKBONE, MOBILENET_ALPHAS, Architecture, ModelSpec, registered, use_keras_defaults

if TYPE_CHECKING:
    import keras

__all__ = [
    "DEFAULT_ARCHITECTURE",
    "DEFAULT_BACKBONE",
    "MOBILENET_ALPHAS",
    "Architecture",
    "ModelSpec",
    "build_model",
    "get_architecture",
    "get_architectures",
    "has_default_backbone",
]
# Where none is named: from scratch, and for pretrained weights (benchmarks/log_loss.md).
DEFAULT_ARCHITECTURE, DEFAULT_BACKBONE = architectures.small_resnet.__name__, "efficientnet_lite2"


def get_architectures() -> Mapping[str, Architecture]:
    """All architectures, by name."""
    return registered


def get_architecture(name: str) -> Architecture:
    """Finds an architecture by its name.

    Raises:
        UsageError: unknown name.
    """
    known = get_architectures()
    if name not in known:
        raise unknown("--arch", name, known)
    return known[name]


def has_default_backbone() -> bool:
    """Whether the weights of the default backbone are installed."""
    return efficientnet_lite.find_packaged_weights(registered[DEFAULT_BACKBONE].application or "") is not None


def build_model(spec: ModelSpec, weights: bytes | None = None) -> keras.Model:
    """Builds a model.

    Args:
        spec: the model.
        weights: the bytes of a Keras weights file for the backbone (`pretrained.load_backbone_weights`), or None for
            random weights.

    Returns:
        A model from uint8 N×S×S×3 (RGB) to float32 N×1 (a logit), uncompiled.

    Raises:
        CatdogError: the size is too small for the architecture, or the weights do not fit it.
    """
    import keras

    use_keras_defaults()
    arch = get_architecture(spec.arch)
    inputs = keras.Input((spec.image_size, spec.image_size, 3), dtype="uint8", name="image")
    try:
        logit = arch.build(inputs, spec)
    except ValueError as error:
        raise CatdogError(
            f"{spec.arch} cannot be built with --image-size {spec.image_size} --alpha {spec.alpha}: "
            f"{first_line(error)}; its own size is {arch.image_size}"
        ) from error
    model = keras.Model(inputs, logit, name=spec.arch)
    if weights is not None:
        pretrained.load_backbone_weights(model.get_layer(BACKBONE), weights, spec)
    return model
