"""The specification of a model, and the decorator that makes a function an architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from catdog.errors import CatdogError

# Names of two layers that every model with a backbone has: the backbone, and the last layer before the head.
BACKBONE, FEATURES = "backbone", "features"
# Widths of MobileNet for which Keras publishes ImageNet weights.
MOBILENET_ALPHAS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines the layers of a model.

    Attributes:
        arch: name in the registry.
        image_size: S, in pixels.
        alpha: width multiplier, where the architecture has one.
        freeze: do not train the backbone.
        pretrained: the backbone's weights come from a file; its batch-norm then stays in inference mode.
        trainable_from: name of the first layer of the backbone that is trained; None trains all of them.
        dropout: dropout rate before the logit, where the architecture has it; None for the architecture's default.
        conv_layers, units, dense_layers: size of gray_cnn.
    """

    arch: str
    image_size: int
    alpha: float = 1.0
    freeze: bool = False
    pretrained: bool = False
    trainable_from: str | None = None
    dropout: float | None = None
    conv_layers: int = 3
    units: int = 64
    dense_layers: int = 0


Builder = Callable[[Any, ModelSpec], Any]


@dataclass(frozen=True)
class Architecture:
    """One entry of the registry.

    Attributes:
        name: the value of `--arch`.
        build: from the uint8 input tensor and the spec to the logit tensor.
        image_size: default S, in pixels.
        learning_rate: default peak learning rate from scratch, or for a head on a frozen backbone.
        fine_tuning_rate: default peak learning rate for a pretrained backbone that is trained; None without a backbone.
        summary: one line for `catdog models`.
        application: the function that builds the backbone, of `keras.applications` or of `efficientnet_lite`; or None.
        trainable_from: the first layer of the backbone that the recipe `fine-tune` trains; None for all of them.
        fine_tuning_epochs: default number of epochs of a pretrained backbone whose head was fitted first.
    """

    name: str
    build: Builder
    image_size: int
    learning_rate: float
    fine_tuning_rate: float | None
    summary: str
    application: str | None = None
    trainable_from: str | None = None
    fine_tuning_epochs: int = 10

    @property
    def has_backbone(self) -> bool:
        """Whether it has a backbone, which takes pretrained weights and can be frozen."""
        return self.fine_tuning_rate is not None


# By name; `registry` looks architectures up, after all of them are declared.
registered: dict[str, Architecture] = {}


def register_architecture(arch: Architecture) -> None:
    """Adds an architecture to the registry."""
    registered[arch.name] = arch


def architecture(
    image_size: int, learning_rate: float, fine_tuning_rate: float | None = None, **backbone: Any
) -> Callable[[Builder], Builder]:
    """Decorator that registers a function as an architecture.

    Its name is the function's, its summary the first line of the docstring.

    Args:
        image_size, learning_rate, fine_tuning_rate, backbone: as of `Architecture`.
    """

    def register(build: Builder) -> Builder:
        summary = (build.__doc__ or "").strip().splitlines()[0]
        register_architecture(
            Architecture(build.__name__, build, image_size, learning_rate, fine_tuning_rate, summary, **backbone)
        )
        return build

    return register


def use_keras_defaults() -> None:
    """Sets Keras's global defaults in this process to those that the models rely on, overriding `keras.json`.

    Raises:
        CatdogError: Keras was imported before catdog and runs on another backend.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        raise CatdogError(
            f"Keras runs on {keras.config.backend()} in this process, expected tensorflow; import catdog before keras, "
            "or set KERAS_BACKEND=tensorflow"
        )
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy("float32")
