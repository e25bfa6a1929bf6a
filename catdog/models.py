"""The registry of architectures: name → Keras model that takes uint8 N×S×S×3 and gives one logit.

Preprocessing is part of each model, so whoever loads `model.keras` cannot get it wrong. Adding an architecture is one
decorated function from the input tensor to the logit.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catdog.errors import CatdogError, UsageError

if TYPE_CHECKING:
    import keras

MOBILENET_ALPHAS = (0.25, 0.5, 0.75, 1.0)
DEFAULT_ARCHITECTURE = "small_resnet"


@dataclass(frozen=True)
class Spec:
    """What a model is built from.

    Attributes:
        arch: name in the registry.
        image_size: S, in pixels.
        alpha: width multiplier, where the architecture has one.
        freeze: keep the backbone's weights as they are.
        pretrained: the backbone's weights come from a file; its batch-norm then stays in inference mode.
    """

    arch: str
    image_size: int
    alpha: float = 1.0
    freeze: bool = False
    pretrained: bool = False


Builder = Callable[[Any, Spec], Any]


@dataclass(frozen=True)
class Architecture:
    """One entry of the registry.

    Attributes:
        name: what `--arch` takes.
        build: from the uint8 input tensor and the spec to the logit tensor.
        image_size: S it was made for, in pixels.
        learning_rate: a peak rate that trains it well from scratch, or trains its head on a frozen backbone.
        fine_tuning_rate: the peak rate for a pretrained backbone that is not frozen; None without a backbone.
        summary: one line on what it is.
    """

    name: str
    build: Builder
    image_size: int
    learning_rate: float
    fine_tuning_rate: float | None
    summary: str

    @property
    def has_backbone(self) -> bool:
        """Whether it has a backbone that takes pretrained weights and can be frozen."""
        return self.fine_tuning_rate is not None


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    image_size: int, learning_rate: float, fine_tuning_rate: float | None = None
) -> Callable[[Builder], Builder]:
    """Registers a builder under its function's name, with the first line of its docstring as the summary."""

    def register(build: Builder) -> Builder:
        summary = (build.__doc__ or "").strip().splitlines()[0]
        name = build.__name__
        ARCHITECTURES[name] = Architecture(name, build, image_size, learning_rate, fine_tuning_rate, summary)
        return build

    return register


def find(name: str) -> Architecture:
    """Looks an architecture up.

    Raises:
        UsageError: unknown name.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"--arch received {name!r}, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build(spec: Spec, weights: bytes | None = None) -> keras.Model:
    """Builds a model.

    Args:
        spec: what to build.
        weights: the bytes of a Keras weights file for the backbone without its top, or None for random weights.

    Returns:
        A model from uint8 N×S×S×3 (RGB) to float32 N×1 (a logit), uncompiled.

    Raises:
        CatdogError: the size is too small for the architecture, or the weights do not fit it.
    """
    import keras

    arch = find(spec.arch)
    inputs = keras.Input((spec.image_size, spec.image_size, 3), dtype="uint8", name="image")
    try:
        logit = arch.build(inputs, spec)
    except ValueError as error:
        raise CatdogError(
            f"{spec.arch} cannot be built with --image-size {spec.image_size} --alpha {spec.alpha}: "
            f"{str(error).splitlines()[0]}; its own size is {arch.image_size}"
        ) from error
    model = keras.Model(inputs, logit, name=spec.arch)
    if weights is not None:
        _load_backbone(model.get_layer("backbone"), weights, spec)
    return model


def download_imagenet(spec: Spec) -> bytes:
    """Fetches Keras's published ImageNet weights for a spec's backbone.

    Returns:
        The bytes of a Keras weights file without the top.

    Raises:
        CatdogError: the download failed.
    """
    import keras

    try:
        backbone = _backbone(spec, "imagenet")
    except Exception as error:  # urllib, socket and Keras each have their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CatdogError(
            f"--weights imagenet: could not download the weights of {spec.arch} ({reason}); fetch the file without "
            "the top elsewhere and give it as --weights PATH"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backbone.weights.h5"
        keras.Model.save_weights(backbone, path)
        return path.read_bytes()


def _load_backbone(backbone: keras.Model, weights: bytes, spec: Spec) -> None:
    import h5py

    try:
        with h5py.File(io.BytesIO(weights)) as file:
            # Keras tells its two layouts apart by the file's name, and bytes have none.
            ending = ".h5" if "layer_names" in file.attrs else ".weights.h5"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"backbone{ending}"
            path.write_bytes(weights)
            backbone.load_weights(path)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CatdogError(
            f"--weights does not fit {spec.arch} with --alpha {spec.alpha}: {reason}; expected a Keras weights file of "
            "that backbone without its top"
        ) from error


def _backbone(spec: Spec, weights: str | None) -> keras.Model:
    import keras

    shape = (spec.image_size, spec.image_size, 3)
    if spec.arch == "mobilenet":
        return keras.applications.MobileNet(
            input_shape=shape, alpha=spec.alpha, include_top=False, weights=weights, name="backbone"
        )
    return keras.applications.VGG16(input_shape=shape, include_top=False, weights=weights, name="backbone")


def _apply_backbone(x: Any, spec: Spec) -> Any:
    backbone = _backbone(spec, None)
    backbone.trainable = not spec.freeze
    # Pretrained statistics are better than what small batches give; None leaves it to the training loop.
    return backbone(x, training=False if spec.pretrained or spec.freeze else None)


def _three_convolutions(inputs: Any, filters: tuple[int, int, int], units: int, dropout: float) -> Any:
    from keras import layers

    x = layers.Rescaling(1 / 255)(inputs)
    for width in filters:
        x = layers.Conv2D(width, 3, activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(units, activation="relu")(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    return layers.Dense(1, name="logit")(x)


@architecture(image_size=128, learning_rate=3e-3)
def small_resnet(inputs: Any, spec: Spec) -> Any:  # noqa: ARG001
    """A compact residual network (He et al., 2016) that trains from scratch on a CPU."""
    from keras import layers

    def convolve(x: Any, width: int, stride: int = 1, size: int = 3) -> Any:
        x = layers.Conv2D(width, size, strides=stride, padding="same", use_bias=False)(x)
        # Short runs: at Keras's momentum of 0.99 the statistics would trail the weights by epochs.
        return layers.BatchNormalization(momentum=0.9)(x)

    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = layers.ReLU()(convolve(x, 16, stride=2))
    for width, blocks in ((24, 1), (48, 2), (96, 2), (128, 1)):
        for block in range(blocks):
            stride = 2 if block == 0 else 1
            shortcut = convolve(x, width, stride, size=1) if block == 0 else x
            x = layers.ReLU()(convolve(x, width, stride))
            x = layers.ReLU()(layers.Add()([convolve(x, width), shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return layers.Dense(1, name="logit")(x)


@architecture(image_size=150, learning_rate=1e-3)
def blog_cnn(inputs: Any, spec: Spec) -> Any:  # noqa: ARG001
    """Three convolutions (32-32-64), a 64-unit layer, dropout 0.3: the small CNN of many a blog."""
    return _three_convolutions(inputs, (32, 32, 64), 64, 0.3)


@architecture(image_size=150, learning_rate=1e-3)
def workshop_cnn(inputs: Any, spec: Spec) -> Any:  # noqa: ARG001
    """Three convolutions (32-64-64) and a 256-unit layer: the small CNN of the NTUOSS workshop."""
    return _three_convolutions(inputs, (32, 64, 64), 256, 0.0)


@architecture(image_size=224, learning_rate=3e-3, fine_tuning_rate=2e-4)
def mobilenet(inputs: Any, spec: Spec) -> Any:
    """MobileNet (Howard et al., 2017) of any width, pooled, with a logistic head."""
    from keras import layers

    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = layers.GlobalAveragePooling2D()(_apply_backbone(x, spec))
    x = layers.Dropout(0.2)(x)
    return layers.Dense(1, name="logit")(x)


@architecture(image_size=150, learning_rate=3e-4, fine_tuning_rate=2e-5)
def vgg16(inputs: Any, spec: Spec) -> Any:
    """VGG16 (Simonyan and Zisserman, 2015) with a 256-unit head and dropout 0.4."""
    import keras
    from keras import layers

    x = layers.Rescaling(1.0, offset=[-123.68, -116.779, -103.939])(inputs)
    x = keras.ops.flip(x, axis=-1)  # it was trained on BGR
    x = layers.Flatten()(_apply_backbone(x, spec))
    x = layers.Dense(256, activation="relu")(x)
    x = layers.Dropout(0.4)(x)
    return layers.Dense(1, name="logit")(x)
