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

BACKBONE, FEATURES = "backbone", "features"
MOBILENET_ALPHAS = (0.25, 0.5, 0.75, 1.0)
DEFAULT_ARCHITECTURE = "small_resnet"


@dataclass(frozen=True)
class ModelSpec:
    """What a model is built from.

    Attributes:
        arch: name in the registry.
        image_size: S, in pixels.
        alpha: width multiplier, where the architecture has one.
        freeze: keep the backbone's weights as they are.
        pretrained: the backbone's weights come from a file; its batch-norm then stays in inference mode.
        trainable_from: the backbone's first layer that is trained, by name; those before it are kept. None is all.
        dropout: before the logit, where the architecture has it; None is the architecture's own.
        conv_layers, units, dense_layers: of gray_cnn.
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
        name: what `--arch` takes.
        build: from the uint8 input tensor and the spec to the logit tensor.
        image_size: S it was made for, in pixels.
        learning_rate: a peak rate that trains it well from scratch, or trains its head on a frozen backbone.
        fine_tuning_rate: the peak rate for a pretrained backbone that is not frozen; None without a backbone.
        summary: one line on what it is.
        application: the function of `keras.applications` that builds the backbone, or None.
        trainable_from: the backbone's first layer that the recipe `fine-tune` trains; None is all of them.
    """

    name: str
    build: Builder
    image_size: int
    learning_rate: float
    fine_tuning_rate: float | None
    summary: str
    application: str | None = None
    trainable_from: str | None = None

    @property
    def has_backbone(self) -> bool:
        """Whether it has a backbone that takes pretrained weights and can be frozen."""
        return self.fine_tuning_rate is not None


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    image_size: int, learning_rate: float, fine_tuning_rate: float | None = None, **backbone: str
) -> Callable[[Builder], Builder]:
    """Registers a builder under its function's name, with the first line of its docstring as the summary."""

    def register(build: Builder) -> Builder:
        summary = (build.__doc__ or "").strip().splitlines()[0]
        name = build.__name__
        ARCHITECTURES[name] = Architecture(
            name, build, image_size, learning_rate, fine_tuning_rate, summary, **backbone
        )
        return build

    return register


def get_architecture(name: str) -> Architecture:
    """Looks an architecture up.

    Raises:
        UsageError: unknown name.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"--arch received {name!r}, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def use_keras_defaults() -> None:
    """Sets what Keras computes in to what models rely on, in this process, whatever the user's `keras.json` says.

    Raises:
        CatdogError: Keras was imported before catdog, and runs on another backend.
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


def build_model(spec: ModelSpec, weights: bytes | None = None) -> keras.Model:
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

    use_keras_defaults()
    arch = get_architecture(spec.arch)
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
        _load_backbone(model.get_layer(BACKBONE), weights, spec)
    return model


def forward_in_inference_mode(
    model: keras.Model, batch: Any, run: Callable[[Any, Any], Any] | None = None, training: bool = True
) -> Any:
    """Computes a model whose backbone is pretrained: its batch-norm stays in inference mode, also in training.

    `model(batch, training=True)` would not do: Keras then trains nested batch-norm whatever the nested call says.

    Args:
        model: with a backbone; its layers form a chain.
        batch: uint8, N×S×S×3.
        run: computes the backbone's output from the backbone and its input, where Keras is not to do it.
        training: whether dropout is on.

    Returns:
        float32, N×1.
    """
    import keras

    x = batch
    for operation in model.operations[1:]:
        if operation.name == BACKBONE:
            x = run(operation, x) if run is not None else operation(x, training=False)
        else:
            x = operation(x, training=training) if isinstance(operation, keras.layers.Dropout) else operation(x)
    return x


def feature_extractor(model: keras.Model) -> keras.Model:
    """The part of a model up to what its head is given: uint8 N×S×S×3 to float32 N×D."""
    import keras

    return keras.Model(model.inputs, model.get_layer(FEATURES).output)


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of a model in order, with those of its backbone in the backbone's place."""
    flat: list[keras.Layer] = []
    for layer in model.layers:
        flat += layer.layers if layer.name == BACKBONE else [layer]
    return flat


def head_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of a model after its features, in order; the last gives the logit."""
    names = [layer.name for layer in model.layers]
    return model.layers[names.index(FEATURES) + 1 :]


def download_imagenet(spec: ModelSpec) -> bytes:
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


def _load_backbone(backbone: keras.Model, weights: bytes, spec: ModelSpec) -> None:
    import h5py

    try:
        with h5py.File(io.BytesIO(weights)) as file:
            # Keras tells its two layouts apart by the file's name, and bytes have none.
            ending = ".h5" if "layer_names" in file.attrs else ".weights.h5"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"backbone{ending}"
            path.write_bytes(weights)
            if spec.arch == "vgg16_top":
                whole = _backbone(spec, None)
                whole.load_weights(path)
                backbone.set_weights(whole.get_weights()[:-2])
            else:
                backbone.load_weights(path)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CatdogError(
            f"--weights does not fit {spec.arch} with --alpha {spec.alpha}: {reason}; expected a Keras weights file of "
            f"that backbone {'with' if spec.arch == 'vgg16_top' else 'without'} its top"
        ) from error


def _backbone(spec: ModelSpec, weights: str | None) -> keras.Model:
    import keras

    use_keras_defaults()
    application = getattr(keras.applications, get_architecture(spec.arch).application or "")
    options = {"alpha": spec.alpha} if spec.arch == "mobilenet" else {}
    shape = (spec.image_size, spec.image_size, 3)
    built = application(input_shape=shape, include_top=spec.arch == "vgg16_top", weights=weights, **options)
    # Not by the name argument: EfficientNetV2 looks its blocks up by it.
    return keras.Model(built.input, built.output, name=BACKBONE)


def _apply_backbone(
    x: Any, spec: ModelSpec, cut: Callable[[keras.Model], keras.Model] = lambda backbone: backbone
) -> Any:
    backbone = cut(_backbone(spec, None))
    backbone.trainable = not spec.freeze
    if spec.trainable_from is not None:
        names = [layer.name for layer in backbone.layers]
        if spec.trainable_from not in names:
            raise CatdogError(
                f"trainable_from received {spec.trainable_from!r}, expected a layer of {spec.arch}'s backbone such as "
                f"{names[len(names) // 2]}"
            )
        for layer in backbone.layers[: names.index(spec.trainable_from)]:
            layer.trainable = False
    # Pretrained statistics are better than what small batches give; None leaves it to the training loop.
    return backbone(x, training=False if spec.pretrained or spec.freeze else None)


def _logit(x: Any, spec: ModelSpec, dropout: float) -> Any:
    from keras import layers

    rate = dropout if spec.dropout is None else spec.dropout
    return layers.Dense(1, name="logit")(layers.Dropout(rate)(x) if rate else x)


def _pooled(x: Any, spec: ModelSpec) -> Any:
    from keras import layers

    return _logit(layers.GlobalAveragePooling2D(name=FEATURES)(_apply_backbone(x, spec)), spec, 0.2)


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
def small_resnet(inputs: Any, spec: ModelSpec) -> Any:  # noqa: ARG001
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
def blog_cnn(inputs: Any, spec: ModelSpec) -> Any:  # noqa: ARG001
    """Three convolutions (32-32-64), a 64-unit layer, dropout 0.3: the small CNN of many a blog."""
    return _three_convolutions(inputs, (32, 32, 64), 64, 0.3)


@architecture(image_size=150, learning_rate=1e-3)
def workshop_cnn(inputs: Any, spec: ModelSpec) -> Any:  # noqa: ARG001
    """Three convolutions (32-64-64) and a 256-unit layer: the small CNN of the NTUOSS workshop."""
    return _three_convolutions(inputs, (32, 64, 64), 256, 0.0)


@architecture(image_size=64, learning_rate=1e-3)
def gray_cnn(inputs: Any, spec: ModelSpec) -> Any:
    """Convolutions, and dense layers if asked for, on grey pixels: the grid of a TensorBoard tutorial."""
    import keras
    from keras import layers

    x = keras.ops.image.rgb_to_grayscale(layers.Rescaling(1 / 255)(inputs))
    for _ in range(spec.conv_layers):
        x = layers.Conv2D(spec.units, 3, activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    for _ in range(spec.dense_layers):
        x = layers.Dense(spec.units, activation="relu")(x)
    return _logit(x, spec, 0.0)


@architecture(
    image_size=224, learning_rate=3e-3, fine_tuning_rate=2e-4, application="MobileNet", trainable_from="conv_dw_4"
)
def mobilenet(inputs: Any, spec: ModelSpec) -> Any:
    """MobileNet (Howard et al., 2017) of any width, pooled, with a logistic head."""
    return _pooled(_to_unit_range(inputs), spec)


def _vgg_pixels(inputs: Any) -> Any:
    import keras
    from keras import layers

    x = layers.Rescaling(1.0, offset=[-123.68, -116.779, -103.939])(inputs)
    return keras.ops.flip(x, axis=-1)  # it was trained on BGR


@architecture(
    image_size=150, learning_rate=3e-4, fine_tuning_rate=2e-5, application="VGG16", trainable_from="block5_conv1"
)
def vgg16(inputs: Any, spec: ModelSpec) -> Any:
    """VGG16 (Simonyan and Zisserman, 2015) with a 256-unit head and dropout 0.4."""
    from keras import layers

    x = layers.Flatten(name=FEATURES)(_apply_backbone(_vgg_pixels(inputs), spec))
    x = layers.Dense(256, activation="relu")(x)
    return _logit(x, spec, 0.4)


@architecture(image_size=224, learning_rate=1e-3, fine_tuning_rate=1e-5, application="VGG16", trainable_from="fc1")
def vgg16_top(inputs: Any, spec: ModelSpec) -> Any:
    """The whole VGG16, its two 4,096-unit layers too, with one logit for its 1,000 classes: fast.ai's first lesson."""
    import keras
    from keras import layers

    rate = 0.5 if spec.dropout is None else spec.dropout

    def cut(backbone: keras.Model) -> keras.Model:
        x = layers.Dropout(rate)(backbone.get_layer("fc1").output)
        x = layers.Dropout(rate)(backbone.get_layer("fc2")(x))
        return keras.Model(backbone.inputs, x, name=BACKBONE)

    x = _apply_backbone(_vgg_pixels(inputs), spec, cut)
    return layers.Dense(1, name="logit")(layers.Identity(name=FEATURES)(x))


def _to_unit_range(inputs: Any) -> Any:
    from keras import layers

    return layers.Rescaling(1 / 127.5, offset=-1)(inputs)


def _to_imagenet_range(inputs: Any) -> Any:
    from keras import layers

    deviation = (0.229, 0.224, 0.225)
    return layers.Rescaling(
        [1 / (255 * d) for d in deviation],
        offset=[-mean / d for mean, d in zip((0.485, 0.456, 0.406), deviation, strict=True)],
    )(inputs)


def _as_floats(inputs: Any) -> Any:
    """For the backbones that scale pixels themselves."""
    from keras import layers

    return layers.Rescaling(1.0)(inputs)


def _register_applications() -> None:
    """The backbones of `keras.applications` that need no more than their name, size and pixel range."""
    for application, size, scale, paper in (
        ("MobileNetV2", 224, _to_unit_range, "Sandler et al., 2018"),
        ("MobileNetV3Small", 224, _as_floats, "Howard et al., 2019"),
        ("MobileNetV3Large", 224, _as_floats, "Howard et al., 2019"),
        ("EfficientNetV2B0", 224, _as_floats, "Tan and Le, 2021"),
        ("EfficientNetV2B1", 240, _as_floats, "Tan and Le, 2021"),
        ("EfficientNetV2B2", 260, _as_floats, "Tan and Le, 2021"),
        ("EfficientNetV2B3", 300, _as_floats, "Tan and Le, 2021"),
        ("EfficientNetV2S", 384, _as_floats, "Tan and Le, 2021"),
        ("ConvNeXtTiny", 224, _as_floats, "Liu et al., 2022"),
        ("ConvNeXtSmall", 224, _as_floats, "Liu et al., 2022"),
        ("ResNet50V2", 224, _to_unit_range, "He et al., 2016"),
        ("Xception", 299, _to_unit_range, "Chollet, 2017"),
        ("DenseNet121", 224, _to_imagenet_range, "Huang et al., 2017"),
    ):

        def add_layers(inputs: Any, spec: ModelSpec, scale: Callable[[Any], Any] = scale) -> Any:
            return _pooled(scale(inputs), spec)

        name = application.lower()
        summary = f"{application} ({paper}), pooled, with a logistic head."
        ARCHITECTURES[name] = Architecture(name, add_layers, size, 3e-3, 1e-4, summary, application)


_register_applications()
